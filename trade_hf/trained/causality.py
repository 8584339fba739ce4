"""Where in a model each line of a program is, and whether the model uses it.

For each s-op: what holds its value is exchanged for another input's, and the model's answers are held against the
program's with that line's values exchanged (`interchange.py`). For each selector: the head whose attention it follows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trade_hf.rasp.program import variable_name
from trade_hf.trained.domain import PADDING, Domain
from trade_hf.trained.evidence import Evidence, patterns
from trade_hf.trained.interchange import Exchange
from trade_hf.trained.program import Program, Run
from trade_hf.trained.transformer import Transformer

MOST_INPUTS = 600  # that a mechanism is looked for on
USED = 0.9  # interchange accuracy from which on a model is said to use a line
CONFIDENCE = 1.96  # standard deviations: 95 %


@dataclass(frozen=True)
class Mechanism:
    """Where in a model a line is, and whether the model uses it.

    Attributes:
      line: its name.
      where: the hook of the residual stream, the part that reads it there, or the head.
      held: of an s-op: the share of its variance that a linear map from there gives; of a selector: the squared
        correlation of the head's attention with it.
      interchange: the share of answers that should change with the line's value and do so as the program says; None
        for selectors, and where no answer should change.
      interval: of that share, 95 % (Wilson).
      cases: how many answers should have changed.
      kept: the share of the answers that should not change with it and do not; None where there are none.
    """

    line: str
    where: str
    held: float
    interchange: float | None = None
    interval: tuple[float, float] | None = None
    cases: int = 0
    kept: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose(
    programs: Sequence[Program], model: Transformer, domain: Domain, seed: int = 0, learn: bool = True
) -> tuple[Program, list[Mechanism]]:
    """Of programs that agree with a model alike, the one whose lines it uses most, the first one on ties; and its
    mechanism.

    They are compared by their least used line, then by all lines, without learned projections; the one that is chosen
    and the first are then held against each other with them.
    """
    quick = {n: mechanism(program, model, domain, seed, learn=False) for n, program in enumerate(programs)}
    if len(programs) > 1:
        ordered = sorted(quick, key=lambda n: (*(-figure for figure in _use(quick[n])), n))
    else:
        ordered = [0]
    if not learn:
        return programs[ordered[0]], quick[ordered[0]]
    found = {n: mechanism(programs[n], model, domain, seed) for n in sorted({0, ordered[0]})}
    best = min(found, key=lambda n: (*(-figure for figure in _use(found[n])), n))
    return programs[best], found[best]


def _use(lines: Sequence[Mechanism]) -> tuple[float, float]:
    """The least interchange accuracy and the mean; the same for all programs whose lines are all used."""
    shares = [line.interchange for line in lines if line.interchange is not None] or [1.0]
    return (USED, 1.0) if min(shares) >= USED else (min(shares), sum(shares) / len(shares))


def verdict(lines: Sequence[Mechanism]) -> str:
    """In words, whether the model uses the lines of a program."""
    tested = [line for line in lines if line.interchange is not None]
    unused = [line.line for line in tested if (line.interchange or 0) < USED]
    if not tested:
        return "whether the model uses these lines is not known: exchanging the value of one changes no answer"
    if not unused:
        return f"the model uses all {len(tested)} lines that could be tested: interchange accuracy {USED} or more"
    return (
        f"the model behaves like this program and does not compute it this way: of {len(tested)} lines that could be "
        f"tested, {', '.join(unused)} {'has' if len(unused) == 1 else 'have'} an interchange accuracy below {USED}"
    )


def mechanism(
    program: Program, model: Transformer, domain: Domain, seed: int = 0, learn: bool = True
) -> list[Mechanism]:
    """The mechanism of each line of a program.

    Args:
      program: it need not agree with the model.
      model, domain: the model and its inputs.
      seed: of the inputs that are drawn, where there are many, and of the pairs.
      learn: whether projections are learned where those by regression do not do.
    """
    rng = np.random.RandomState(seed)
    chosen = np.sort(rng.permutation(len(domain))[:MOST_INPUTS])
    part = domain.rows(chosen)
    evidence = Evidence(model, part)
    heads = patterns(model, part)
    exchange = Exchange(program, model, part, evidence, rng, learn)
    selected = selectors(program, part)
    found = []
    for number, line in enumerate(program.lines):
        if line.op.gives_selector:
            found.append(_head_of(number, selected[number], heads, part))
        else:
            found.append(_mechanism_of(number, exchange))
    return found


def _mechanism_of(number: int, exchange: Exchange) -> Mechanism:
    """An s-op's place, and what happens there when it is exchanged."""
    values, evidence = exchange.values[number], exchange.evidence
    assert values is not None
    outcome = exchange.line(number)
    if outcome is None:
        place = evidence.place(np.nan_to_num(values))
        return Mechanism(variable_name(number), place.hook, round(place.r2, 4))
    r2 = float(evidence.held(np.nan_to_num(values)[None])[0][evidence.hooks.index(outcome.stream)])
    low, high = interval(outcome.right, outcome.cases)
    return Mechanism(
        variable_name(number), outcome.place, round(r2, 4), round(outcome.right / outcome.cases, 4),
        (round(low, 4), round(high, 4)), outcome.cases,
        round(outcome.kept / outcome.others, 4) if outcome.others else None,
    )  # fmt: skip


def selectors(program: Program, domain: Domain) -> dict[int, np.ndarray]:
    """[input, query, key] what each selector selects."""
    run = Run(domain.tokens)
    values: dict[int, np.ndarray] = {-2: run.tokens, -1: run.indices}
    for number, line in enumerate(program.lines):
        values[number] = run.compute(line, [values[a] for a in line.args])
    return {n: values[n].astype(np.float64) for n, line in enumerate(program.lines) if line.op.gives_selector}


def _head_of(number: int, selected: np.ndarray, heads: Mapping[str, np.ndarray], domain: Domain) -> Mechanism:
    """The head whose attention correlates most with a selector's."""
    weights = selected / np.maximum(selected.sum(-1, keepdims=True), 1)
    is_token = domain.tokens != PADDING
    pairs = is_token[:, :, None] & is_token[:, None, :]
    best = max(heads, key=lambda name: _squared_correlation(weights[pairs], heads[name][pairs]))
    return Mechanism(variable_name(number), best, round(_squared_correlation(weights[pairs], heads[best][pairs]), 4))


def _squared_correlation(first: np.ndarray, second: np.ndarray) -> float:
    if first.std() < 1e-9 or second.std() < 1e-9:
        return 0.0
    correlation = float(np.corrcoef(first, second)[0, 1])
    return max(correlation, 0.0) ** 2


def interval(right: int, cases: int) -> tuple[float, float]:
    """Wilson's interval of a share, 95 %."""
    share, spread = right / cases, CONFIDENCE**2 / cases
    middle = (share + spread / 2) / (1 + spread)
    half = CONFIDENCE * math.sqrt(share * (1 - share) / cases + spread / (4 * cases)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
