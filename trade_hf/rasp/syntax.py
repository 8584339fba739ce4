"""What the parser of programs needs of Python's syntax: errors that point at a place, code fences, constants."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable

from trade_hf.rasp.functions import MAX_NUMBER, Value, is_small
from trade_hf.rasp.program import RaspError

MAX_SHOWN = 60  # characters of a text's own words in a message
MAX_EXPONENT = 64


class RaspSyntaxError(RaspError):
    """Text that is not a program.

    Attributes:
      line, column: where, both counted from 1, in characters.
      expected: what should stand there.
      got: what stands there; None where nothing can be quoted.
      source: the whole line of text.
    """

    def __init__(self, line: int, column: int, expected: str, got: str | None = None, source: str = "") -> None:
        self.line, self.column, self.expected, self.got, self.source = line, column, expected, got, source
        super().__init__(f"line {line}, column {column}: expected {expected}" + ("" if got is None else f", got {got}"))

    @property
    def place(self) -> str:
        """The line of text (the part that counts of a long one) and below it a caret; empty for an empty line."""
        if not self.source.strip():
            return ""
        start = max(0, self.column - MAX_SHOWN)
        part = self.source[start : start + 2 * MAX_SHOWN].replace("\t", " ")
        return f"    {part}\n    {' ' * (self.column - 1 - start)}^"


class Unexpected(Exception):  # noqa: N818 — never leaves the parser, which makes a RaspSyntaxError of it
    """A node of the syntax tree that should be something else."""

    def __init__(self, node: ast.AST, expected: str, got: str | None = None) -> None:
        super().__init__(expected)
        self.node, self.expected, self.got = node, expected, got

    def located(self, text: str) -> RaspSyntaxError:
        """The error for whoever wrote `text`."""
        line, offset = getattr(self.node, "lineno", 1), getattr(self.node, "col_offset", 0)
        source = source_line(text, line)
        column = len(source.encode()[:offset].decode(errors="ignore")) + 1  # Python counts bytes
        return RaspSyntaxError(line, column, self.expected, self.got, source)


def source_line(text: str, number: int) -> str:
    """A line of text, counted from 1 as Python's parser counts; empty where there is none."""
    lines = re.split(r"\r\n|\r|\n", text)
    return lines[number - 1] if 0 < number <= len(lines) else ""


def quoted(node: ast.AST) -> str:
    """A node's text in backquotes, cut off where it is long."""
    text = ast.unparse(node).splitlines()[0]
    return f"`{text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + '…'}`"


def unfenced(text: str) -> str:
    """The text with all lines outside its code fence (```) blank; unchanged where there is no fence.

    Raises RaspSyntaxError where there are several fenced blocks.
    """
    lines = text.splitlines()
    fences = [number for number, line in enumerate(lines) if line.lstrip().startswith("```")]
    if len(fences) > 2:
        raise RaspSyntaxError(fences[2] + 1, 1, "one block of code", "another one", lines[fences[2]])
    if not fences:
        return text
    start, end = fences[0], fences[1] if len(fences) > 1 else len(lines)
    return "\n".join(line if start < number < end else "" for number, line in enumerate(lines))


# ---------------------------------------------------------------- constants

BINARY: dict[type[ast.operator], Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def constant(node: ast.expr) -> Value | None:
    """The value of a number, a text, a tuple of such, or arithmetic on numbers; None for anything else, for what has no
    value and for what is too large (`is_small`)."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return value if is_small(value) else None
        case ast.Tuple(elts=parts):
            values = tuple(constant(part) for part in parts)
            return None if None in values or not is_small(values) else values
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _computed(_UNARY[type(op)], constant(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
            first, second = constant(left), constant(right)
            if isinstance(op, ast.Pow) and not (isinstance(second, int | float) and abs(second) <= MAX_EXPONENT):
                return None
            return _computed(BINARY[type(op)], first, second)
    return None


def _computed(compute: Callable, *numbers: Value | None) -> Value | None:
    if not all(map(_is_number, numbers)):
        return None
    try:
        result = compute(*numbers)
    except ArithmeticError:
        return None
    return result if _is_number(result) and abs(result) <= MAX_NUMBER else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


class Folded(ast.NodeTransformer):
    """Replaces arithmetic on numbers by its result, innermost first: `x + (4 - 3)` becomes `x + 1`."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:  # noqa: N802 — ast's name
        return self._fold(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:  # noqa: N802
        return self._fold(node)

    def _fold(self, node: ast.BinOp | ast.UnaryOp) -> ast.expr:
        self.generic_visit(node)
        value = constant(node)
        return ast.copy_location(ast.Constant(value), node) if isinstance(value, int | float) else node
