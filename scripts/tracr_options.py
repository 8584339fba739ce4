"""How models are compiled: tracr's options of `compile_rasp_to_model`, as arguments of a script."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Any

from trade_hf.compiled.exactness import EXACTNESS
from trade_hf.compiled.weights import BOS, PAD


@dataclass(frozen=True)
class TracrOptions:
    """The names of BOS and pad, and the exactness of all steps."""

    bos: str = BOS
    pad: str = PAD
    exactness: float = EXACTNESS

    @classmethod
    def add_to(cls, parser: argparse.ArgumentParser) -> None:
        """The arguments --bos, --pad and --exactness."""
        parser.add_argument("--bos", default=BOS, help=f"what models call BOS (default {BOS})")
        parser.add_argument("--pad", default=PAD, help=f"what they call pad (default {PAD})")
        parser.add_argument(
            "--exactness", type=float, default=EXACTNESS, help=f"tracr's mlp_exactness (default {EXACTNESS:g})"
        )

    @classmethod
    def of(cls, args: argparse.Namespace) -> TracrOptions:
        """As they were given."""
        return cls(args.bos, args.pad, args.exactness)

    @property
    def ours(self) -> dict[str, Any]:
        """Keyword arguments of `compile_program`."""
        return asdict(self)

    @property
    def tracrs(self) -> dict[str, Any]:
        """Keyword arguments of `compile_rasp_to_model`."""
        return {"compiler_bos": self.bos, "compiler_pad": self.pad, "mlp_exactness": self.exactness}

    @property
    def record(self) -> dict[str, Any]:
        """For the result; nothing for tracr's defaults."""
        return {} if self == TRACRS else {"compiled_with": self.tracrs}


TRACRS = TracrOptions()  # its defaults
