"""A RASP program for a trained model: RASP as such, beyond what Tracr can compile.

    from tracr.rasp import rasp

    v1 = rasp.Select(rasp.tokens, rasp.tokens, lambda k, q: k == q).named("v1")
    v2 = rasp.Select(rasp.indices, rasp.indices, lambda k, q: k < q).named("v2")
    v3 = rasp.SelectorAnd(v1, v2).named("v3")
    v4 = rasp.SelectorWidth(v3).named("v4")
    program = v4

The text runs with tracr's evaluator on token ids as the model gets them, special tokens included, and is parsed without
being run. Compared with `trade_hf.rasp`: selectors combine, means are of any numbers, every s-op has a value everywhere
(an aggregate has a default), and an output may be a set of columns. Values are numbers; means are Python's, added from
the first position to the last.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from trade_hf.rasp.program import INDICES, TOKENS, RaspError, Variable, variable_name
from trade_hf.trained.expression import Function, Table, to_set

MOST_PAIRS = 8_000_000  # of positions, of all inputs that are computed at a time


class Op(Enum):
    """Name in tracr's rasp, which of the arguments are selectors, names of the function's arguments."""

    MAP = ("Map", (False,), ("x",))
    SEQUENCE_MAP = ("SequenceMap", (False, False), ("x", "y"))
    SELECT = ("Select", (False, False), ("k", "q"))
    AND = ("SelectorAnd", (True, True), ())
    OR = ("SelectorOr", (True, True), ())
    NOT = ("SelectorNot", (True,), ())
    AGGREGATE = ("Aggregate", (True, False), ())
    WIDTH = ("SelectorWidth", (True,), ())

    __hash__ = object.__hash__  # Enum's own is slow

    def __init__(self, text: str, takes_selector: tuple[bool, ...], names: tuple[str, ...]) -> None:
        self.text = text
        self.takes_selector = takes_selector
        self.names = names

    @property
    def gives_selector(self) -> bool:
        return self.text.startswith("Select") and self.text != "SelectorWidth"


@dataclass(frozen=True)
class Line:
    """One line; `default` is an aggregate's value where nothing is selected. Raises RaspError if parts do not fit."""

    op: Op
    args: tuple[Variable, ...]
    function: Function | None = None
    default: float = 0

    def __post_init__(self) -> None:
        if len(self.args) != len(self.op.takes_selector):
            raise RaspError(f"{self.op.text} takes {len(self.op.takes_selector)} argument(s), got {len(self.args)}")
        names = self.function.names if self.function else ()
        if names != self.op.names:
            raise RaspError(f"{self.op.text} takes a function of {self.op.names}, got one of {names}")


@dataclass(frozen=True)
class Program:
    """Lines in order; the last one is the output. Raises RaspError for a line that cannot stand where it does."""

    lines: tuple[Line, ...]

    def __post_init__(self) -> None:
        if not self.lines:
            raise RaspError("a program needs at least one line")
        for number, line in enumerate(self.lines):
            for argument, wants_selector in zip(line.args, line.op.takes_selector, strict=True):
                if not TOKENS <= argument < number:
                    raise RaspError(f"line {number + 1}: {variable_name(argument)} is used before it is defined")
                is_selector = argument >= 0 and self.lines[argument].op.gives_selector
                if is_selector is not wants_selector:
                    wanted = "a selector" if wants_selector else "an s-op"
                    raise RaspError(
                        f"line {number + 1}: {line.op.text} expects {wanted}, got {variable_name(argument)}"
                    )
        if self.lines[-1].op.gives_selector:
            raise RaspError(f"line {len(self.lines)}: the output must be an s-op, got a selector")

    @property
    def table_cells(self) -> int:
        """Entries of all explicit tables; an expression has none."""
        return sum(line.function.cells for line in self.lines if line.function)

    @functools.cached_property
    def gives_sets(self) -> bool:
        """Whether the output is a set of columns."""
        return _gives_sets(self.lines, len(self.lines) - 1)

    @property
    def code(self) -> str:
        """Python that builds the program with the tracr package and binds it to `program`."""
        from trade_hf.trained.text import to_text

        return to_text(self)

    def evaluate(self, tokens: np.ndarray) -> np.ndarray:
        """[input, position] the output as numbers (sets as sums of powers of two); NaN where an input has no token.

        Args:
          tokens: [input, position] token ids, negative after the end of an input.
        """
        output = self.evaluate_all(tokens)[-1]
        assert output is not None, "the output is an s-op"
        return output

    def evaluate_all(self, tokens: np.ndarray) -> list[np.ndarray | None]:
        """The same for each line; None for selectors, which would take much memory."""
        step = max(1, MOST_PAIRS // tokens.shape[1] ** 2)
        parts = [self._evaluate(tokens[start : start + step]) for start in range(0, len(tokens), step)]
        return [None if column[0] is None else np.concatenate(column) for column in zip(*parts, strict=True)]

    def _evaluate(self, tokens: np.ndarray) -> list[np.ndarray | None]:
        run = Run(tokens)
        values: dict[Variable, np.ndarray] = {TOKENS: run.tokens, INDICES: run.indices}
        for number, line in enumerate(self.lines):
            values[number] = run.compute(line, [values[argument] for argument in line.args])
        return [
            None if line.op.gives_selector else np.where(run.is_token, values[number], np.nan)
            for number, line in enumerate(self.lines)
        ]

    def evaluate_with(self, tokens: np.ndarray, number: Variable, values: np.ndarray) -> np.ndarray:
        """The output where one line, an s-op, has other values: [input, position], on few inputs."""
        run = Run(tokens)
        known: dict[Variable, np.ndarray] = {TOKENS: run.tokens, INDICES: run.indices}
        for other, line in enumerate(self.lines):
            if other == number:
                known[other] = np.where(run.is_token, values, values[:, :1])
            else:
                known[other] = run.compute(line, [known[argument] for argument in line.args])
        return np.where(run.is_token, known[len(self) - 1], np.nan)

    def compiles(self, vocab: Sequence[int], max_seq_len: int) -> bool:
        """Whether Tracr compiles the program to a model of these tokens and lengths."""
        from trade_hf.compiled.compiler import compile_program
        from trade_hf.compiled.weights import WeightsError
        from trade_hf.rasp.tables import UnsupportedError
        from trade_hf.rasp.text import parse as parse_for_tracr

        try:
            compile_program(parse_for_tracr(self.code), tuple(vocab), max_seq_len)
        except (RaspError, UnsupportedError, WeightsError):
            return False
        return True

    def __len__(self) -> int:
        return len(self.lines)


class Run:
    """What lines give on some inputs."""

    def __init__(self, tokens: np.ndarray) -> None:
        self.is_token = tokens >= 0
        self.tokens = self._filled(tokens.astype(np.float64))
        self.indices = self._filled(np.broadcast_to(np.arange(tokens.shape[1], dtype=np.float64), tokens.shape))
        self.pairs = self.is_token[:, :, None] & self.is_token[:, None, :]  # [input, query, key]

    def compute(self, line: Line, args: Sequence[np.ndarray]) -> np.ndarray:
        """[input, position] an s-op's values, or [input, query, key] what a selector selects."""
        match line.op:
            case Op.SELECT:
                assert line.function is not None
                return (line.function(args[0][:, None, :], args[1][:, :, None]) != 0) & self.pairs
            case Op.AND:
                return args[0] & args[1]
            case Op.OR:
                return args[0] | args[1]
            case Op.NOT:
                return ~args[0] & self.pairs
            case Op.WIDTH:
                return self._filled(args[0].sum(-1, dtype=np.float64))
            case Op.AGGREGATE:
                return self._filled(mean_of(args[0], args[1], line.default))
        assert line.function is not None
        return self._filled(line.function(*args))

    def _filled(self, values: np.ndarray) -> np.ndarray:
        """Values with those of the first position where an input has no token, so that no function sees others."""
        return np.where(self.is_token, values, values[:, :1])


def mean_of(selected: np.ndarray, values: np.ndarray, default: float) -> np.ndarray:
    """[input, query] the mean of what is selected, added from first to last as Python does; else the default."""
    # A cumulative sum adds in order; numpy's own sum adds in pairs, which rounds otherwise.
    total = np.where(selected, values[:, None, :], 0.0).cumsum(-1)[..., -1]
    count = selected.sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), float(default))


def _gives_sets(lines: Sequence[Line], number: Variable) -> bool:
    if number < 0:
        return False
    function = lines[number].function
    if isinstance(function, Table):
        return isinstance(function.default, frozenset)
    if function is None:
        return False
    has_set = any(
        isinstance(node, ast.Set) or (isinstance(node, ast.Call) and ast.unparse(node) == "set()")
        for node in ast.walk(function.tree)
    )
    return has_set or any(_gives_sets(lines, argument) for argument in lines[number].args)


def answer_of(program: Program, value: float) -> int | float | list[int]:
    """One value of the output as JSON has it: a number, or the columns of a set."""
    if program.gives_sets:
        return sorted(to_set(value))
    return int(value) if float(value).is_integer() else float(value)
