"""Program ⇄ runnable Python for the tracr package. Text is parsed, never executed.

from tracr.rasp import rasp

v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ).named("v1")
v2 = rasp.SelectorWidth(v1).named("v2")
program = v2
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

from trade_hf.rasp.functions import FUNCTIONS, Function, Kind, linear, named_by_text, tabulated
from trade_hf.rasp.program import (
    INDICES,
    TOKENS,
    Line,
    Op,
    Program,
    RaspError,
    Type,
    Variable,
    find_misfit,
    type_of,
    variable_name,
)
from trade_hf.rasp.syntax import Folded, RaspSyntaxError, Unexpected, constant, quoted, source_line, unfenced

Read = TypeVar("Read")  # a program of either kind

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
}
ENCODINGS = ("numerical", "categorical")
# Parameters as tracr's rasp.py names them; those that are s-ops or selectors.
_PARAMETERS: dict[Op, tuple[str, ...]] = {
    Op.MAP: ("f", "inner"),
    Op.SEQUENCE_MAP: ("f", "fst", "snd"),
    Op.LINEAR_SEQUENCE_MAP: ("fst", "snd", "fst_fac", "snd_fac"),
    Op.SELECT: ("keys", "queries", "predicate"),
    Op.AGGREGATE: ("selector", "sop"),
    Op.SELECTOR_WIDTH: ("selector",),
}
_OPTIONAL: dict[Op, tuple[str, ...]] = {Op.MAP: ("simplify",), Op.AGGREGATE: ("default",)}
_SOPS = ("inner", "fst", "snd", "keys", "queries", "selector", "sop")
_TABLE_FORMS = {
    Kind.UNARY: "{0: 1, …}.get(x)",
    Kind.BINARY: "{(0, 0): 1, …}.get((x, y))",
    Kind.PREDICATE: "(k, q) in [(0, 1), …]",
}


# ---------------------------------------------------------------- program → text


def to_text(program: Program) -> str:
    """Python source that builds `program` with the tracr package and binds it to `program`."""
    return framed([_line_text(program, number) for number in range(len(program))], program.output)


def framed(lines: Sequence[str], output: Variable) -> str:
    """Python source of calls, one a line of a program, each bound to its name, and of the output."""
    assignments = [f"{variable_name(number)} = {line}" for number, line in enumerate(lines)]
    return "\n".join([HEADER, "", *assignments, f"{OUTPUT_NAME} = {variable_name(output)}", ""])


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
    """The program that `text` builds. Nothing is executed.

    Text is what `to_text` writes, or other Python for the tracr package: keyword arguments, arithmetic on numbers,
    functions without arguments (`def make(): … return …`), inside a code fence or not. The output is what `program` is
    bound to, or what the function returns that stands last. A map of a map stays two lines; over a given domain
    `folding.folded` makes of them what tracr does.

    Raises RaspSyntaxError with the place, what was expected and what came.
    """
    return read_with(lambda module: _Parser().program(module), text)


def read_with(read: Callable[[ast.Module], Read], text: str) -> Read:
    """What `read` makes of a text's syntax tree. Raises RaspSyntaxError with the place in the text."""
    if len(text) > MAX_CHARACTERS:
        raise RaspSyntaxError(1, 1, f"at most {MAX_CHARACTERS:,} characters", f"{len(text):,}")
    text, module = syntax_tree(text.removeprefix("\ufeff"))
    try:
        return read(module)
    except Unexpected as error:
        raise error.located(text) from None
    except (ValueError, RecursionError) as error:  # of a number of thousands of digits
        if isinstance(error, RaspError):
            raise
        raise RaspSyntaxError(1, 1, "a program", "a number too long or expressions too deep") from None


def syntax_tree(text: str) -> tuple[str, ast.Module]:
    """What Python's own parser makes of a text, or of the block of code in it; and which text that is."""
    try:
        return text, _python(text)
    except RaspSyntaxError:
        code = unfenced(text)
        if code == text:
            raise
    return code, _python(code)


def _python(text: str) -> ast.Module:
    wanted = "Python that builds a RASP program"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except SyntaxError as error:
        line = error.lineno or 1
        raise RaspSyntaxError(line, error.offset or 1, wanted, error.msg, source_line(text, line)) from None
    except (ValueError, RecursionError, MemoryError):
        raise RaspSyntaxError(1, 1, wanted, "a null byte, half a character or too deep a text") from None


class _Parser:
    """Walks the syntax tree of one module and collects its lines."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.variables: dict[str, Variable] = {}
        self.functions: dict[str, Variable] = {}  # what each function returns

    def program(self, module: ast.Module) -> Program:
        output: Variable | None = None
        statement: ast.AST = module
        for statement in module.body:
            if output is not None:
                raise Unexpected(statement, f"nothing after `{OUTPUT_NAME} = …`", quoted(statement))
            output = self.statement(statement)
        if output is None and isinstance(statement, ast.FunctionDef):
            output = self.functions[statement.name]
        if output is None:
            raise Unexpected(module, f"`{OUTPUT_NAME} = …` as the last line")
        if type_of(self.lines, output) is Type.SELECTOR:
            raise Unexpected(statement, "an s-op as the output", "a selector")
        if output < 0:
            raise Unexpected(statement, "a line of its own as the output, such as a map with `x`", "a primitive")
        return Program(tuple(self.lines[: output + 1]))

    def statement(self, node: ast.stmt) -> Variable | None:
        """Take in a statement; gives the output where it is the one that binds it."""
        match node:
            case ast.ImportFrom():
                if ast.unparse(node) != HEADER:
                    raise Unexpected(node, f"`{HEADER}`", quoted(node))
            case ast.Expr(value=ast.Constant(value=str())):
                pass  # a docstring
            case ast.FunctionDef():
                self.functions[node.name] = self.returned(node)
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.expr() as value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                self.variables[name] = variable = self.expression(value)
                return variable if name == OUTPUT_NAME else None
            case _:
                raise Unexpected(node, "`name = rasp.…`", quoted(node))
        return None

    def returned(self, function: ast.FunctionDef) -> Variable:
        """What a function without arguments returns; its own variables are seen in it alone."""
        if ast.unparse(function.args) or function.decorator_list:
            raise Unexpected(function, f"a function without arguments, as `def {function.name}():`", quoted(function))
        outside = dict(self.variables)
        *body, last = function.body
        if not isinstance(last, ast.Return) or last.value is None:
            raise Unexpected(last, "`return …` as the last line of a function", quoted(last))
        for statement in body:
            self.statement(statement)
        result = self.expression(last.value)
        self.variables = outside
        return result

    def expression(self, node: ast.expr) -> Variable:
        match node:
            case ast.Name(id=name):
                if name not in self.variables:
                    raise Unexpected(node, "a variable that is defined above", f"`{name}`")
                return self.variables[name]
            case ast.Attribute(value=ast.Name(id="rasp"), attr="tokens"):
                return TOKENS
            case ast.Attribute(value=ast.Name(id="rasp"), attr="indices"):
                return INDICES
            case ast.Call(func=ast.Name(id=name), args=[], keywords=[]) if name in self.functions:
                return self.functions[name]
        return self.add(node, self.call(node))

    def add(self, node: ast.expr, line: Line) -> Variable:
        if len(self.lines) >= MAX_LINES:
            raise Unexpected(node, f"at most {MAX_LINES:,} lines")
        self.lines.append(line)
        if misfit := find_misfit(self.lines, len(self.lines) - 1):
            raise Unexpected(node, *misfit)
        return len(self.lines) - 1

    def call(self, node: ast.expr, encoding: str | None = None) -> Line:
        """The line that a call builds; `encoding` is what is written around it, the outermost word counts."""
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="rasp"), attr=name)):
                pass
            case ast.Call(func=ast.Attribute(value=inner, attr="named")):
                bind(node, ("name",))
                return self.call(inner, encoding)
            case _:
                raise Unexpected(node, "a variable or a call of rasp.…", quoted(node))
        if name in ENCODINGS:
            return self.call(bind(node, ("sop",))["sop"], encoding or name)
        if name not in _CONSTRUCTORS:
            known = ", ".join([*ENCODINGS, *_CONSTRUCTORS])
            raise Unexpected(node, f"one of rasp.{{{known}}}", quoted(node.func))
        return self.constructor(node, _CONSTRUCTORS[name], encoding)

    def constructor(self, node: ast.Call, op: Op, encoding: str | None) -> Line:
        given = bind(node, _PARAMETERS[op], _OPTIONAL.get(op, ()))
        self.check_encoding(node, op, encoding, given)
        line_op = _NUMERICAL.get(op, op) if encoding == "numerical" else op
        sops = tuple(self.expression(given[name]) for name in _PARAMETERS[op] if name in _SOPS)
        match op:
            case Op.MAP:
                folds = ast.unparse(given.get("simplify", ast.Constant(True))) == "True"
                return Line(line_op, sops, self.function(given["f"], Kind.UNARY), folds)
            case Op.SEQUENCE_MAP:
                return Line(line_op, sops, self.function(given["f"], Kind.BINARY))
            case Op.LINEAR_SEQUENCE_MAP:
                return Line(line_op, sops, linear(_number(given["fst_fac"]), _number(given["snd_fac"])))
            case Op.SELECT:
                return Line(line_op, sops, self.predicate(given["predicate"]))
        return Line(line_op, sops)

    def check_encoding(self, node: ast.Call, op: Op, encoding: str | None, given: dict[str, ast.expr]) -> None:
        """What Tracr refuses (its compiler/validating.py), in its own words where it has some."""
        match op:
            case Op.SEQUENCE_MAP if encoding == "numerical":
                raise Unexpected(node, "a categorical sequence map, since Tracr has no numerical one", quoted(node))
            case Op.LINEAR_SEQUENCE_MAP if encoding != "numerical":
                raise Unexpected(node, "rasp.numerical(…) around it: Tracr has no categorical one", quoted(node))
            case Op.SELECT if encoding:
                raise Unexpected(node, f"an s-op inside rasp.{encoding}(…)", "a selector")
            case Op.AGGREGATE:
                default = given.get("default", ast.Constant(None))
                value = default.value if isinstance(default, ast.Constant) else constant(default)
                if encoding == "numerical" and (value is None or value != 0):
                    raise Unexpected(node, "default=0, the only one of a numerical aggregate in Tracr", quoted(default))
                if encoding != "numerical" and value is not None:
                    wanted = "no default but None, the only one of a categorical aggregate in Tracr"
                    raise Unexpected(default, wanted, f"{quoted(default)} (a numerical one is rasp.numerical(…))")
            case Op.MAP if ast.unparse(given.get("simplify", ast.Constant(True))) not in ("True", "False"):
                raise Unexpected(given["simplify"], "simplify=False or simplify=True", quoted(node))

    def predicate(self, node: ast.expr) -> Function:
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "rasp.Comparison":
            if node.attr not in COMPARISONS:
                raise Unexpected(node, f"one of rasp.Comparison.{{{', '.join(COMPARISONS)}}}", quoted(node))
            return FUNCTIONS[Kind.PREDICATE][COMPARISONS[node.attr]]
        return self.function(node, Kind.PREDICATE)

    def function(self, node: ast.expr, kind: Kind) -> Function:
        if not isinstance(node, ast.Lambda):
            raise Unexpected(node, f"`lambda {kind.value}: …`", quoted(node))
        got = quoted(node.body)
        body = Folded().visit(_in_own_names(node, kind))
        name = ast.unparse(body)
        function = FUNCTIONS[kind].get(name) or named_by_text(kind, name) or _table(body, kind)
        if function is None:
            first = next(iter(FUNCTIONS[kind]))
            raise Unexpected(body, f"a named function such as `{first}` or a table `{_TABLE_FORMS[kind]}`", got)
        return function


def bind(node: ast.Call, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, ast.expr]:
    """The arguments of a call by parameter, in the order of the parameters."""
    names = [*required, *optional]
    keywords = [keyword.arg for keyword in node.keywords]
    given = dict(zip(names, node.args, strict=False))
    given |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg is not None}
    is_whole = len(given) == len(node.args) + len(node.keywords)  # none too many, twice or without a name
    if not is_whole or not set(required) <= set(given) <= set(names):
        wanted = ", ".join([*required, *(f"{name}=…" for name in optional)])
        raise Unexpected(node, f"{_name(node)}({wanted})", quoted(node))
    if any(isinstance(argument, ast.Starred) for argument in node.args) or None in keywords:
        raise Unexpected(node, f"{_name(node)} with its arguments one by one", quoted(node))
    return given


def _name(node: ast.Call) -> str:
    return f"rasp.{node.func.attr}" if isinstance(node.func, ast.Attribute) else quoted(node.func)


def _in_own_names(node: ast.Lambda, kind: Kind) -> ast.expr:
    """The body of a lambda, its arguments renamed to those that functions of this kind are written with."""
    own = kind.value.split(", ")
    given = [argument.arg for argument in node.args.args]
    if len(given) != len(own) or len(set(given)) != len(given) or ast.unparse(node.args) != ", ".join(given):
        raise Unexpected(node, f"`lambda {kind.value}: …`", f"`lambda {ast.unparse(node.args)}: …`")
    if given != own:
        names = dict(zip(given, own, strict=True))
        for name in [part for part in ast.walk(node.body) if isinstance(part, ast.Name)]:
            if name.id in own and name.id not in names:
                raise Unexpected(name, f"an argument of `lambda {', '.join(given)}: …`", f"`{name.id}`")
            name.id = names.get(name.id, name.id)
    return node.body


def _table(body: ast.expr, kind: Kind) -> Function | None:
    """An explicit table, or None if `body` is none. Values are constants."""
    match body:
        case ast.Compare(left=left, ops=[ast.In()], comparators=[ast.List(elts=pairs)]) if kind is Kind.PREDICATE:
            keys = [constant(pair) for pair in pairs]
            is_table = ast.unparse(left) == "(k, q)" and all(map(_is_pair, keys))
            return tabulated(kind, dict.fromkeys(keys, True)) if is_table else None
        case ast.Call(
            func=ast.Attribute(value=ast.Dict(keys=names, values=parts), attr="get"), args=[key], keywords=[]
        ) if kind in (Kind.UNARY, Kind.BINARY):
            keys = [None if name is None else constant(name) for name in names]
            values = [constant(part) for part in parts]
            is_table = ast.unparse(key) == ("x" if kind is Kind.UNARY else "(x, y)") and None not in values
            is_table = is_table and (None not in keys if kind is Kind.UNARY else all(map(_is_pair, keys)))
            return tabulated(kind, dict(zip(keys, values, strict=True))) if is_table else None
    return None


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _number(node: ast.expr) -> float:
    value = constant(node)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unexpected(node, "a number", quoted(node))
    return value
