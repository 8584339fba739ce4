"""Score decompiled programs against true ones, or against the models they were read from. Needs no tracr.

A prediction is text from anywhere: it is parsed, never executed, and whatever it is, it gets a score and a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trade_hf.compiled.compiler import compile_like, compile_program
from trade_hf.compiled.weights import TracrWeights, WeightsError
from trade_hf.rasp.canonical import canonicalise
from trade_hf.rasp.folding import folded
from trade_hf.rasp.functions import Value
from trade_hf.rasp.program import Program, RaspError, variable_name
from trade_hf.rasp.tables import UnsupportedError
from trade_hf.rasp.text import parse
from trade_hf.verification import Status, Verdict, verify, verify_programs

LIMIT = 20_000  # inputs: all are run if there are at most this many, else half as many are sampled
LONGEST_CANONICAL = 64  # lines; longer programs are compared as they are written
WEIGHTS_SUFFIX = ".safetensors"
WRONG = (RaspError, UnsupportedError, WeightsError, MemoryError, RecursionError)  # what a prediction may be


@dataclass(frozen=True)
class Score:
    """One prediction.

    Attributes:
      status: the verdict's, `malformed` for text that is no program, or `too large` for one that cannot be run here.
      functional_equivalence: the same on every input that was run, in float32 and in float64.
      exact_match: the same canonical program, or identical weights where the reference is a model.
      compiles: a program that Tracr compiles.
      proven: equivalence or its opposite is certain: all inputs were run, the weights are identical, there is a
        counterexample, or the program does not compile. What is malformed or too large is undecided.
      edit_distance: components (operation, arguments, function) to be put in, left out or replaced, between canonical
        programs; what is no program counts as an empty one. None where the reference is a model.
      reason: what is wrong with it, in words; None if nothing is.
    """

    status: str
    functional_equivalence: bool
    exact_match: bool
    compiles: bool
    proven: bool
    edit_distance: int | None
    reason: str | None


def score(prediction: str, reference: str, vocab: Iterable[Value], max_seq_len: int) -> Score:
    """Score one prediction. `reference` is a program, or the path of a model as `trade compile` writes it.

    Raises RaspError, UnsupportedError or WeightsError for a reference that is neither.
    """
    if reference.endswith(WEIGHTS_SUFFIX):
        return _score_against_model(prediction, TracrWeights.load(reference))
    domain = (tuple(vocab), max_seq_len)
    truth = folded(parse(reference), *domain)
    components = _components(truth, domain)
    compile_program(truth, *domain)
    try:
        program = folded(parse(prediction), *domain)
        verdict = verify_programs(program, truth, *domain, limit=LIMIT, samples=LIMIT // 2)
        mine = _components(program, domain)
    except WRONG as error:
        return _failed(error, len(components))
    return _scored(verdict, mine == components, _edit_distance(mine, components))


def score_all(
    predictions: Sequence[str], references: Sequence[str], vocab: Iterable[Value], max_seq_len: int
) -> tuple[dict[str, float], list[Score]]:
    """Shares between 0 and 1, and the mean edit distance, with the scores themselves."""
    if len(predictions) != len(references):
        raise ValueError(f"expected as many predictions as references, got {len(predictions)} and {len(references)}")
    vocab = tuple(vocab)
    scores = [score(text, truth, vocab, max_seq_len) for text, truth in zip(predictions, references, strict=True)]
    shares = ("functional_equivalence", "exact_match", "compiles", "proven")
    result = {name: sum(getattr(item, name) for item in scores) / max(1, len(scores)) for name in shares}
    distances = [item.edit_distance for item in scores if item.edit_distance is not None]
    if distances:
        result["edit_distance"] = sum(distances) / len(distances)
    return result, scores


def _score_against_model(prediction: str, weights: TracrWeights) -> Score:
    try:
        program = folded(parse(prediction), weights.input_vocab, weights.max_seq_len)
        compile_like(program, weights)
        verdict = verify(program, weights, limit=LIMIT, samples=LIMIT // 2)
    except WRONG as error:
        return _failed(error, None)
    return _scored(verdict, verdict.status in (Status.IDENTICAL, Status.SAME_IN_ANOTHER_BASIS), None)


def _failed(error: Exception, edit_distance: int | None) -> Score:
    does_not_compile = isinstance(error, UnsupportedError)
    status = Status.REFUTED.value if does_not_compile else "malformed" if isinstance(error, RaspError) else "too large"
    return Score(status, False, False, False, does_not_compile, edit_distance, str(error))


def _scored(verdict: Verdict, exact: bool, edit_distance: int | None) -> Score:
    is_same = verdict.is_verified or (verdict.status is Status.AGREES and verdict.precision is None)
    return Score(
        status=verdict.status.value,
        functional_equivalence=is_same,
        exact_match=exact,
        compiles=True,
        proven=verdict.is_verified or verdict.status is Status.REFUTED,
        edit_distance=edit_distance,
        reason=None if is_same else str(verdict),
    )


def _components(program: Program, domain: tuple[tuple[Value, ...], int]) -> list[tuple]:
    """The four components of each line, of the canonical program, each with the place that it has in its line."""
    if len(program.live_lines) <= LONGEST_CANONICAL:
        program = canonicalise(program, *domain)
    components: list[tuple] = []
    for line in program.lines:
        names = [variable_name(argument) for argument in line.args]
        function = line.function and (line.function.name, line.function.table, line.function.factors)
        components += enumerate((line.op.text, *names, *[None] * (2 - len(names)), function))
    return components


def _edit_distance(first: list, second: list) -> int:
    """Levenshtein."""
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (one != other))
    return row[-1]
