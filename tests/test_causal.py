"""Models with a causal mask: the weights are Tracr's for the same program, what they compute is not."""

import numpy as np
import pytest
from cases import CASES, VOCAB
from tracr.compiler import compiling

from dataset_builder.brute_force import differing, outputs_in_rasp, outputs_of_model
from trade_hf import decompile
from trade_hf.certificate import CertificateError, certify, recheck
from trade_hf.circuit.isomorphism import are_identical
from trade_hf.cli import main
from trade_hf.compiled.bridge import from_tracr_model, to_tracr
from trade_hf.compiled.compiler import compile_like, compile_program
from trade_hf.compiled.forward import attention, run
from trade_hf.compiled.transforms import permute, rotate
from trade_hf.compiled.weights import TracrWeights
from trade_hf.rasp.evaluate import all_inputs, evaluate
from trade_hf.rasp.program import Op
from trade_hf.rasp.text import parse, to_text
from trade_hf.verification import Status, verify, verify_weights

LENGTH = 3
HISTOGRAM = next(case.program for case in CASES if case.name == "histogram")
SO_FAR, IN_ALL = (
    parse(
        f"""v1 = rasp.Select({select})
v2 = rasp.numerical(rasp.Map(lambda x: x == 2, rasp.tokens))
program = rasp.numerical(rasp.Aggregate(v1, v2, default=0))"""
    )
    for select in (
        "rasp.indices, rasp.indices, rasp.Comparison.LEQ",
        "rasp.tokens, rasp.tokens, rasp.Comparison.TRUE",
    )
)
WITH_HEADS = [case for case in CASES if any(line.op is Op.SELECT for line in case.program.lines)]


@pytest.mark.parametrize("case", WITH_HEADS, ids=lambda c: c.name)
def test_as_tracr_runs_them(case):
    """On every input: our evaluator where the compiled program means what RASP says, our forward pass everywhere."""
    ours, codes = compile_program(case.program, VOCAB, LENGTH, causal=True), all_inputs(len(VOCAB), LENGTH)
    given, meant = run(ours, codes), evaluate(case.program, codes, VOCAB, LENGTH, causal=True)
    in_rasp, valid = outputs_in_rasp(case.program, VOCAB, LENGTH, causal=True), np.flatnonzero(meant.valid)
    assert len(valid) and not differing([meant.decode(i) for i in valid], [in_rasp[i] for i in valid], 1e-6)
    if case.name in ("histogram", "fraction of previous tokens that are 2"):  # JAX takes long
        theirs = outputs_of_model(case.program, VOCAB, LENGTH, causal=True)
        assert not differing([given.defined(row) for row in range(len(codes))], theirs, 1e-4)


def test_a_model_of_the_tracr_package():
    model = compiling.compile_rasp_to_model(to_tracr(HISTOGRAM), set(VOCAB), LENGTH, causal=True)
    weights = from_tracr_model(model)
    assert weights.causal and are_identical(weights, compile_program(HISTOGRAM, VOCAB, LENGTH, causal=True))
    assert not are_identical(weights, compile_program(HISTOGRAM, VOCAB, LENGTH))
    result = decompile(model)
    assert result.status is Status.IDENTICAL and result.program == HISTOGRAM


@pytest.mark.parametrize("change", [permute, rotate])
def test_decompiled(samples, change):
    for number, sample in enumerate(samples[:12]):
        weights = change(compile_program(sample.spelled, sample.vocab, sample.max_seq_len, causal=True), number)
        result = decompile(weights)
        assert result.verdict.is_verified, to_text(sample.spelled)
        assert not verify_weights(compile_like(result.program, weights), weights).counterexample


def test_the_mask_decides_what_a_program_means():
    """The share of 2 so far, and in all: one function where later tokens cannot be seen."""
    causal = compile_program(IN_ALL, VOCAB, LENGTH, causal=True)
    assert verify(SO_FAR, causal).status is Status.EQUIVALENT
    assert verify(IN_ALL, causal).status is Status.IDENTICAL
    verdict = verify(SO_FAR, compile_program(IN_ALL, VOCAB, LENGTH))
    assert verdict.status is Status.REFUTED and len(verdict.counterexample) == 2
    assert not np.triu(attention(causal, [1, 2])[-1, 0], 1).any()


def test_kept_in_files_and_certificates(tmp_path, capsys):
    program, file = tmp_path / "p.py", tmp_path / "m.safetensors"
    program.write_text(to_text(HISTOGRAM))
    assert not main(["compile", str(program), "--max-seq-len", "3", "--vocab", "0,1,2", "--causal", "-o", str(file)])
    assert "causal" in capsys.readouterr().out
    weights = TracrWeights.load(file)
    assert weights.causal and repr(weights).endswith("causal)") and "causal" in weights._repr_html_()
    certificate = certify(HISTOGRAM, weights, file)
    recheck(certificate)
    compile_program(HISTOGRAM, (0, 1, 2), 3).save(file)
    with pytest.raises(CertificateError, match="the weights are not those of the certificate"):
        recheck(certificate)
