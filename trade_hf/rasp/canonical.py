"""Canonical form: one program for all programs whose compiled weights are equal up to order.

The weights do not tell names, dead lines, the order of operands, or the values of an intermediate categorical s-op:
only its directions and who reads them. So a program is first reduced to its *structure*, which keeps just what the
weights tell, and then written with the first named functions (in the table's order) that give this structure.

Structure: live s-ops level by level (longest path from the inputs), within a level by operation, arguments and table;
tables are over codes numbered by first appearance (`tables.py`), operands of a sequence map in order of their lines.
A select stands just before its first reader, and equal selects are one. Equal s-ops are *not* merged: Tracr compiles
each to units of its own.

Programs with equal weights may still differ in form in these cases, none of which the sampler makes: a selector that
never selects and a numerical map that is 0 everywhere hide which s-op they read; and of a sequence map of an s-op with
itself only the diagonal is compiled, so that two values that stand off it alone cannot be told apart.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import eq
from typing import Any, NamedTuple

import numpy as np

from trade_hf.rasp.functions import FUNCTIONS, Function, Kind, Value, agrees, compares, find_comparison, tabulated
from trade_hf.rasp.program import (
    INDICES,
    OP_RANK,
    TOKENS,
    Line,
    Op,
    Program,
    Type,
    Variable,
)
from trade_hf.rasp.tables import Domain, Table, Tables, UnsupportedError, image, lazy_image, sort_values, tabulate

# Names are searched within this many trials; beyond, the line that failed furthest down becomes an explicit table.
MAX_TRIALS = 20_000
MAX_TIES = 120  # orders of equal s-ops that are compared before the first one is taken

_OPS = list(Op)
_NO_COMPARISONS = {
    kind: {name: function for name, function in functions.items() if not compares(name)}
    for kind, functions in FUNCTIONS.items()
}

Key = tuple  # (operation, arguments, selector's table, table): what distinguishes an s-op from all others


class Node(NamedTuple):
    """One line of a structure: operation, arguments (lines of the structure), table over codes or numbers.

    Of a sequence map of an s-op with itself, `entries` holds the diagonal and the number of values.
    """

    op: Op
    args: tuple[Variable, ...]
    entries: tuple = ()
    factors: Function | None = None


@dataclass(frozen=True)
class Structure:
    """What the compiled weights tell of a program, with vocabulary and output values.

    Attributes:
      nodes: the lines in canonical order.
      numbers: values of each numerical s-op (it decides the steps of a map that reads it), by line.
      output_values: the output's values by code; None for a numerical output.
    """

    nodes: tuple[Node, ...]
    numbers: tuple[tuple, ...]
    vocab: tuple[Value, ...]
    max_seq_len: int
    output_values: tuple[Value, ...] | None


def canonicalise(program: Program, vocab: Iterable[Value], max_seq_len: int) -> Program:
    """The canonical form. Over a vocabulary that is not of numbers, functions speak of the k-th token, from 0.

    Raises UnsupportedError for programs that Tracr cannot compile.
    """
    return name_functions(structure_of(tabulate(program, vocab, max_seq_len)))


def canonicalise_spoken(program: Program, vocab: Iterable[Value], max_seq_len: int) -> Program:
    """The canonical form of a program whose functions already speak of the k-th token, where tokens are no numbers."""
    return name_functions(spoken_structure(program, tuple(sort_values(vocab)), max_seq_len))


def spoken_structure(program: Program, vocab: tuple[Value, ...], max_seq_len: int) -> Structure:
    """The structure of such a program, over the sorted tokens `vocab` themselves."""
    if is_numeric(vocab):
        return structure_of(tabulate(program, vocab, max_seq_len))
    structure = structure_of(tabulate(program, range(len(vocab)), max_seq_len))
    return replace(structure, vocab=vocab, output_values=spoken_output(structure, vocab))


def canonical_hash(program: Program, vocab: Iterable[Value], max_seq_len: int) -> str:
    """SHA-256 (hexadecimal) of the canonical form, vocabulary and length."""
    structure = structure_of(tabulate(program, vocab, max_seq_len))
    return hash_canonical(name_functions(structure), structure.vocab, max_seq_len)


def hash_canonical(canonical: Program, vocab: tuple, max_seq_len: int) -> str:
    """The hash of a program that is in canonical form already."""
    from trade_hf.rasp.text import to_text

    return hashlib.sha256(repr((to_text(canonical), vocab, max_seq_len)).encode()).hexdigest()


# ---------------------------------------------------------------- program → structure


def structure_of(tables: Tables) -> Structure:
    """Reduce a program to what its compiled weights tell."""
    program = tables.program
    levels: dict[int, list[int]] = {}
    for number in program.live_lines:
        if program.type_of(number) is not Type.SELECTOR:
            levels.setdefault(program.depths[number], []).append(number)
    start = _Order(tables)
    ordered = min(itertools.islice(start.complete([levels[d] for d in sorted(levels)]), MAX_TIES), key=_Order.key)
    return ordered.structure()


@dataclass
class _Order:
    """S-ops placed so far: their rank, their key, and how tabulated codes map to canonical ones."""

    tables: Tables
    rank: dict[Variable, int] = field(default_factory=lambda: {TOKENS: TOKENS, INDICES: INDICES})
    keys: dict[int, Key] = field(default_factory=dict)
    recode: dict[Variable, dict[int, int] | None] = field(default_factory=dict)

    def complete(self, levels: list[list[int]]) -> Iterator[_Order]:
        """All complete orders: one, unless s-ops are equal and their readers could tell them apart."""
        for depth, level in enumerate(levels):
            found = {number: self.key_of(number) for number in level}
            keys = {number: key for number, (key, _) in found.items()}
            ordered = sorted(level, key=keys.__getitem__)
            groups = [list(group) for _, group in itertools.groupby(ordered, keys.__getitem__)]
            if len(groups) < len(level):
                for choice in itertools.product(*(itertools.permutations(group) for group in groups)):
                    order = _Order(self.tables, dict(self.rank), dict(self.keys), dict(self.recode))
                    order.place(itertools.chain.from_iterable(choice), found)
                    yield from order.complete(levels[depth + 1 :])
                return
            self.place(ordered, found)
        yield self

    def place(self, level: Iterable[int], found: dict[int, tuple[Key, dict[int, int] | None]]) -> None:
        for number in level:
            self.rank[number] = len(self.keys)
            self.keys[number], self.recode[number] = found[number]

    def key(self) -> tuple:
        return tuple(self.keys.values())

    def in_order(self, variable: Variable) -> Sequence[int]:
        """The tabulated codes of an s-op, in canonical order."""
        recode = self.recode.get(variable)
        size = len(self.tables[variable].domain)
        return range(size) if recode is None else sorted(range(size), key=recode.__getitem__)

    def is_in_order(self, *variables: Variable) -> bool:
        """Whether tabulated codes are canonical ones: then a table over them is canonical as it is."""
        return not any(map(self.recode.get, variables))  # a renumbering is never empty

    def key_of(self, number: int) -> tuple[Key, dict[int, int] | None]:
        """What distinguishes an s-op, and how its codes are renumbered (None: as they are)."""
        op = self.tables.program.lines[number].op
        match op:
            case Op.MAP | Op.MAP_NUMERICAL:
                args, selector, entries, recode = self.map_key(number)
            case Op.SEQUENCE_MAP:
                args, selector, entries, recode = self.sequence_map_key(number)
            case Op.LINEAR_SEQUENCE_MAP:
                args, selector, entries, recode = self.linear_key(number)
            case _:
                args, selector, entries, recode = self.head_key(number)
        return (OP_RANK[op], args, selector, entries), recode

    def map_key(self, number: int) -> tuple[tuple, tuple, tuple, dict[int, int] | None]:
        line, entries = self.tables.program.lines[number], self.tables[number].entries
        [argument] = line.args
        in_order = self.is_in_order(argument)
        if not in_order:
            entries = tuple([entries[code] for code in self.in_order(argument)])
        if line.op is Op.MAP_NUMERICAL:
            return (self.rank[argument],), (), tuple(map(_number, entries)), None
        codes, recode = (entries, None) if in_order else _recode(entries)
        return (self.rank[argument],), (), codes, recode

    def sequence_map_key(self, number: int) -> tuple[tuple, tuple, tuple, dict[int, int] | None]:
        """Operands in order of their lines; of an s-op with itself, the diagonal and the number of values."""
        (one, two), entries = self.tables.program.lines[number].args, self.tables[number].entries
        if self.rank[one] < self.rank[two] and self.is_in_order(one, two):
            return (self.rank[one], self.rank[two]), (), entries, None
        width, first, second = len(self.tables[two].values), self.in_order(one), self.in_order(two)
        if one == two:
            cells = [entries[i * width + j] for i in first for j in first]
            codes, recode = _recode([*cells[:: width + 1], *cells])
            return (self.rank[one],) * 2, (), (*codes[:width], len(recode)), recode
        if self.rank[one] < self.rank[two]:
            codes, recode = _recode([entries[i * width + j] for i in first for j in second])
        else:
            codes, recode = _recode([entries[i * width + j] for j in second for i in first])
        return tuple(sorted((self.rank[one], self.rank[two]))), (), codes, recode

    def linear_key(self, number: int) -> tuple[tuple, tuple, tuple, None]:
        line = self.tables.program.lines[number]
        assert line.function is not None and line.function.factors is not None
        pairs = sorted(zip((self.rank[a] for a in line.args), line.function.factors, strict=True))
        return tuple(rank for rank, _ in pairs), (), tuple(factor for _, factor in pairs), None

    def head_key(self, number: int) -> tuple[tuple, tuple, tuple, dict[int, int] | None]:
        """Aggregates and selector widths: keys, queries and the selector's table stand for the select."""
        line = self.tables.program.lines[number]
        select, *carried = line.args
        sources = self.tables.program.lines[select].args
        selector = self.tables[select].entries
        if not self.is_in_order(*sources):
            keys, queries = (self.in_order(argument) for argument in sources)
            selector = tuple([selector[k * len(queries) + q] for k in keys for q in queries])
        ranks = tuple([self.rank[argument] for argument in (*sources, *carried)])
        return ranks, selector, (), self.recode.get(carried[0]) if line.op is Op.AGGREGATE else None

    def structure(self) -> Structure:
        tables = self.tables
        nodes: list[Node] = []
        numbers: list[tuple] = []
        place: dict[int, int] = {TOKENS: TOKENS, INDICES: INDICES}  # rank → line
        selects: dict[tuple, int] = {}
        for number, (op_rank, ranks, selector, entries) in self.keys.items():
            op = _OPS[op_rank]
            args = tuple([place[rank] for rank in ranks])
            if op.argument_types[0] is Type.SELECTOR:
                key = (args[:2], selector)
                if key not in selects:
                    selects[key] = len(nodes)
                    nodes.append(Node(Op.SELECT, args[:2], selector))
                    numbers.append(())
                args = (selects[key], *args[2:])
            factors = None
            if op is Op.LINEAR_SEQUENCE_MAP:
                factors, entries = Function(Kind.LINEAR, factors=entries), ()
            place[self.rank[number]] = len(nodes)
            nodes.append(Node(op, args, entries, factors))
            numbers.append(tables[number].values if op.result is Type.NUMERICAL else ())
        output = tables.program.output
        values = None
        if tables.program.type_of(output) is Type.CATEGORICAL:
            values = tuple(tables[output].values[code] for code in self.in_order(output))
        return Structure(tuple(nodes), tuple(numbers), tables.vocab, tables.max_seq_len, values)


def _recode(cells: Iterable[int]) -> tuple[tuple[int, ...], dict[int, int]]:
    """Codes renumbered by first appearance, and the map from old to new (-1 stays)."""
    recode: dict[int, int] = {}
    return tuple([-1 if cell < 0 else recode.setdefault(cell, len(recode)) for cell in cells]), recode


def _number(value: Value | None) -> float:
    """A number as the weights hold it; None, which no numerical map has, as minus infinity."""
    return float("-inf") if value is None else float(np.float32(value))  # type: ignore[arg-type]


# ---------------------------------------------------------------- structure → named functions


def name_functions(structure: Structure, trials: int = MAX_TRIALS) -> Program:
    """Write a structure as a program: the first named functions, in order of lines, that give it.

    Where no names do (or none were found within `trials`), the line that the search could not pass becomes an explicit
    table over fresh values 0, 1, ….
    """
    tables: frozenset[int] = frozenset()
    while True:
        search = _NameSearch(structure, tables, trials)
        if search.run():
            return search.program()
        tables |= {search.furthest if search.furthest >= 0 else _last_without_table(structure, tables)}


def name_unmerged(structure: Structure, trials: int = MAX_TRIALS) -> Program | None:
    """As `name_functions`, of a compressed model, where values that no reader tells apart may be one: a line that no
    name passes is looked for among functions with more values. None where that leads to no program without tables."""
    finer: frozenset[int] = frozenset()
    while True:
        search = _UnmergedSearch(structure, finer, trials)
        if search.run():
            return search.program()
        if search.furthest in finer or not search.may_be_merged(search.furthest):
            return None
        finer |= {search.furthest}


def _beside_diagonal(entries: tuple[int, ...]) -> tuple[int, ...]:
    """A full table of a sequence map of an s-op with itself: the values off the diagonal are never computed, but tracr
    gives each a direction."""
    *diagonal, count = entries
    size, unseen = len(diagonal), iter(range(max(diagonal) + 1, count))
    return tuple(diagonal[i] if i == j else next(unseen, 0) for i in range(size) for j in range(size))


def is_numeric(vocab: tuple[Value, ...]) -> bool:
    """Whether functions can speak of the tokens' values (else they speak of the k-th token)."""
    return all(isinstance(token, int | float) for token in vocab)


def spoken_values(vocab: tuple[Value, ...], values: tuple[Value, ...] | None) -> tuple[Value, ...] | None:
    """Output values as a canonical program speaks of them: by rank if they are tokens without a number."""
    if values is None or is_numeric(vocab) or not set(values) <= set(vocab):
        return values
    return tuple(vocab.index(value) for value in values)


def spoken_output(structure: Structure, vocab: tuple[Value, ...]) -> tuple[Value, ...] | None:
    """The output values of a structure over token ranks, where the tokens are to be those of `vocab`."""
    if structure.output_values is None or _origin(structure.nodes) != TOKENS:
        return structure.output_values
    return tuple(vocab[rank] for rank in structure.output_values)  # type: ignore[index]


def _last_without_table(structure: Structure, tables: frozenset[int]) -> int:
    nodes = enumerate(structure.nodes)
    return max(number for number, node in nodes if node.op.kind is not None and number not in tables)


def _origin(lines: Sequence[Node] | Sequence[Line]) -> Variable:
    """The line whose values the output shows: the output itself, or what its aggregates carry."""
    variable = len(lines) - 1
    while variable >= 0 and lines[variable].op is Op.AGGREGATE:
        variable = lines[variable].args[1]
    return variable


def _functions_that_give(op: Op, entries: tuple, on_itself: bool, *args: Domain) -> list[tuple[Function, Domain]]:
    """The named functions of `op` that give a node's `entries` over the arguments' values, each with its values.

    Of several with the same values only the first: what can be read of them is the same, so none is ever needed after
    it.
    """
    key = ("give", op, entries, on_itself, args[-1])
    found: list[tuple[Function, Domain]] | None = args[0].tables.get(key)
    if found is None:
        assert op.kind is not None
        found = []
        cells, wanted = list(itertools.product(*[domain.values for domain in args])), entries
        if on_itself:  # the diagonal's entries, then any
            cells = [*cells[:: len(args[0]) + 1], *cells]
            wanted = (*entries[:-1], *[None] * len(cells))
        values = entries[-1] if on_itself else max(entries) + 1
        more_than_two = op in (Op.MAP, Op.SEQUENCE_MAP) and values > 2
        for function in (_NO_COMPARISONS if more_than_two else FUNCTIONS)[op.kind].values():
            try:
                domain = _values_where(function.compute, op, wanted, cells)
            except (TypeError, ValueError):  # say, "a" < 1, or "a" where a number is meant: this name does not fit
                continue
            if domain is None or (on_itself and len(domain) != entries[-1]):
                continue
            if all(domain is not other for _, other in found):
                found.append((function, domain))
            if op is Op.SELECT or op is Op.MAP_NUMERICAL:
                break
            if not on_itself:  # its table need not be written out again
                args[0].tables.setdefault((op, function.name, args[-1]), Table(domain, entries))
        args[0].tables[key] = found  # whole, or not at all
    return found


def _values_where(compute: Callable[..., Any], op: Op, entries: Sequence, cells: Sequence[tuple]) -> Domain | None:
    """The values of a function by code, None if it does not give `entries`: which mostly shows at the first cells."""
    if op is Op.SELECT or op is Op.MAP_NUMERICAL:
        entry_of = bool if op is Op.SELECT else _number
        return Domain.of(()) if all(map(eq, map(entry_of, lazy_image(compute, cells)), entries)) else None
    codes: dict[Value, int] = {}
    for cell, entry in zip(cells, entries, strict=False):
        try:
            value = compute(*cell)
        except ArithmeticError:
            value = None
        code = -1 if value is None else codes.setdefault(value, len(codes))
        if code != entry and entry is not None:
            return None
    # no -0.0, as in `lazy_image`
    return Domain.of(tuple([0.0 if value == 0 and isinstance(value, float) else value for value in codes]))


class _NameSearch:
    """Depth-first search in order of lines, jumping back to the lines that a failure depends on."""

    def __init__(self, structure: Structure, tables: frozenset[int], trials: int) -> None:
        self.structure = structure
        self.trials_left = trials
        self.tables = tables
        self.functions: list[Function | None] = []
        tokens = structure.vocab if is_numeric(structure.vocab) else tuple(range(len(structure.vocab)))
        self.domains = {TOKENS: Domain.of(tokens), INDICES: Domain.of(tuple(range(structure.max_seq_len)))}
        self.required = spoken_values(structure.vocab, structure.output_values)
        self.named_by_output = _origin(structure.nodes)
        self.furthest = -1

    def run(self) -> bool:
        return self.assign(0) is None

    def program(self) -> Program:
        """What was found."""
        named = zip(self.structure.nodes, self.functions, strict=True)
        return Program(tuple([Line(node.op, node.args, function) for node, function in named]))

    def assign(self, number: int) -> int | None:
        """Fill lines from `number` on. None if that worked, else the earlier lines that are to blame, a bit each."""
        if number == len(self.structure.nodes):
            return None
        node, this = self.structure.nodes[number], 1 << number
        blame = 0
        for argument in node.args:
            if argument >= 0:
                blame |= 1 << argument
        for function, domain in self.candidates(number, node):
            self.trials_left -= 1
            if self.trials_left < 0:
                return 0
            self.domains[number] = domain
            self.functions[number:] = [function]
            deeper = self.assign(number + 1)
            if deeper is None:
                return None
            if not deeper & this:
                return deeper
            blame |= deeper ^ this
        if node.op.kind is not None and number not in self.tables:
            self.furthest = max(self.furthest, number)
        return blame

    def candidates(self, number: int, node: Node) -> Iterable[tuple[Function | None, Domain]]:
        """Functions that give the node's table, each with the values that its codes then have."""
        op, args = node.op, node.args
        if op is Op.AGGREGATE:
            return [(None, self.domains[args[1]])]
        if op is Op.SELECTOR_WIDTH:
            return [(None, Domain.of(tuple(range(self.structure.max_seq_len + 1))))]
        if op.kind is None or op is Op.LINEAR_SEQUENCE_MAP:
            return [(node.factors, self.numbers(number))]
        required = self.required if number == self.named_by_output else None
        if number in self.tables:
            return [self.explicit(node, required, number)]
        on_itself = op is Op.SEQUENCE_MAP and args[0] == args[1]
        found = _functions_that_give(op, node.entries, on_itself, *[self.domains[argument] for argument in args])
        if op is Op.MAP_NUMERICAL:
            numbers = self.numbers(number)
            found = [(function, numbers) for function, _ in found]
        return found if required is None else [pair for pair in found if pair[1].values == required]

    def numbers(self, number: int) -> Domain:
        return Domain.of(self.structure.numbers[number])

    def explicit(self, node: Node, required: tuple | None, number: int) -> tuple[Function, Domain]:
        kind = node.op.kind
        assert kind is not None
        args = [self.domains[argument].values for argument in node.args]
        arguments = list(args[0]) if len(args) == 1 else list(itertools.product(*args))
        if node.op is Op.SELECT:
            chosen = {a: True for a, entry in zip(arguments, node.entries, strict=True) if entry}
            return tabulated(kind, chosen), Domain.of(())
        if node.op is Op.MAP_NUMERICAL:
            exact = {_number(value): value for value in self.structure.numbers[number]}
            defined = {a: exact[entry] for a, entry in zip(arguments, node.entries, strict=True) if entry in exact}
            return tabulated(kind, defined), self.numbers(number)
        entries = node.entries
        if node.op is Op.SEQUENCE_MAP and node.args[0] == node.args[1]:
            entries = _beside_diagonal(node.entries)
        values = required if required is not None else tuple(range(max(entries) + 1))
        cells = zip(arguments, entries, strict=True)
        return tabulated(kind, {a: values[entry] for a, entry in cells if entry >= 0}), Domain.of(values)


class _UnmergedSearch(_NameSearch):
    """One in which the functions of the lines `finer` may have more values than their tables have codes."""

    def __init__(self, structure: Structure, finer: frozenset[int], trials: int) -> None:
        super().__init__(structure, frozenset(), trials)
        self.finer = finer
        self.codes: dict[Variable, Sequence[int]] = {}  # the code of each value, where several have one

    def may_be_merged(self, number: int) -> bool:
        """Whether a line's values may be those of several: they are not shown as outputs."""
        op = self.structure.nodes[number].op if number >= 0 else None
        return op in (Op.MAP, Op.SEQUENCE_MAP) and number != self.named_by_output

    def candidates(self, number: int, node: Node) -> Iterable[tuple[Function | None, Domain]]:
        node = self.unmerged(node)
        self.codes.pop(number, None)
        if number in self.finer:
            return self.finer_functions(number, node)
        if node.op is Op.AGGREGATE and node.args[1] in self.codes:
            self.codes[number] = self.codes[node.args[1]]
        return super().candidates(number, node)

    def unmerged(self, node: Node) -> Node:
        """A node whose table is over the values of its arguments in place of their codes."""
        if not node.entries or not self.codes.keys() & set(node.args):
            return node
        first, *others = [self.codes.get(argument, range(len(self.domains[argument]))) for argument in node.args]
        if node.op is Op.SEQUENCE_MAP and node.args[0] == node.args[1]:  # the diagonal, and the number of values
            entries = (*(node.entries[code] for code in first), node.entries[-1])
        elif others:
            width = max(others[0]) + 1
            entries = tuple(node.entries[one * width + other] for one in first for other in others[0])
        else:
            entries = tuple(node.entries[code] for code in first)
        return node._replace(entries=entries)

    def finer_functions(self, number: int, node: Node) -> Iterator[tuple[Function, Domain]]:
        """Those that give a node's table once some of their values are taken as one, each with all its values."""
        assert node.op.kind is not None
        cells = list(itertools.product(*[self.domains[argument].values for argument in node.args]))
        if len(cells) != len(node.entries):
            return
        for function in _NO_COMPARISONS[node.op.kind].values():
            code_of: dict[Value | None, int] = {None: -1}
            try:
                values = image(function.compute, cells)
            except (TypeError, ValueError):  # as in `_functions_that_give`
                continue
            if all(code_of.setdefault(value, code) == code for value, code in zip(values, node.entries, strict=True)):
                del code_of[None]
                if -1 not in code_of.values():
                    self.codes[number] = tuple(code_of.values())
                    yield function, Domain.of(tuple(code_of))  # type: ignore[arg-type]


# ---------------------------------------------------------------- k-th token → the token itself


def spell(program: Program, vocab: tuple[Value, ...], max_seq_len: int, output_values: tuple | None) -> Program:
    """A canonical program, which may speak of k-th tokens, as a program over the tokens themselves.

    Numerical vocabularies leave it as it is. Else functions that read or write tokens become explicit tables; one that
    writes the number of no token raises UnsupportedError.
    """
    if is_numeric(vocab):
        return program
    tables = tabulate(program, range(len(vocab)), max_seq_len)
    holds_tokens = {TOKENS}
    if spoken_values(vocab, output_values) != output_values:
        holds_tokens.add(_origin(program.lines))
    lines = []
    for number, line in enumerate(program.lines):
        if line.op is Op.AGGREGATE and line.args[1] in holds_tokens:
            holds_tokens.add(number)
        if line.function is not None and line.op is not Op.LINEAR_SEQUENCE_MAP and number in tables.by_variable:
            if any(variable in holds_tokens for variable in (*line.args, number)):
                line = Line(line.op, line.args, _spelled(tables, number, vocab, holds_tokens))
        lines.append(line)
    return Program(tuple(lines))


def _spelled(tables: Tables, number: int, vocab: tuple[Value, ...], holds_tokens: set[Variable]) -> Function:
    """The line's function with tokens in place of their ranks: itself where its name means the same of tokens, as that
    of equality does; else a comparison with one token, or a table."""

    def shown(variable: Variable, value: Value) -> Value:
        if variable not in holds_tokens:
            return value
        if value not in range(len(vocab)):
            raise UnsupportedError(f"line {number + 1}: {value!r} is the number of no token")
        return vocab[int(value)]  # type: ignore[arg-type]

    line = tables.program.lines[number]
    assert line.function is not None and line.op.kind is not None
    pairs: dict[Any, Value] = {}
    for args in itertools.product(*(tables[argument].values for argument in line.args)):
        value = line.function(*args)
        key = tuple(shown(argument, arg) for argument, arg in zip(line.args, args, strict=True))
        if value is not None:
            pairs[key if len(key) > 1 else key[0]] = value if line.op is Op.SELECT else shown(number, value)
    if line.function.name is not None and agrees(line.function, pairs):
        return line.function
    if (comparison := find_comparison(line.op.kind, pairs)) is not None:
        return comparison
    if line.op is Op.SELECT:
        pairs = {key: True for key, is_selected in pairs.items() if is_selected}
    return tabulated(line.op.kind, pairs)
