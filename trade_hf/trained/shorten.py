"""A program without the lines that it does not need, as running it on all inputs tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trade_hf.rasp.program import RaspError, Variable
from trade_hf.trained.program import Line, Op, Program

if TYPE_CHECKING:
    from trade_hf.trained.synthesis import Found


def shorten(program: Program, check: Callable[[Program], Found]) -> Found:
    """The program with each line left out that can be: a conjunction is one of its parts, a function its argument."""
    best = check(program)
    changed = True
    while changed:
        changed = False
        for number in reversed(range(len(best.program))):
            for argument in _stand_ins(best.program, number):
                shorter = without(best.program, number, argument)
                if shorter is not None and not (found := check(shorter)).wrong.any():
                    best, changed = found, True
                    break
            if changed:
                break
    return best


def _stand_ins(program: Program, number: Variable) -> tuple[Variable, ...]:
    """What could take the place of a line: its arguments of the same type."""
    line = program.lines[number]
    if line.op in (Op.AND, Op.OR, Op.MAP, Op.SEQUENCE_MAP):
        return line.args
    return ()


def without(program: Program, number: Variable, instead: Variable) -> Program | None:
    """The program with `instead` in a line's place, and without the lines that are of no use then."""
    if instead < 0 and number == len(program) - 1:
        return None
    swap = {number: instead}
    lines = [
        Line(line.op, tuple(swap.get(a, a) for a in line.args), line.function, line.default) for line in program.lines
    ]
    output = instead if number == len(program) - 1 else len(program) - 1
    used, wanted = set(), [output]
    while wanted:
        node = wanted.pop()
        if node >= 0 and node not in used:
            used.add(node)
            wanted += lines[node].args
    kept = sorted(used)
    place = {old: new for new, old in enumerate(kept)}
    try:
        return Program(
            tuple(
                Line(lines[n].op, tuple(place.get(a, a) for a in lines[n].args), lines[n].function, lines[n].default)
                for n in kept
            )
        )
    except RaspError:
        return None
