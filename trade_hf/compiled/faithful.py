"""Where what Tracr compiles may depart from what RASP means, whatever the input.

Tracr puts a BOS token before each input, which is attended to where a selector selects nothing. RASP knows no such
position: s-ops should be off there. Some are not:
- a map of a number gives at BOS what it gives of the number 0 (`craft/chamber/numerical_mlp.py` reads the constant
  direction, which BOS has too), and what reads such an s-op may be on there as well;
- selector widths of one layer share the unit that cleans BOS (`craft/chamber/selector_width.py` names it alike), so two
  of them clean it twice.
An aggregate that selects nothing then gives what stands at BOS, and a select takes BOS for one of its keys.
"""

from __future__ import annotations

from trade_hf.rasp.program import Line, Op, Program, Type, Variable

_WIDTHS = (Op.SELECTOR_WIDTH, Op.SELECTOR_WIDTH_NUMERICAL)


def may_depart(program: Program) -> bool:
    """Whether a select's keys, or the values that an aggregate moves, may be on at BOS. False is certain."""
    lines = program.lines
    on = _on_at_bos(program)
    for number in program.live_lines:
        line = lines[number]
        if line.op is Op.SELECT and line.args[0] in on:
            return True
        if line.op in (Op.AGGREGATE, Op.AGGREGATE_NUMERICAL) and line.args[1] in on:
            return True
    return False


def _on_at_bos(program: Program) -> set[Variable]:
    lines, on = program.lines, set[Variable]()
    several_widths = sum(lines[number].op in _WIDTHS for number in program.live_lines) > 1
    for number in program.live_lines:
        if _is_on(lines[number], program, on, several_widths):
            on.add(number)
    return on


def _is_on(line: Line, program: Program, on: set[Variable], several_widths: bool) -> bool:
    match line.op:
        case Op.MAP | Op.MAP_NUMERICAL:
            return line.args[0] in on or program.type_of(line.args[0]) is Type.NUMERICAL
        case Op.SEQUENCE_MAP:
            return all(argument in on for argument in line.args)
        case Op.LINEAR_SEQUENCE_MAP:
            return any(argument in on for argument in line.args)
        case Op.SELECT:
            return False
        case _:
            select, *carried = line.args
            queries_on = program.lines[select].args[1] in on
            return queries_on or any(v in on for v in carried) or (line.op in _WIDTHS and several_widths)
