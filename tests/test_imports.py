"""`import trade_hf` is cheap and brings in nothing that a user of weights and programs does not need."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "trade_hf"
FOLDERS = ("rasp", "compiled", "circuit")  # each may import from itself and those before it alone, and from
LEAVES = ("limits", "files")  # which import nothing
HOOKS = {("trade_hf.compiled.weights", "trade_hf.report.shape")}  # what a notebook calls on a model, as it is called

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


def modules():
    """By module of the package, the syntax tree."""
    return {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): ast.parse(path.read_text())
        for path in PACKAGE.rglob("*.py")
    }


def imports(tree, everywhere):
    """Modules of the package that are imported: everywhere, or when the module is."""
    found, waiting = set(), [tree]
    while waiting:
        node = waiting.pop()
        is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if is_for_types or (isinstance(node, ast.FunctionDef) and not everywhere):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trade_hf"):
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        waiting += ast.iter_child_nodes(node)
    return found


def test_imports_go_round_in_no_circle():
    trees = modules()
    TopologicalSorter({name: imports(tree, False) & trees.keys() for name, tree in trees.items()}).prepare()


def test_the_language_knows_no_models_and_models_no_circuits():
    trees = modules()
    for name, tree in trees.items():
        folder = name.split(".")[1]
        if folder in FOLDERS:
            known = FOLDERS[: FOLDERS.index(folder) + 1]
            for imported in imports(tree, True) & trees.keys():
                is_known = imported.split(".")[1] in (*known, *LEAVES) or (name, imported) in HOOKS
                assert is_known, f"{name} imports {imported}"
