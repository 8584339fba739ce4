"""RASP programs ⇄ tokens, four a line: operation, first argument, second argument, function or predicate."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from trade_hf.rasp.functions import FUNCTIONS, LINEAR_FACTORS, Function, Kind, linear
from trade_hf.rasp.program import INDICES, OPS, TOKENS, Line, Op, Program, RaspError, Type, Variable, variable_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, START, END, NOTHING = "<pad>", "<s>", "</s>", "_"
LINE_SIZE = 4
MAX_LINES = 31
MAX_NEW_TOKENS = LINE_SIZE * MAX_LINES + 1  # of a program, with the end


def _function_tokens() -> dict[str, Function]:
    tokens: dict[str, Function] = {}
    for kind in (Kind.UNARY, Kind.BINARY, Kind.PREDICATE):
        for name, function in FUNCTIONS[kind].items():
            tokens[f"{kind.name[0].lower()}:{name.replace(' ', '')}"] = function
    for factors in LINEAR_FACTORS:
        tokens["l:{}x{:+}y".format(*factors)] = linear(*factors)
    return tokens


_VARIABLES: dict[str, Variable] = {variable_name(v): v for v in range(TOKENS, MAX_LINES)}
_FUNCTIONS = _function_tokens()
_FUNCTION_TOKEN = {function: token for token, function in _FUNCTIONS.items()}
VOCABULARY: tuple[str, ...] = (PAD, START, END, NOTHING, *OPS, *_VARIABLES, *_FUNCTIONS)
_ID = {token: number for number, token in enumerate(VOCABULARY)}
NOTHING_ID = _ID[NOTHING]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer: a word level over the language's own words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(dict(_ID), unk_token=PAD))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, bos_token=START, eos_token=END, clean_up_tokenization_spaces=False
    )


def to_tokens(program: Program) -> list[str]:
    """A program's words. Raises RaspError for functions that have no word (explicit tables, unusual factors)."""
    words: list[str] = []
    for number, line in enumerate(program.lines):
        *others, function = _words(line)
        if function is None:
            raise RaspError(f"line {number + 1}: no token for the function {line.function}")
        words += [*others, function]
    return words


def _words(line: Line) -> tuple[str, str, str, str | None]:
    """A line's words; None for a function that has none."""
    first, second = [*map(variable_name, line.args), NOTHING][:2]
    return line.op.text, first, second, NOTHING if line.function is None else _FUNCTION_TOKEN.get(line.function)


def to_ids(program: Program) -> list[int]:
    """A program's token ids, without the start, with the end."""
    return [_ID[word] for word in to_tokens(program)] + [_ID[END]]


def to_known_ids(program: Program) -> list[int | None]:
    """As `to_ids`, None for a function that has no word. Raises RaspError for more than MAX_LINES lines."""
    if len(program) > MAX_LINES:
        raise RaspError(f"expected at most {MAX_LINES} lines, got {len(program)}")
    words = [word for line in program.lines for word in _words(line)]
    return [*(None if word is None else _ID[word] for word in words), _ID[END]]


def from_ids(ids: list[int]) -> Program:
    """The program that ids spell, up to the end token. Raises RaspError if they spell none."""
    words = [VOCABULARY[i] for i in ids if 0 <= i < len(VOCABULARY)]
    words = words[: words.index(END)] if END in words else words
    return from_words([word for word in words if word not in (PAD, START)])


def from_words(words: list[str]) -> Program:
    """The program that words spell, as `to_tokens` gives them. Raises RaspError if they spell none."""
    if len(words) % LINE_SIZE:
        raise RaspError(f"expected {LINE_SIZE} tokens a line, got {len(words)} tokens")
    lines = []
    for op, first, second, function in zip(*[iter(words)] * LINE_SIZE, strict=True):
        if op not in OPS:
            raise RaspError(f"expected an operation, got {op!r}")
        args = [word for word in (first, second) if word != NOTHING]
        if not all(word in _VARIABLES for word in args) or function not in (*_FUNCTIONS, NOTHING):
            raise RaspError(f"expected variables and a function, got {first!r} {second!r} {function!r}")
        lines.append(Line(OPS[op], tuple(_VARIABLES[word] for word in args), _FUNCTIONS.get(function)))
    return Program(tuple(lines))


# ---------------------------------------------------------------- grammar


def allowed_next(ids: list[int]) -> list[int]:
    """Ids that may follow `ids` (without the start token), so that every output parses and type-checks, and does not
    end on a line that depends on no token, which Tracr cannot compile."""
    if ids and ids[-1] in (_ID[END], _ID[PAD]):
        return [_ID[PAD]]
    words = [VOCABULARY[i] for i in ids]
    ops = [OPS[word] for word in words[::LINE_SIZE]]
    component = len(words) % LINE_SIZE
    if component == 0:
        return _allowed_operations(ops, _reads_tokens(words))
    op, line = ops[-1], words[len(words) - component :]
    if component == LINE_SIZE - 1:
        return _functions_of(op.kind)
    if component > op.arity:
        return [_ID[NOTHING]]
    wanted = op.argument_types[component - 1]
    names = [variable_name(v) for v in _available(ops[:-1], wanted)]
    if op is Op.LINEAR_SEQUENCE_MAP:
        names = [name for name in names if name not in line]
    return [_ID[name] for name in names]


def _available(ops: list[Op], wanted: Type) -> list[Variable]:
    inputs = [TOKENS, INDICES] if wanted.accepts(Type.CATEGORICAL) else []
    return inputs + [v for v, op in enumerate(ops) if wanted.accepts(op.result)]


def _reads_tokens(words: list[str]) -> bool:
    """Whether the last line depends on tokens."""
    reading = {variable_name(TOKENS)}
    last = ""
    for number in range(len(words) // LINE_SIZE):
        last = variable_name(number)
        if reading.intersection(words[LINE_SIZE * number + 1 : LINE_SIZE * number + 3]):
            reading.add(last)
    return last in reading


def _allowed_operations(ops: list[Op], reads_tokens: bool) -> list[int]:
    ends = bool(ops) and ops[-1].result is not Type.SELECTOR and reads_tokens
    if len(ops) >= MAX_LINES:
        return [_ID[END]]
    needed = {Op.LINEAR_SEQUENCE_MAP: 2}
    last = len(ops) == MAX_LINES - 1
    allowed = [
        _ID[op.text]
        for op in Op
        if all(len(_available(ops, wanted)) >= needed.get(op, 1) for wanted in op.argument_types)
        and not (last and op is Op.SELECT)
    ]
    return [*allowed, _ID[END]] if ends else allowed


@functools.cache
def _functions_of(kind: Kind | None) -> list[int]:
    if kind is None:
        return [_ID[NOTHING]]
    return [_ID[token] for token, function in _FUNCTIONS.items() if function.kind is kind]
