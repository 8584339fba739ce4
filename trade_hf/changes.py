"""Options of `trade compile` that change the compiled model: another order or basis, noise, no labels."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trade_hf.compiled.weights import TracrWeights


def add_changes(parser: ArgumentParser) -> None:
    """Adds the options; what is given is applied in this order."""
    group = parser.add_argument_group("changes of the model, applied in this order")
    group.add_argument("--permute", action="store_true", help="directions, hidden units and heads in a random order")
    group.add_argument("--rotate", action="store_true", help="the residual stream in a random orthogonal basis")
    group.add_argument("--skew", action="store_true", help="the residual stream in a random non-orthogonal basis")
    group.add_argument("--compress", action="store_true", help="only those dimensions that are read")
    group.add_argument("--noise", type=_level, metavar="LEVEL", help="Gaussian; 0.001 is 0.1 %% of each tensor")
    group.add_argument("--no-labels", action="store_true", help="without the names of the residual directions")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the random changes (default 0)")


def changed(weights: TracrWeights, args: Namespace) -> TracrWeights:
    """The model with the changes that were asked for."""
    from trade_hf.compiled.transforms import add_noise, compress, permute, rotate, skew

    for change in (permute, rotate, skew):
        if getattr(args, change.__name__):
            weights = change(weights, args.seed)
    if args.compress:
        weights = compress(weights)
    if args.noise:
        weights = add_noise(weights, args.noise, args.seed)
    return replace(weights, residual_labels=()) if args.no_labels else weights


def _level(text: str) -> float:
    level = float(text)
    if not 0 <= level <= 10:
        raise ArgumentTypeError(f"expected a level from 0 to 10, as 0.001 for 0.1 %, got {text}")
    return level
