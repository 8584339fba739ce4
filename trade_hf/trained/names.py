"""Named functions of one or two numbers that give known answers, the simplest first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from trade_hf.rasp.program import RaspError
from trade_hf.trained.candidate import Cells
from trade_hf.trained.expression import Expression, Function


def named_unary(x: np.ndarray, answers: np.ndarray, cells: Cells) -> str | None:
    """A named function that gives the answers at distinct numbers `x`, the simplest first; None where there is none."""
    for text in _unary_texts(x, answers, cells):
        if _gives(Expression(text, ("x",)), answers, x):
            return text
    return None


def named_binary(x: np.ndarray, y: np.ndarray, answers: np.ndarray, cells: Cells) -> str | None:
    """The same of two numbers."""
    for text in _binary_texts(answers, cells):
        if _gives(Expression(text, ("x", "y")), answers, x, y):
            return text
    return None


def _gives(function: Function, answers: np.ndarray, *args: np.ndarray) -> bool:
    try:
        return bool((function(*args) == answers).all())
    except RaspError:
        return False


def _tests_of(x: np.ndarray) -> Iterator[str]:
    values = sorted({int(v) for v in x if float(v).is_integer()})
    yield from (f"x == {v}" for v in values)
    yield from (f"x >= {v}" for v in values[1:])
    for modulus in (2, 3, 4):
        yield from (f"x % {modulus} == {rest}" for rest in range(modulus))


def _unary_texts(x: np.ndarray, answers: np.ndarray, cells: Cells) -> Iterator[str]:
    classes = np.unique(answers)
    if len(classes) == 1:
        yield cells.shown(classes[0]) if not cells.are_sets else f"{cells.shown(classes[0])} if x == x else set()"
        return
    if len(classes) == 2:
        low, high = map(cells.shown, classes)
        if (low, high) == ("0", "1"):
            yield from _tests_of(x)
        for test in _tests_of(x):
            yield f"{high} if {test} else {low}"
            yield f"{low} if {test} else {high}"
    if cells.are_sets:
        return
    shift = answers[0] - x[0]
    for constant in {f"{shift:g}"} if float(shift).is_integer() else set():
        yield f"x + {constant}" if shift > 0 else f"x - {abs(shift):g}"
    yield f"{answers[0] + x[0]:g} - x"
    top = int(answers.max())
    yield "abs(x)"
    yield from (f"max(x, {c})" for c in range(top + 1))
    yield from (f"min(x, {c})" for c in range(1, top + 1))
    yield from (f"x {'+' if c > 0 else '-'} {abs(c)} if x >= {t} else 0" for c in (-2, -1, 1) for t in range(1, 4))
    yield from (f"max(x - {c}, 0)" for c in (1, 2, 3))
    yield from (f"{c} * x" for c in (2, 3))
    yield from (f"x // {c}" for c in (2, 3, 4))
    yield from (f"(x + 1) // {c}" for c in (2, 3))
    yield "x * x"
    for modulus in range(2, 13):
        yield f"x % {modulus}"
        yield from (f"(x + {c}) % {modulus}" for c in range(1, modulus))
        yield from (f"({c} - x) % {modulus}" for c in range(modulus))
        yield from (f"({c} * x) % {modulus}" for c in range(2, min(modulus, 4)))
    values = sorted({int(v) for v in x if float(v).is_integer()})
    for c in map(int, classes):
        yield from (f"{c} if x == {v} else x" for v in values)
        yield from (f"{c} if x == {v} else x > {v}" for v in values)
        yield from (f"{c} if x == {v} else x < {v}" for v in values)


_PAIR_TESTS = (
    "x == y", "x != y", "x < y", "x <= y", "x > y", "x >= y", "x and y", "x or y", "2 * x > y", "2 * y > x",
    "2 * x >= y", "2 * x == y", "2 * y == x", "2 * y >= x", "(x + y) % 2",
)  # fmt: skip


def _binary_texts(answers: np.ndarray, cells: Cells) -> Iterator[str]:
    classes = np.unique(answers)
    if len(classes) == 2:
        low, high = map(cells.shown, classes)
        for test in _PAIR_TESTS:
            if (low, high) == ("0", "1") and "==" not in test and "and" not in test and "or" not in test:
                yield test
            yield f"{high} if {test} else {low}"
            yield f"{low} if {test} else {high}"
    if cells.are_sets:
        return
    yield from ("x + y", "x - y", "y - x", "x * y", "max(x, y)", "min(x, y)", "abs(x - y)", "x // y", "y // x")
    yield from ("x - y + 1", "y - x + 1", "x + y - 1", "x - y - 1", "y - x - 1", "max(x - y, 0)", "max(y - x, 0)")
    if len(classes) == 3:
        shown = [cells.shown(c) for c in classes]
        for order in itertools.permutations(shown):
            yield f"{order[0]} if x > y else {order[1]} if x == y else {order[2]}"
    for modulus in range(2, 13):
        yield f"(x + y) % {modulus}"
        yield f"(x - y) % {modulus}"
        yield f"(y - x) % {modulus}"
        yield f"(x * y) % {modulus}"
    for c in map(int, classes):
        yield f"x if y else {c}"
        yield f"y if x else {c}"
        yield f"{c} if x else y"
        yield f"{c} if y else x"
        for v in range(3):
            yield f"x if y == {v} else {c}"
            yield f"y if x == {v} else {c}"
