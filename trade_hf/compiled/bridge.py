"""To and from the tracr package's objects: a program as `rasp.SOp`, a model as `AssembledTransformerModel`.

Needs the tracr package (and with it JAX), which is imported only here and only when a function is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trade_hf.compiled.weights import TracrWeights
from trade_hf.rasp.functions import FUNCTIONS, Function, Kind, Value, find_named, linear
from trade_hf.rasp.program import INDICES, TOKENS, Line, Op, Program, Type, Variable
from trade_hf.rasp.tables import Table, UnsupportedError, image, sort_values, tabulate
from trade_hf.rasp.text import COMPARISONS

if TYPE_CHECKING:
    from trade_hf.compiled.forward import Output


@dataclass(frozen=True)
class Imported:
    """A tracr program in our terms, with the labels that tracr gave its s-ops."""

    program: Program
    labels: tuple[str, ...]


def from_tracr_model(model: Any) -> TracrWeights:
    """The weights of a tracr `AssembledTransformerModel`; raises TypeError for anything else.

    The unembedding is no parameter in tracr: it is read from the model's closure.
    """
    try:
        spaces = inspect.getclosurevars(model.get_compiled_model).nonlocals
        output, residual, encoder = spaces["output_space"].basis, spaces["residual_space"].basis, model.input_encoder
        params, config = model.params, model.model_config
    except (AttributeError, KeyError, TypeError):
        raise TypeError(f"expected a tracr AssembledTransformerModel, got {type(model).__name__}") from None
    unembedding = np.zeros((len(residual), len(output)), np.float32)
    for column, direction in enumerate(output):
        unembedding[residual.index(direction), column] = 1.0
    vocab = sorted(encoder.encoding_map, key=encoder.encoding_map.__getitem__)
    return TracrWeights(
        tensors={
            f"{module}/{name}": np.asarray(array) for module, arrays in params.items() for name, array in arrays.items()
        },
        num_heads=config.num_heads,
        vocab=tuple(vocab),
        max_seq_len=params["pos_embed"]["embeddings"].shape[0] - 1,
        output_values=tuple(d.value for d in output) if spaces["categorical_output"] else None,
        unembedding=unembedding,
        residual_labels=tuple(model.residual_labels),
        bos=encoder.bos_token,
        pad=encoder.pad_token,
        causal=config.causal,
    )


def to_tracr(program: Program) -> Any:
    """The program as a tracr `rasp.SOp`, built object by object; s-ops are named v1, v2, …"""
    from tracr.rasp import rasp

    comparison_of = {name: getattr(rasp.Comparison, key) for key, name in COMPARISONS.items()}
    built: dict[Variable, Any] = {TOKENS: rasp.tokens, INDICES: rasp.indices}
    for number, line in enumerate(program.lines):
        args = [built[argument] for argument in line.args]
        match line.op:
            case Op.MAP | Op.MAP_NUMERICAL:
                sop = rasp.Map(line.function, *args, simplify=False)
            case Op.SEQUENCE_MAP:
                sop = rasp.SequenceMap(line.function, *args)
            case Op.LINEAR_SEQUENCE_MAP:
                assert line.function is not None and line.function.factors is not None
                sop = rasp.LinearSequenceMap(*args, *line.function.factors)
            case Op.SELECT:
                assert line.function is not None
                sop = rasp.Select(*args, comparison_of.get(line.function.name or "", line.function))
            case Op.AGGREGATE:
                sop = rasp.Aggregate(*args)
            case Op.AGGREGATE_NUMERICAL:
                sop = rasp.Aggregate(*args, default=0)
            case _:
                sop = rasp.SelectorWidth(*args)
        if line.op.result is Type.NUMERICAL:
            sop = rasp.numerical(sop)
        built[number] = sop.named(f"v{number + 1}")
    return built[program.output]


def from_tracr(sop: Any, vocab: Iterable[Value], max_seq_len: int) -> Imported:
    """Import any tracr `rasp.SOp`: lambdas become named functions or tables over their value sets.

    Raises UnsupportedError for what tracr does not compile, TypeError for what is no s-op.
    """
    from tracr.compiler import validating
    from tracr.rasp import rasp

    if not isinstance(sop, rasp.SOp):
        raise TypeError(f"expected a tracr s-op, got {type(sop).__name__}")
    problems = validating.static_validate(sop)
    if problems:
        raise UnsupportedError(f"{problems[0].expr.name}: {problems[0].reason}")
    importer = _Importer(frozenset(vocab), max_seq_len)
    importer.variable(sop)
    program = Program(tuple(importer.lines))
    tabulate(program, importer.vocab, max_seq_len)  # raises what tracr finds only while it compiles
    return Imported(program, tuple(importer.labels))


class _Importer:
    """Depth-first over a tracr expression; shared sub-expressions are visited once."""

    def __init__(self, vocab: frozenset[Value], max_seq_len: int) -> None:
        self.vocab, self.max_seq_len = vocab, max_seq_len
        self.lines: list[Line] = []
        self.labels: list[str] = []
        self.seen: dict[str, Variable] = {"tokens": TOKENS, "indices": INDICES}

    def variable(self, expr: Any) -> Variable:
        if expr.label not in self.seen:
            line = self.line(expr)
            self.seen[expr.label] = len(self.lines)
            self.lines.append(line)
            self.labels.append(expr.label)
        return self.seen[expr.label]

    def values(self, variable: Variable) -> tuple[Value, ...]:
        if variable == INDICES:
            return tuple(range(self.max_seq_len))
        if variable == TOKENS:
            return tuple(sort_values(self.vocab))
        return self.table(variable).values

    def table(self, variable: Variable) -> Table:
        return tabulate(Program(tuple(self.lines[: variable + 1])), self.vocab, self.max_seq_len)[variable]

    def line(self, expr: Any) -> Line:
        from tracr.rasp import rasp

        numerical = not isinstance(expr, rasp.Selector) and rasp.is_numerical(expr)
        match expr:
            case rasp.LinearSequenceMap():
                args = (self.variable(expr.fst), self.variable(expr.snd))
                return Line(Op.LINEAR_SEQUENCE_MAP, args, linear(expr.fst_fac, expr.snd_fac))
            case rasp.SequenceMap():
                args = (self.variable(expr.fst), self.variable(expr.snd))
                return Line(Op.SEQUENCE_MAP, args, self.pairs(Kind.BINARY, expr.f, *args))
            case rasp.Map():
                argument = self.variable(expr.inner)
                op = Op.MAP_NUMERICAL if numerical else Op.MAP
                values = self.values(argument)
                outputs = image(expr.f, ((value,) for value in values))
                table = {x: y for x, y in zip(values, outputs, strict=True) if y is not None}
                return Line(op, (argument,), find_named(Kind.UNARY, table))
            case rasp.Select():
                args = (self.variable(expr.keys), self.variable(expr.queries))
                if isinstance(expr.predicate, rasp.Comparison):
                    return Line(Op.SELECT, args, FUNCTIONS[Kind.PREDICATE][COMPARISONS[expr.predicate.name]])
                return Line(Op.SELECT, args, self.pairs(Kind.PREDICATE, expr.predicate, *args))
            case rasp.Aggregate():
                args = (self.variable(expr.selector), self.variable(expr.sop))
                return Line(Op.AGGREGATE_NUMERICAL if numerical else Op.AGGREGATE, args)
            case rasp.SelectorWidth():
                op = Op.SELECTOR_WIDTH_NUMERICAL if numerical else Op.SELECTOR_WIDTH
                return Line(op, (self.variable(expr.selector),))
        raise UnsupportedError(f"{expr.name}: Tracr does not compile {type(expr).__name__}")

    def pairs(self, kind: Kind, function: Any, first: Variable, second: Variable) -> Function:
        arguments = [(x, y) for x in self.values(first) for y in self.values(second)]
        outputs = image(function, arguments)
        if kind is Kind.PREDICATE:
            outputs = tuple(map(bool, outputs))
        return find_named(kind, {a: y for a, y in zip(arguments, outputs, strict=True) if y is not None})


def same_as_tracr(ours: Output, row: int, theirs: Any, unembedding: np.ndarray) -> bool:
    """Whether a row of our forward pass is what tracr's `apply` gave for the same input.

    Logits must agree within rounding at every position, and decoded values wherever a direction is on. Where none is
    (None in RASP), tracr decodes the largest of numbers like 2e-6 and 5e-7, whose order is rounding's.

    Args:
      ours: the output of `forward.run`, of weights in tracr's own basis.
      theirs: tracr's AssembledTransformerModelOutput.
      unembedding: [d_model, output].
    """
    logits = np.asarray(theirs.transformer_output)[0, 1:] @ unembedding
    if not np.allclose(ours.logits[row][: len(logits)], logits, rtol=1e-5, atol=1e-4):
        return False
    if ours.values is None:
        return True
    mine, tracrs, off = ours.decode(row), theirs.decoded[1:], ours.undefined[row]
    return all(off[i] or mine[i] == tracrs[i] for i in range(len(tracrs)))
