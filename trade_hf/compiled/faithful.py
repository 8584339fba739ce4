"""Where what Tracr compiles may depart from what RASP means, whatever the input.

Tracr puts a BOS token before each input, which is attended to where a selector selects nothing. RASP knows no such
position: s-ops should be off there. Some are not:
- a map of a number gives at BOS what it gives of the number 0 (`craft/chamber/numerical_mlp.py` reads the constant
  direction, which BOS has too), and what reads such an s-op may be on there as well;
- selector widths of one layer share the unit that cleans BOS (`craft/chamber/selector_width.py` names it alike), so two
  of them clean it twice.
An aggregate that selects nothing then gives what stands at BOS, and a select takes BOS for one of its keys.

And weights are float32, which holds whole numbers up to 2 ** 24.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from trade_hf.rasp.evaluate import EXACTNESS, counts_up_to, step_at, too_close
from trade_hf.rasp.program import INDICES, TOKENS, Line, Op, Type, Variable, type_of, variable_name
from trade_hf.rasp.tables import Table, Tables, UnsupportedError

# What an s-op is at BOS: a code (-1: off) or a number (0: off); None where that depends on the input.
AtBos = int | float | None
OFF = -1
INPUTS_AT_BOS: dict[Variable, AtBos] = {TOKENS: OFF, INDICES: OFF}
_MAPS = (Op.MAP, Op.MAP_NUMERICAL)
_WIDTHS = (Op.SELECTOR_WIDTH, Op.SELECTOR_WIDTH_NUMERICAL)


def may_depart(tables: Tables, exactness: float = EXACTNESS) -> bool:
    """Whether a program's compiled model may differ from it. False is certain; where it is True there may yet be no
    input on which an aggregate selects nothing."""
    lines, states = tables.program.lines, dict(INPUTS_AT_BOS)
    twice = widths_cleaned_twice(tables)
    for number in tables.program.live_lines:
        line, table = lines[number], tables[number]
        if reads_bos(line, table, tables.by_variable, states):
            return True
        state = at_bos(lines, line, table, tables.by_variable, states, exactness)
        states[number] = None if number in twice else state
    return False


def check_numbers(tables: Tables, tolerance: float) -> None:
    """Raises UnsupportedError for a number of the program that float32 does not hold to within `tolerance`: a value of
    a numerical s-op, or a factor."""
    for place in tables.program.live_lines:
        line = tables.program.lines[place]
        factors = line.function.factors if line.function else None
        numbers = tables[place].values if line.op.result is Type.NUMERICAL else ()
        for number in (*numbers, *(factors or ())):
            if abs(float(np.float32(number)) - number) > tolerance:  # type: ignore[operator, arg-type]
                held = float(np.float32(number))  # type: ignore[arg-type]
                raise UnsupportedError(
                    f"line {place + 1}: expected numbers that float32 holds to within {tolerance:g}, got {number}, "
                    f"which it takes for {held:.0f}"
                )


def limits(tables: Tables, exactness: float) -> tuple[str, ...]:
    """What the compiled model of a program cannot tell apart at an exactness, in words, line by line: widths beyond
    what it counts, and numbers that are nearer to each other than two steps are wide."""
    lines, found = tables.program.lines, []
    for number in tables.program.live_lines:
        line, name = lines[number], variable_name(number)
        if line.op in _WIDTHS and counts_up_to(exactness) < tables.max_seq_len:
            found.append(f"{name} counts up to {counts_up_to(exactness)} of {tables.max_seq_len}")
        elif line.op in _MAPS and type_of(lines, line.args[0]) is Type.NUMERICAL:
            close = too_close(line, tables[line.args[0]].domain, tables[number], exactness)
            found += [f"{name} may take {one:.4g} for {other:.4g}" for one, other in close[:1]]
    return tuple([f"at exactness {exactness:g}, {limit}" for limit in found])


def widths_cleaned_twice(tables: Tables) -> set[Variable]:
    """Selector widths whose direction of 0 is cleaned more than once at BOS: those that share a layer."""
    program = tables.program
    widths = [number for number in program.live_lines if program.lines[number].op in _WIDTHS]
    if len(widths) < 2:
        return set()
    depth = program.depths
    beside = Counter(depth[number] for number in widths)
    return {n for n in widths if beside[depth[n]] > 1 and program.lines[n].op is Op.SELECTOR_WIDTH}


def reads_bos(line: Line, table: Table, tables: Mapping[Variable, Table], states: Mapping[Variable, AtBos]) -> bool:
    """Whether a line is changed by what its arguments are at BOS; an aggregate, if its selector selects nothing."""
    match line.op:
        case Op.SELECT:
            key, queries = states[line.args[0]], len(tables[line.args[1]].domain)
            if key is None or key == OFF:
                return key is None
            return any(table.entries[int(key) * queries : (int(key) + 1) * queries])
        case Op.AGGREGATE:
            return states[line.args[1]] != OFF
        case Op.AGGREGATE_NUMERICAL:
            return states[line.args[1]] != 0
    return False


def at_bos(
    lines: Sequence[Line],
    line: Line,
    table: Table,
    tables: Mapping[Variable, Table],
    states: Mapping[Variable, AtBos],
    exactness: float = EXACTNESS,
) -> AtBos:
    """What a line is at BOS, given what its arguments are there; of a selector, that of its queries."""
    known = [states[argument] for argument in line.args]
    off = 0.0 if line.op.result is Type.NUMERICAL else OFF
    match line.op:
        case Op.SELECT:
            return known[1]
        case Op.AGGREGATE | Op.AGGREGATE_NUMERICAL:
            return known[1] if known[0] == OFF else None  # a query that is off attends to BOS alone
        case Op.SELECTOR_WIDTH | Op.SELECTOR_WIDTH_NUMERICAL:
            return off if known[0] == OFF else None
        case Op.SEQUENCE_MAP if OFF in known:
            return off
    given = [state for state in known if state is not None]
    if len(given) < len(known):
        return None
    match line.op:
        case Op.LINEAR_SEQUENCE_MAP:
            assert line.function is not None and line.function.factors is not None
            return sum(factor * number for factor, number in zip(line.function.factors, given, strict=True))
        case Op.SEQUENCE_MAP:
            return table.entries[int(given[0]) * len(tables[line.args[1]].domain) + int(given[1])]
        case _ if type_of(lines, line.args[0]) is Type.NUMERICAL:
            return step_at(line, given[0], tables[line.args[0]].domain, table, exactness)
        case _ if given[0] == OFF:
            return off
    entry = table.entries[int(given[0])]
    return entry if off == OFF else max(entry or 0.0, 0.0)  # the ReLU cuts off what is below 0
