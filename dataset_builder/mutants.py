"""Programs that differ from a given one in a single component: for studies of canonical form and of verification."""

from __future__ import annotations

from collections.abc import Iterator

from dataset_builder.sampler import Draw
from trade_hf.rasp.functions import FUNCTIONS, LINEAR_FACTORS, Kind, linear
from trade_hf.rasp.program import TOKENS, Line, Op, Program, RaspError

_OTHER_ENCODING = {
    Op.MAP: Op.MAP_NUMERICAL,
    Op.MAP_NUMERICAL: Op.MAP,
    Op.SELECTOR_WIDTH: Op.SELECTOR_WIDTH_NUMERICAL,
    Op.SELECTOR_WIDTH_NUMERICAL: Op.SELECTOR_WIDTH,
}


def mutants(program: Program, draw: Draw) -> Iterator[Program]:
    """An endless stream of well-formed mutants (an operation, an argument or a function changed)."""
    while True:
        number = draw.below(len(program))
        line = _mutate(program, number, draw)
        if line is None or line == program.lines[number]:
            continue
        try:
            yield Program((*program.lines[:number], line, *program.lines[number + 1 :]))
        except RaspError:
            continue


def _mutate(program: Program, number: int, draw: Draw) -> Line | None:
    line = program.lines[number]
    match draw.below(4):
        case 0:
            op = _OTHER_ENCODING.get(line.op)
            return Line(op, line.args, line.function) if op else None
        case 1:
            place = draw.below(len(line.args))
            wanted = line.op.argument_types[place]
            choices = [v for v in range(TOKENS, number) if wanted.accepts(program.type_of(v))]
            args = (*line.args[:place], draw.one_of(choices), *line.args[place + 1 :])
            return Line(line.op, args, line.function)
        case _:
            if line.op.kind is None:
                return None
            if line.op.kind is Kind.LINEAR:
                return Line(line.op, line.args, linear(*draw.one_of(LINEAR_FACTORS)))
            return Line(line.op, line.args, draw.one_of(list(FUNCTIONS[line.op.kind].values())))
