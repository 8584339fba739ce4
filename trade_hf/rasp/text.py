"""Program ⇄ runnable Python for the tracr package. Text is parsed, never executed.

from tracr.rasp import rasp

v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ).named("v1")
v2 = rasp.SelectorWidth(v1).named("v2")
program = v2
"""

from __future__ import annotations

import ast
import warnings

from trade_hf.rasp.functions import FUNCTIONS, Function, Kind, is_small, linear, tabulated
from trade_hf.rasp.program import (
    INDICES,
    TOKENS,
    Line,
    Op,
    Program,
    RaspError,
    Type,
    Variable,
    check_line,
    variable_name,
)

HEADER = "from tracr.rasp import rasp"
OUTPUT_NAME = "program"
MAX_CHARACTERS = 1_000_000
MAX_LINES = 1_000

COMPARISONS: dict[str, str] = {
    "EQ": "k == q",
    "LT": "k < q",
    "LEQ": "k <= q",
    "GT": "k > q",
    "GEQ": "k >= q",
    "NEQ": "k != q",
    "TRUE": "True",
    "FALSE": "False",
}
_COMPARISON_OF = {name: comparison for comparison, name in COMPARISONS.items()}
_CONSTRUCTORS: dict[str, Op] = {
    "Map": Op.MAP,
    "SequenceMap": Op.SEQUENCE_MAP,
    "LinearSequenceMap": Op.LINEAR_SEQUENCE_MAP,
    "Select": Op.SELECT,
    "Aggregate": Op.AGGREGATE,
    "SelectorWidth": Op.SELECTOR_WIDTH,
}
_NUMERICAL = {
    Op.MAP: Op.MAP_NUMERICAL,
    Op.AGGREGATE: Op.AGGREGATE_NUMERICAL,
    Op.SELECTOR_WIDTH: Op.SELECTOR_WIDTH_NUMERICAL,
    Op.LINEAR_SEQUENCE_MAP: Op.LINEAR_SEQUENCE_MAP,
}
_CATEGORICAL = {numerical: categorical for categorical, numerical in _NUMERICAL.items() if numerical is not categorical}


class RaspSyntaxError(RaspError):
    """Text that is not a program; the message begins with the line and the column."""

    def __init__(self, node: ast.AST | tuple[int, int], message: str) -> None:
        line, column = node if isinstance(node, tuple) else (_attr(node, "lineno", 1), _attr(node, "col_offset", 0) + 1)
        super().__init__(f"line {line}, column {column}: {message}")


def _attr(node: ast.AST, name: str, default: int) -> int:
    return getattr(node, name, default)


# ---------------------------------------------------------------- program → text


def to_text(program: Program) -> str:
    """Python source that builds `program` with the tracr package and binds it to `program`."""
    assignments = [f"v{n + 1} = {_line_text(program, n)}" for n in range(len(program))]
    return "\n".join([HEADER, "", *assignments, f"{OUTPUT_NAME} = {variable_name(program.output)}", ""])


def _line_text(program: Program, number: int) -> str:
    line = program.lines[number]
    args = [f"rasp.{variable_name(a)}" if a < 0 else variable_name(a) for a in line.args]
    match line.op:
        case Op.MAP | Op.MAP_NUMERICAL:
            # tracr folds a map of a map into one unless told not to (rasp.py, Map.simplify).
            inner = program.lines[line.args[0]].op if line.args[0] >= 0 else None
            keep = ", simplify=False" if inner in (Op.MAP, Op.MAP_NUMERICAL) else ""
            text = f"rasp.Map({_lambda_text(line.function)}, {args[0]}{keep})"
        case Op.SEQUENCE_MAP:
            text = f"rasp.SequenceMap({_lambda_text(line.function)}, {args[0]}, {args[1]})"
        case Op.LINEAR_SEQUENCE_MAP:
            assert line.function is not None and line.function.factors is not None
            text = "rasp.LinearSequenceMap({}, {}, {!r}, {!r})".format(*args, *line.function.factors)
        case Op.SELECT:
            text = f"rasp.Select({args[0]}, {args[1]}, {_predicate_text(line.function)})"
        case Op.AGGREGATE:
            text = f"rasp.Aggregate({args[0]}, {args[1]})"
        case Op.AGGREGATE_NUMERICAL:
            text = f"rasp.Aggregate({args[0]}, {args[1]}, default=0)"
        case _:
            text = f"rasp.SelectorWidth({args[0]})"
    if line.op.result is Type.NUMERICAL:
        text = f"rasp.numerical({text})"
    return f'{text}.named("v{number + 1}")'


def _lambda_text(function: Function | None) -> str:
    assert function is not None
    if function.name is not None:
        return f"lambda {function.kind.value}: {function.name}"
    key = "x" if function.kind is Kind.UNARY else "(x, y)"
    return f"lambda {function.kind.value}: {{{', '.join(f'{k!r}: {v!r}' for k, v in function.table or ())}}}.get({key})"


def _predicate_text(function: Function | None) -> str:
    assert function is not None
    if function.name in _COMPARISON_OF:
        return f"rasp.Comparison.{_COMPARISON_OF[function.name]}"
    if function.name is not None:
        return f"lambda k, q: {function.name}"
    return f"lambda k, q: (k, q) in [{', '.join(repr(pair) for pair, _ in function.table or ())}]"


# ---------------------------------------------------------------- text → program


def parse(text: str) -> Program:
    """The program that `text` builds.

    Raises RaspSyntaxError (line, column, what was expected) for text outside the language, RaspError for lines that
    do not type-check. Nothing is executed.
    """
    if len(text) > MAX_CHARACTERS:
        raise RaspSyntaxError((1, 1), f"expected at most {MAX_CHARACTERS:,} characters, got {len(text):,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(text)
    except SyntaxError as error:
        where = (error.lineno or 1, error.offset or 1)
        raise RaspSyntaxError(where, f"expected Python that builds a RASP program: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError):
        raise RaspSyntaxError(
            (1, 1), "expected Python that builds a RASP program, got a null byte, half a character or too deep a text"
        ) from None
    try:
        return _Parser().module(module)
    except RaspError:
        raise
    except (ValueError, RecursionError):  # of a number of thousands of digits
        raise RaspSyntaxError((1, 1), "expected a program, got a number too long or expressions too deep") from None


class _Parser:
    """Walks the syntax tree of one module and collects its lines."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.variables: dict[str, Variable] = {}

    def module(self, module: ast.Module) -> Program:
        output: Variable | None = None
        for statement in module.body:
            if output is not None:
                raise RaspSyntaxError(statement, f"expected nothing after `{OUTPUT_NAME} = …`")
            output = self.statement(statement)
        if output is None:
            raise RaspSyntaxError((1, 1), f"expected `{OUTPUT_NAME} = …` as the last line")
        if output < 0:
            raise RaspError("the output must be a line of its own, got a primitive; use a map with `x`")
        return Program(tuple(self.lines[: output + 1]))

    def statement(self, node: ast.stmt) -> Variable | None:
        if isinstance(node, ast.ImportFrom):
            if ast.unparse(node) == HEADER:
                return None
            raise RaspSyntaxError(node, f"expected `{HEADER}`, got `{_shown(node)}`")
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None  # a docstring
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
            raise RaspSyntaxError(node, f"expected `name = rasp.…`, got `{_shown(node)}`")
        variable = self.expression(node.value)
        self.variables[node.targets[0].id] = variable
        return variable if node.targets[0].id == OUTPUT_NAME else None

    def expression(self, node: ast.expr) -> Variable:
        if isinstance(node, ast.Name):
            if node.id not in self.variables:
                raise RaspSyntaxError(node, f"{node.id} is used before it is defined")
            return self.variables[node.id]
        if isinstance(node, ast.Attribute) and _is_rasp(node):
            match node.attr:
                case "tokens":
                    return TOKENS
                case "indices":
                    return INDICES
        line = self.call(node)
        if len(self.lines) >= MAX_LINES:
            raise RaspSyntaxError(node, f"expected at most {MAX_LINES:,} lines")
        self.lines.append(line)
        try:
            check_line(self.lines, len(self.lines) - 1)
        except RaspError as error:
            self.lines.pop()
            raise RaspSyntaxError(node, str(error).split(": ", 1)[-1]) from None
        return len(self.lines) - 1

    def call(self, node: ast.expr) -> Line:
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            raise RaspSyntaxError(node, f"expected a variable or a call of rasp.…, got `{_shown(node)}`")
        name = node.func.attr
        if name == "named" and not _is_rasp(node.func):
            if not (len(node.args) == 1 and isinstance(node.args[0], ast.Constant) and not node.keywords):
                raise RaspSyntaxError(node, "expected .named with one string")
            return self.call(node.func.value)
        if name in ("numerical", "categorical") and _is_rasp(node.func) and len(node.args) == 1 and not node.keywords:
            return self.encoded(node, name)
        if name not in _CONSTRUCTORS or not _is_rasp(node.func):
            expected = ", ".join(["numerical", "categorical", *_CONSTRUCTORS])
            raise RaspSyntaxError(node, f"expected one of rasp.{{{expected}}}, got `{_shown(node.func)}`")
        try:
            return self.constructor(node, _CONSTRUCTORS[name])
        except RaspSyntaxError:
            raise
        except RaspError as error:
            raise RaspSyntaxError(node, str(error)) from None

    def encoded(self, node: ast.Call, encoding: str) -> Line:
        line = self.call(node.args[0])
        table = _NUMERICAL if encoding == "numerical" else _CATEGORICAL
        op = table.get(line.op, line.op)
        if line.op is Op.SEQUENCE_MAP and encoding == "numerical":
            raise RaspSyntaxError(node, "a sequence map is categorical; Tracr has no numerical one")
        if line.op is Op.SELECT:
            raise RaspSyntaxError(node, "expected an s-op, got a selector")
        return Line(op, line.args, line.function)

    def constructor(self, node: ast.Call, op: Op) -> Line:
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        args = node.args
        match op:
            case Op.MAP:
                _expect(node, args, 2, keywords, {"simplify"})
                return Line(op, (self.expression(args[1]),), self.function(args[0], Kind.UNARY))
            case Op.SEQUENCE_MAP:
                _expect(node, args, 3, keywords, set())
                return Line(op, self.arguments(args[1:]), self.function(args[0], Kind.BINARY))
            case Op.LINEAR_SEQUENCE_MAP:
                _expect(node, args, 4, keywords, set())
                return Line(op, self.arguments(args[:2]), linear(_number(args[2]), _number(args[3])))
            case Op.SELECT:
                _expect(node, args, 3, keywords, set())
                return Line(op, self.arguments(args[:2]), self.predicate(args[2]))
            case Op.AGGREGATE:
                _expect(node, args, 2, keywords, {"default"})
                return Line(op, self.arguments(args))
            case _:
                _expect(node, args, 1, keywords, set())
                return Line(op, self.arguments(args))

    def arguments(self, nodes: list[ast.expr]) -> tuple[Variable, ...]:
        return tuple(self.expression(node) for node in nodes)

    def predicate(self, node: ast.expr) -> Function:
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "rasp.Comparison":
            if node.attr not in COMPARISONS:
                raise RaspSyntaxError(node, f"expected one of rasp.Comparison.{{{', '.join(COMPARISONS)}}}")
            return FUNCTIONS[Kind.PREDICATE][COMPARISONS[node.attr]]
        return self.function(node, Kind.PREDICATE)

    def function(self, node: ast.expr, kind: Kind) -> Function:
        if not isinstance(node, ast.Lambda):
            raise RaspSyntaxError(node, f"expected `lambda {kind.value}: …`, got `{_shown(node)}`")
        shown = _shown(node.body)
        body = _in_own_names(node, kind)
        function = FUNCTIONS[kind].get(ast.unparse(body))
        if function is None:
            function = _table(body, kind)
        if function is None:
            form = {
                Kind.UNARY: "{0: 1, …}.get(x)",
                Kind.BINARY: "{(0, 0): 1, …}.get((x, y))",
                Kind.PREDICATE: "(k, q) in [(0, 1), …]",
            }[kind]
            raise RaspSyntaxError(
                node.body,
                f"expected a named function such as `{next(iter(FUNCTIONS[kind]))}` or a table `{form}`, got `{shown}`",
            )
        return function


def _in_own_names(node: ast.Lambda, kind: Kind) -> ast.expr:
    """The body of a lambda, its arguments renamed to those that functions of this kind are written with."""
    own = kind.value.split(", ")
    given = [argument.arg for argument in node.args.args]
    if len(given) != len(own) or len(set(given)) != len(given) or ast.unparse(node.args) != ", ".join(given):
        raise RaspSyntaxError(node, f"expected `lambda {kind.value}: …`, got `lambda {ast.unparse(node.args)}: …`")
    if given != own:
        names = dict(zip(given, own, strict=True))
        for name in [part for part in ast.walk(node.body) if isinstance(part, ast.Name)]:
            if name.id in own and name.id not in names:
                raise RaspSyntaxError(name, f"{name.id} is not an argument of `lambda {', '.join(given)}: …`")
            name.id = names.get(name.id, name.id)
    return node.body


def _table(body: ast.expr, kind: Kind) -> Function | None:
    """An explicit table, or None if `body` is none. Values are literals."""
    try:
        if kind is Kind.PREDICATE:
            if isinstance(body, ast.Compare) and ast.unparse(body.left) == "(k, q)" and isinstance(body.ops[0], ast.In):
                pairs = ast.literal_eval(body.comparators[0])
                if len(body.ops) == 1 and isinstance(pairs, list) and all(_is_pair(pair) for pair in pairs):
                    return tabulated(kind, dict.fromkeys(pairs, True))
            return None
        key = "x" if kind is Kind.UNARY else "(x, y)"
        if isinstance(body, ast.Call) and isinstance(body.func, ast.Attribute) and body.func.attr == "get":
            if len(body.args) == 1 and not body.keywords and ast.unparse(body.args[0]) == key:
                entries = ast.literal_eval(body.func.value)
                if isinstance(entries, dict) and all(_is_value(value) for value in entries.values()):
                    if all(_is_value(k) if kind is Kind.UNARY else _is_pair(k) for k in entries):
                        return tabulated(kind, entries)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return None


def _is_value(value: object) -> bool:
    is_one = isinstance(value, int | float | bool | str) or (
        isinstance(value, tuple) and all(_is_value(part) for part in value)
    )
    return is_one and is_small(value)  # type: ignore[arg-type]


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(_is_value(part) for part in value)


def _is_rasp(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "rasp"


def _expect(node: ast.Call, args: list[ast.expr], count: int, keywords: dict, allowed: set[str]) -> None:
    if len(args) != count or not set(keywords) <= allowed:
        raise RaspSyntaxError(node, f"{_shown(node.func)} takes {count} argument(s), got `{_shown(node)}`")
    for name, value in keywords.items():
        if not isinstance(value, ast.Constant) or value.value not in (False, None, 0):
            raise RaspSyntaxError(node, f"{name} must be {'False' if name == 'simplify' else 'None or 0'}")


def _number(node: ast.expr) -> float:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_small(value):
        raise RaspSyntaxError(node, f"expected a number, got `{_shown(node)}`")
    return value


def _shown(node: ast.AST) -> str:
    text = ast.unparse(node).splitlines()[0]
    return text if len(text) <= 60 else text[:57] + "…"
