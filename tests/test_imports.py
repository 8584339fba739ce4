"""`import trade_hf` is cheap and brings in nothing that a user of weights and programs does not need."""

import subprocess
import sys

PROBE = """
import sys
import {modules}
names = ("tracr", "jax", "haiku", "datasets", "gradio", "evaluate", "datatrove", "transformer_lens")
heavy = [m for m in names if m in sys.modules]
assert not heavy, heavy
"""
ALL = (
    "trade_hf, trade_hf.cli, trade_hf.decompiler, trade_hf.demo, trade_hf.verification, trade_hf.modeling_trade, "
    "trade_hf.processing_trade, trade_hf.tokenization_rasp, trade_hf.rasp.canonical, trade_hf.compiled.compiler, "
    "trade_hf.compiled.bridge, trade_hf.compiled.forward, trade_hf.compiled.transforms, trade_hf.report.page, "
    "trade_hf.compiled.transformer_lens, trade_hf.app.answers, dataset_builder.online, "
    "trade_hf.trained.transformer, trade_hf.trained.domain"
)


def test_nothing_heavy_at_import():
    subprocess.run([sys.executable, "-c", PROBE.format(modules=ALL)], check=True)


def test_the_package_itself_imports_next_to_nothing():
    code = "import sys, trade_hf; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_resolve():
    import trade_hf

    for name in trade_hf.__all__:
        assert getattr(trade_hf, name).__name__ == name
    assert {"TraDeConfig", "TraDeForConditionalGeneration", "TraDeProcessor"} <= set(trade_hf.__all__)
    assert trade_hf.__dir__() == trade_hf.__all__


def test_the_language_needs_numpy_alone():
    code = (
        "import sys, trade_hf.rasp.canonical, trade_hf.rasp.evaluate, trade_hf.compiled.compiler\n"
        "import trade_hf.report.shape, trade_hf.report.highlight\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
