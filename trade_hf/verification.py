"""Do a program and a compiled transformer agree? The answer is a certificate that says how it was found.

Three ways, the strongest first:
- identical weights: the program, compiled, has the model's weights up to the order of residual directions, hidden
  units, head dimensions and heads. An explicit reordering is found and every tensor compared, so this is a proof.
- equivalent: the program and the model give the same on every input of every length up to the maximum.
- agrees: the same on a stated number of sampled inputs, where there are too many to run them all.
Otherwise a counterexample.

Where the program gives None, the model must leave all output directions off. Inputs that Tracr cannot compile
faithfully (`rasp/evaluate.py`, `valid`) have no defined answer: there the model is compared with the compiled program.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.forward import Output, run
from trade_hf.compiled.isomorphism import are_identical
from trade_hf.compiled.weights import TracrWeights
from trade_hf.rasp.evaluate import PADDING, Evaluation, all_inputs, count_inputs, evaluate, random_inputs
from trade_hf.rasp.functions import Value
from trade_hf.rasp.program import Program
from trade_hf.rasp.tables import UnsupportedError, tabulate

EXHAUSTIVE_LIMIT = 2_000_000  # inputs; above, a sample is taken
SAMPLED_INPUTS = 10_000
# Numerical outputs: the softmax leaves exp(-50 / sqrt(key_size)) on BOS, and the steps of a map are 0.01 wide.
TOLERANCE = 0.05
CHUNK = 16_384


class Status(Enum):
    IDENTICAL = "identical weights"
    EQUIVALENT = "equivalent"
    AGREES = "agrees"
    REFUTED = "refuted"
    UNVERIFIED = "unverified"


@dataclass(frozen=True)
class Verdict:
    """What was found, on how many inputs, of how many.

    `counterexample` is an input on which program and model differ, `expected` and `got` what they give there.
    """

    status: Status
    checked: int
    inputs: int
    counterexample: tuple[Value, ...] | None = None
    expected: tuple | None = None
    got: tuple | None = None
    reason: str | None = None

    @property
    def is_verified(self) -> bool:
        """Proven: identical, or the same on every input."""
        return self.status in (Status.IDENTICAL, Status.EQUIVALENT)

    def __str__(self) -> str:
        match self.status:
            case Status.IDENTICAL:
                return "identical weights"
            case Status.EQUIVALENT:
                return f"equivalent on all {self.inputs:,} inputs"
            case Status.AGREES:
                return f"agrees on {self.checked:,} of {self.inputs:,} inputs"
            case Status.REFUTED if self.counterexample is not None:
                return f"refuted by {list(self.counterexample)}"
        return f"{self.status.value}: {self.reason}"


def verify(program: Program, weights: TracrWeights, limit: int = EXHAUSTIVE_LIMIT, seed: int = 0) -> Verdict:
    """Compare a program with a model.

    Args:
      program: over the model's vocabulary.
      weights: the model.
      limit: run all inputs if there are at most this many, else `SAMPLED_INPUTS` seeded ones.
    """
    vocab, length = weights.input_vocab, weights.max_seq_len
    total = count_inputs(len(vocab), length)
    try:
        compiled = compile_program(program, vocab, length)
        tables = tabulate(program, vocab, length)
    except UnsupportedError as error:
        return Verdict(Status.REFUTED, 0, total, reason=f"the program does not compile: {error}")
    if (compiled.output_values is None) != (weights.output_values is None):
        return Verdict(Status.REFUTED, 0, total, reason="one output is numerical, the other categorical")
    if are_identical(compiled, weights):
        return Verdict(Status.IDENTICAL, total, total)
    exhaustive = total <= limit
    # The vocabulary of a model is sorted as that of a program is, so that token codes are the same on both sides.
    order = np.array([weights.input_vocab.index(token) for token in tables.vocab] + [PADDING])
    inputs = all_inputs(len(vocab), length) if exhaustive else random_inputs(len(vocab), length, SAMPLED_INPUTS, seed)
    for start in range(0, len(inputs), CHUNK):
        chunk = inputs[start : start + CHUNK]
        meant, got = evaluate(tables, chunk), run(weights, order[chunk])
        wrong = ~_agree(meant, got)
        if not meant.valid.all():
            reference = run(compiled, order[chunk])
            wrong = np.where(meant.valid, wrong, ~_same_outputs(reference, got))
        if wrong.any():
            row = int(wrong.argmax())
            tokens = tuple(tables.vocab[code] for code in chunk[row] if code != PADDING)
            expected, given = tuple(meant.decode(row)), tuple(got.decode(row))
            return Verdict(Status.REFUTED, start + row + 1, total, tokens, expected, given)
    return Verdict(Status.EQUIVALENT if exhaustive else Status.AGREES, len(inputs), total)


def _agree(meant: Evaluation, got: Output) -> np.ndarray:
    """[batch]: whether the model gives what the program means at every real position."""
    if meant.values is None:
        same = np.abs(meant.codes - got.codes) <= TOLERANCE
    else:
        same = np.where(
            meant.codes < 0, got.undefined, (got.codes == _positions(meant.values, got.values)[meant.codes])
        )
        same &= (meant.codes < 0) | ~got.undefined
    return (same | ~meant.real).all(1)


def _same_outputs(first: Output, second: Output) -> np.ndarray:
    """[batch]: whether two models give the same, None included."""
    if first.values is None or second.values is None:
        same = np.abs(first.codes - second.codes) <= TOLERANCE
    else:
        codes = _positions(first.values, second.values)[first.codes]
        same = (first.undefined == second.undefined) & (first.undefined | (codes == second.codes))
    return (same | ~first.real).all(1)


def _positions(values: tuple[Value, ...], among: Iterable[Value] | None) -> np.ndarray:
    """Where each value stands among others; -2 for one that is not there."""
    place = {value: i for i, value in enumerate(among or ())}
    return np.array([place.get(value, -2) for value in values])
