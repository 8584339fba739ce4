"""What a model calls BOS and pad, how exact its steps are, and in which order its tokens stand: any of them is read."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from cases import CASES, LENGTH, VOCAB
from test_compiler import assert_same_weights
from tracr.compiler import compiling

from trade_hf.cli import main
from trade_hf.compiled.bridge import from_tracr_model, same_as_tracr, to_tracr
from trade_hf.compiled.compiler import compile_like, compile_program
from trade_hf.compiled.forward import run
from trade_hf.compiled.transforms import add_noise, compress, permute, rotate, skew
from trade_hf.compiled.weights import BOS, PAD, TracrWeights, WeightsError
from trade_hf.decompiler import decompile
from trade_hf.drawing import draw_layers
from trade_hf.provenance import confirm, provenance
from trade_hf.rasp.tables import sort_values
from trade_hf.rasp.text import parse
from trade_hf.report.page import report
from trade_hf.verification import Status, verify

# Of any tokens: how often each occurs, whether all so far occur once, and that beside the token itself.
COUNTING = """v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)
v2 = rasp.SelectorWidth(v1)
v3 = rasp.numerical(rasp.Map(lambda x: x == 1, v2))
v4 = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.LEQ)
v5 = rasp.numerical(rasp.Aggregate(v4, v3, default=0))
program = rasp.Map(lambda x: x == 1, v5)"""
SHIFTED = """v1 = rasp.Select(rasp.indices, rasp.indices, lambda k, q: q == k + 1)
program = rasp.Aggregate(v1, rasp.tokens)"""


@dataclass(frozen=True)
class Named:
    """A vocabulary, and what BOS and pad are called beside it. `in_a_circle`: the tokens have no order (3 < "BOS" <
    True < 3), so that what tracr compiles differs from run to run, and is wrong at times."""

    vocab: tuple
    bos: object = "BOS"
    pad: object = "PAD"
    in_a_circle: bool = False

    def __str__(self):
        return f"{self.vocab}-{self.bos}-{self.pad}"

    @property
    def next_token(self):
        """A program that gives each token's successor, as a table."""
        table = ", ".join(f"{a!r}: {b!r}" for a, b in zip(self.vocab, self.vocab[1:] + self.vocab[:1], strict=True))
        return f"program = rasp.Map(lambda x: {{{table}}}.get(x), rasp.tokens)"

    def compile(self, text, length=4, exactness=120):
        return compile_program(parse(text), self.vocab, length, bos=self.bos, pad=self.pad, exactness=exactness)


NAMED = [
    Named((9, 10, "x")),
    Named((True, 3, "n"), BOS, PAD),
    Named((0.5, 1, 2.5)),
    Named((1.5, 2, "b")),
    Named(("BO", "a", BOS, PAD)),
    Named(("tea", "Ä", "b c", ""), BOS, PAD),
    Named(((1, 2), "a", 3)),
    Named((1.5, "b", 2), -1, -2),
    Named((True, 3, "n"), in_a_circle=True),
    Named((1, 2, 3), "2", "1", in_a_circle=True),
    Named(("1", 2, "10", 10), in_a_circle=True),
    Named((0, 1, 2, 9, 10, 11), "5", PAD, in_a_circle=True),
    Named((10, 9, "95", "9a"), "9", "99", in_a_circle=True),
]
named = pytest.mark.parametrize("named", NAMED, ids=str)


def with_rows_shuffled(weights, seed):
    order = np.random.default_rng(seed).permutation(len(weights.vocab))
    rows = weights.tensors["token_embed/embeddings"][order]
    return replace(
        weights,
        tensors={**weights.tensors, "token_embed/embeddings": rows},
        vocab=tuple(weights.vocab[row] for row in order),
    )


@pytest.mark.parametrize("named", [one for one in NAMED if not one.in_a_circle], ids=str)
@pytest.mark.parametrize("exactness", [10, 1000])
def test_weights_are_tracrs(named, exactness):
    ours = named.compile(COUNTING, exactness=exactness)
    model = compiling.compile_rasp_to_model(
        to_tracr(parse(COUNTING)),
        set(named.vocab),
        4,
        compiler_bos=named.bos,
        compiler_pad=named.pad,
        mlp_exactness=exactness,
    )
    theirs = from_tracr_model(model)
    assert (theirs.bos, theirs.pad, theirs.exactness) == (named.bos, named.pad, exactness)
    assert_same_weights(ours, theirs)
    codes = np.array([[0, 1, 1, 2]])
    given = model.apply([named.bos, *(theirs.input_vocab[code] for code in codes[0])])
    assert same_as_tracr(run(theirs, codes), 0, given, theirs.unembedding)


@named
@pytest.mark.parametrize("text", [COUNTING, SHIFTED, "next token"], ids=["counting", "shifted", "next token"])
def test_everything_is_done_in_any_order_of_rows(named, text, tmp_path):
    text = named.next_token if text == "next token" else text
    program, weights = parse(text), named.compile(text)
    assert compile_like(program, weights).vocab == weights.vocab
    for seed, change in enumerate((permute, rotate)):
        changed = with_rows_shuffled(change(weights, seed), seed)
        changed.save(tmp_path / "model.safetensors")
        model = TracrWeights.load(tmp_path / "model.safetensors")
        assert (model.vocab, model.bos, model.pad) == (changed.vocab, named.bos, named.pad)
        assert model.exactness == weights.exactness
        assert verify(program, model).is_verified
        result = decompile(model)
        assert result.verdict.is_verified and verify(parse(result.code), model).is_verified
        if change is permute:
            assert result.status is Status.IDENTICAL
        origins = provenance(result.program, model)
        assert all(confirm(result.program, model, origins))
        assert "model" in report(result, model, "model", origins)
        assert draw_layers(result.program, model, origins).startswith("<svg")


@named
def test_one_order_of_tokens(named):
    """Whatever order they come in, by rows or by a set."""
    order = sort_values(named.vocab)
    rng = np.random.default_rng(0)
    for _ in range(10):
        assert sort_values([named.vocab[i] for i in rng.permutation(len(named.vocab))]) == order
    assert list(with_rows_shuffled(named.compile(SHIFTED), 1).input_vocab) == order


def test_tracrs_order_of_a_mixed_vocabulary():
    assert sort_values({10, "x", 9}) == [9, 10, "x"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"bos": "a"}, "must not contain 'a'.*choose another bos"),
        ({"pad": "b"}, "must not contain 'b'.*choose another pad"),
        ({"bos": "x", "pad": "x"}, "two names for BOS and pad, got 'x' for both"),
        ({"exactness": 0}, "exactness: expected a number above 0 and up to 1e\\+06, got 0"),
        ({"exactness": float("nan")}, "exactness: expected a number above 0"),
    ],
    ids=str,
)
def test_refusals(names, message):
    with pytest.raises(ValueError, match=message):
        compile_program(parse(SHIFTED), ("a", "b"), 3, **names)


def test_one_name_for_both_is_refused_in_a_file():
    weights = NAMED[0].compile(SHIFTED)
    with pytest.raises(WeightsError, match="expected two names for BOS and pad, got 'BOS' for both"):
        replace(weights, pad="BOS")


EXACTNESSES = [3, 10, 37.5, 50, 120, 1000]
BASES = {
    "own": lambda weights, seed: weights,
    "permuted": permute,
    "rotated": rotate,
    "skewed": skew,
    "compressed": lambda weights, seed: compress(weights),
}
# In a skewed basis the scale of a number is arbitrary: where it is a sum, nothing tells what the steps read of it.
SCALE_UNKNOWN = ("numbers: map, linear sequence map, back to categorical",)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_exactness_is_read(case, basis):
    is_told = _has_steps(case.program) and not (basis == "skewed" and case.name in SCALE_UNKNOWN)
    for seed, exactness in enumerate(EXACTNESSES):
        weights = BASES[basis](compile_program(case.program, VOCAB, LENGTH, exactness=exactness), seed)
        assert weights.exactness == (exactness if is_told else 100)


def _has_steps(program):
    hidden = [compile_program(program, VOCAB, LENGTH, exactness=exactness).tensors for exactness in (50, 100)]
    return any(not np.array_equal(hidden[0][name], hidden[1][name]) for name in hidden[0])


@pytest.mark.parametrize("level", [0.0003, 0.001, 0.003])
def test_exactness_is_read_in_noise(level):
    """The numbers of fewest digits among those that noise allows."""
    for case in CASES[:4]:
        for exactness in (50, 100, 1000):
            weights = compile_program(case.program, VOCAB, LENGTH, exactness=exactness)
            assert add_noise(rotate(weights, 1), level, 2).exactness == pytest.approx(exactness, rel=1e-3)


# A count at which two outputs of the model are equal: which is decoded hangs on the order of float32 sums.
TIED = [("every comparison that is left", 10)]


@pytest.mark.parametrize("exactness", [10, 50, 120, 1000])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_programs_are_recovered_at_any_exactness(case, exactness):
    weights = compile_program(case.program, VOCAB, LENGTH, exactness=exactness, bos="BOS", pad="PAD")
    result = decompile(permute(weights, 0))
    tied = (case.name, exactness) in TIED
    assert result.status is (Status.EQUIVALENT_IN_ONE_PRECISION if tied else Status.IDENTICAL)
    assert result.verdict.limits or not tied


@pytest.mark.parametrize(
    ("exactness", "length", "words"),
    [
        (50, 6, "at exactness 50, v2 counts up to 4 of 6"),
        (10, 4, "at exactness 10, v2 counts up to 1 of 4"),
        (100, 6, None),
        (1000, 6, None),
    ],
)
def test_what_a_model_cannot_count_is_said(exactness, length, words):
    """Beside the certificate, with the first input on which RASP says something else."""
    program = parse(
        """v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE)
program = rasp.numerical(rasp.SelectorWidth(v1))"""
    )
    weights = compile_program(program, (0, 1), length, exactness=exactness)
    verdict = verify(program, permute(weights, 0))
    assert verdict.status is Status.IDENTICAL
    assert verdict.limits == (() if words is None else (words,))
    assert (words is None) == (verdict.departure is None)
    if words:
        assert words in str(verdict) and verdict.to_dict()["limits"] == [words]
        assert len(verdict.departure.first) == int(words.split("up to ")[1][0]) + 1
        assert words[1:] in report(decompile(weights), weights, "model", ())


def test_numbers_too_close_are_said():
    case = next(case for case in CASES if case.name.startswith("fraction of previous"))
    text = "\n".join(line.strip() for line in case.lines.splitlines()) + "\nprogram = rasp.Map(lambda x: x == 1, v3)"
    for exactness, words in ((1.9, ("at exactness 1.9, v4 may take 0.5 for 1",)), (100, ())):
        program = parse(text)
        assert verify(program, compile_program(program, VOCAB, LENGTH, exactness=exactness)).limits == words


def test_command_line(tmp_path, capsys):
    program, model = tmp_path / "program.py", tmp_path / "model.safetensors"
    program.write_text(COUNTING)
    how = ["--vocab", "a,b,compiler_bos", "--bos", "BOS", "--pad", "PAD", "--exactness", "120"]
    assert main(["compile", str(program), "-o", str(model), *how]) == 0
    weights = TracrWeights.load(model)
    assert (weights.bos, weights.pad, weights.exactness) == ("BOS", "PAD", 120)
    assert weights.input_vocab == ("a", "b", "compiler_bos")
    assert main(["verify", str(model), str(program)]) == 0
    assert "identical weights" in capsys.readouterr().out
    assert main(["compile", str(program), "-o", str(model), "--vocab", "a,b", "--bos", "b"]) == 2
    assert "must not contain 'b', the compiler's own token: choose another bos" in capsys.readouterr().err
