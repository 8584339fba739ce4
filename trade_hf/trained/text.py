"""Program of a trained model ⇄ Python for the tracr package. Text is parsed, never executed."""

from __future__ import annotations

import ast

from trade_hf.rasp.program import INDICES, INPUT_NAMES, TOKENS, RaspError, Variable, variable_name
from trade_hf.rasp.syntax import RaspSyntaxError, Unexpected, quoted
from trade_hf.rasp.text import HEADER, MAX_LINES, OUTPUT_NAME, framed, read_with
from trade_hf.trained.expression import Expression, Function, Table, set_of
from trade_hf.trained.program import Line, Op, Program

_OPS = {op.text: op for op in Op}


def to_text(program: Program) -> str:
    """Python source that builds `program` with the tracr package."""
    return framed([_line_text(program, number) for number in range(len(program))], len(program) - 1)


def _line_text(program: Program, number: int) -> str:
    line = program.lines[number]
    args = [f"rasp.{variable_name(a)}" if a < 0 else variable_name(a) for a in line.args]
    function = f"lambda {', '.join(line.op.names)}: {line.function}" if line.function else ""
    match line.op:
        case Op.SELECT:
            args.append(function)
        case Op.MAP | Op.SEQUENCE_MAP:
            args.insert(0, function)
        case Op.AGGREGATE:
            args.append(f"default={line.default:g}")
    return f'rasp.{line.op.text}({", ".join(args)}).named("v{number + 1}")'


def parse(text: str) -> Program:
    """The program that `text` builds. Nothing is executed.

    Raises RaspSyntaxError (line, column, what was expected) for text outside the language, RaspError for lines that do
    not fit together.
    """
    return read_with(_parse_module, text)


def _parse_module(module: ast.Module) -> Program:
    lines: list[Line] = []
    names: dict[str, Variable] = {}
    for statement in module.body:
        if isinstance(statement, ast.ImportFrom) and ast.unparse(statement) == HEADER:
            continue
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Name(id=variable)) if name == OUTPUT_NAME:
                if statement is not module.body[-1]:
                    raise Unexpected(statement, f"nothing after `{OUTPUT_NAME} = …`")
                if names.get(variable) != len(lines) - 1:
                    raise Unexpected(statement, "the last line as the output", quoted(statement))
                return Program(tuple(lines))
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as call):
                if len(lines) >= MAX_LINES:
                    raise Unexpected(statement, f"at most {MAX_LINES:,} lines")
                lines.append(_parse_line(_without_name(call), names))
                names[name] = len(lines) - 1
            case _:
                raise Unexpected(statement, "`v1 = rasp.Select(…)` or the like", quoted(statement))
    raise RaspSyntaxError(1, 1, f"`{OUTPUT_NAME} = …` as the last line")


def _without_name(call: ast.Call) -> ast.Call:
    match call:
        case ast.Call(func=ast.Attribute(value=ast.Call() as inner, attr="named"), args=[ast.Constant()], keywords=[]):
            return inner
    return call


def _parse_line(call: ast.Call, names: dict[str, Variable]) -> Line:
    match call.func:
        case ast.Attribute(value=ast.Name(id="rasp"), attr=attr) if attr in _OPS:
            op = _OPS[attr]
        case _:
            raise Unexpected(call, f"one of rasp.{', rasp.'.join(_OPS)}", quoted(call.func))
    args, function, default = list(call.args), None, 0.0
    if len(args) != len(op.takes_selector) + bool(op.names):
        raise Unexpected(call, f"{len(op.takes_selector) + bool(op.names)} argument(s) of {op.text}", f"{len(args)}")
    if op.names:
        function = _parse_function(args.pop(-1 if op is Op.SELECT else 0), op.names)
    for keyword in call.keywords:
        value = keyword.value
        sign = 1
        if isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.USub):
            sign, value = -1, value.operand
        is_number = isinstance(value, ast.Constant) and isinstance(value.value, int | float)
        if keyword.arg != "default" or op is not Op.AGGREGATE or not is_number:
            raise Unexpected(call, "no keyword but an Aggregate's `default=` with a number", quoted(call))
        default = sign * value.value  # type: ignore[attr-defined]
    return Line(op, tuple(_parse_variable(arg, names) for arg in args), function, default)


def _parse_variable(node: ast.expr, names: dict[str, Variable]) -> Variable:
    match node:
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.Attribute(value=ast.Name(id="rasp"), attr=attr) if attr in INPUT_NAMES.values():
            return TOKENS if attr == INPUT_NAMES[TOKENS] else INDICES
    raise Unexpected(node, "rasp.tokens, rasp.indices or an earlier line", quoted(node))


def _parse_function(node: ast.expr, names: tuple[str, ...]) -> Function:
    if not isinstance(node, ast.Lambda) or tuple(a.arg for a in node.args.args) != names:
        raise Unexpected(node, f"`lambda {', '.join(names)}: …`", quoted(node))
    body = node.body
    try:
        match body:
            case ast.Call(func=ast.Attribute(value=ast.Dict() as table, attr="get"), args=[key, default], keywords=[]):
                wanted = names[0] if len(names) == 1 else f"({', '.join(names)})"
                if ast.unparse(key) != wanted:
                    raise RaspError(f"expected `.get({wanted}, …)`, got `{ast.unparse(body)[-40:]}`")
                entries = tuple(
                    (_literal(key), _table_value(value))
                    for key, value in zip(table.keys, table.values, strict=True)
                    if key
                )
                if any(isinstance(key, tuple) != (len(names) == 2) for key, _ in entries):
                    raise RaspError(f"expected a table of {', '.join(names)}")
                return Table(entries, _table_value(default), names)
        return Expression(ast.unparse(body), names)
    except (RaspError, ValueError, TypeError) as error:
        raise Unexpected(node, str(error).removeprefix("expected ")) from None


def _literal(node: ast.expr) -> float | tuple[float, float]:
    value = ast.literal_eval(node)
    parts = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(part, int | float) for part in parts) or len(parts) > 2:
        raise RaspError(f"expected numbers in a table, got `{ast.unparse(node)[:60]}`")
    return value


def _table_value(node: ast.expr) -> float | frozenset[int]:
    if isinstance(node, ast.Set | ast.Call):
        return set_of(node)
    value = _literal(node)
    if isinstance(value, tuple):
        raise RaspError(f"expected a number or a set in a table, got `{ast.unparse(node)[:60]}`")
    return value
