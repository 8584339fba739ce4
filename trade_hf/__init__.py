"""TraDe: decompile transformers that Tracr compiled from RASP programs, and prove the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trade_hf.auto import register

__version__ = "0.1.0"

if TYPE_CHECKING:
    from trade_hf.compiled.compiler import compile_program as compile_program
    from trade_hf.compiled.weights import TracrWeights as TracrWeights
    from trade_hf.configuration_trade import TraDeConfig as TraDeConfig
    from trade_hf.decompiler import Decompilation as Decompilation
    from trade_hf.decompiler import decompile as decompile
    from trade_hf.modeling_trade import TraDeForConditionalGeneration as TraDeForConditionalGeneration
    from trade_hf.modeling_trade import TraDeModel as TraDeModel
    from trade_hf.processing_trade import TraDeProcessor as TraDeProcessor
    from trade_hf.rasp.program import Program as Program
    from trade_hf.rasp.text import parse as parse
    from trade_hf.verification import verify as verify

_HOME = {
    "Decompilation": "decompiler",
    "Program": "rasp.program",
    "TraDeConfig": "configuration_trade",
    "TraDeForConditionalGeneration": "modeling_trade",
    "TraDeModel": "modeling_trade",
    "TraDeProcessor": "processing_trade",
    "TracrWeights": "compiled.weights",
    "compile_program": "compiled.compiler",
    "decompile": "decompiler",
    "parse": "rasp.text",
    "verify": "verification",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import trade_hf` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__


register()
