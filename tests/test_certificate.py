"""Certificates: made by a check, checked again, refused when a byte of anything was changed."""

import dataclasses
import json

import numpy as np
import pytest
from cases import CASES, LENGTH, VOCAB

from trade_hf.certificate import Certificate, CertificateError, certify, hash_weights, recheck
from trade_hf.cli import main
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import permute, rotate
from trade_hf.rasp.text import to_text

PROGRAM = next(case for case in CASES if case.name == "reverse").program
WEIGHTS = compile_program(PROGRAM, VOCAB, LENGTH)


@pytest.mark.parametrize(
    ("weights", "verdict", "bound"),
    [
        (WEIGHTS, "identical weights", None),
        (permute(WEIGHTS, 1), "identical weights", None),
        (rotate(WEIGHTS, 1), "equivalent", None),
        (compile_program(CASES[0].program, VOCAB, LENGTH), "refuted", None),
    ],
)
def test_it_says_what_was_found_and_holds_when_checked_again(weights, verdict, bound):
    certificate = Certificate.from_json(certify(PROGRAM, weights).to_json())
    assert (certificate.verdict, certificate.bound, certificate.inputs) == (verdict, bound, 3905)
    assert recheck(certificate, weights) == certificate
    with pytest.raises(CertificateError, match="names no weights file"):
        recheck(certificate)


def test_other_weights_are_refused():
    certificate = certify(PROGRAM, WEIGHTS)
    name = "transformer/layer_0/mlp/linear_1/w"
    changed = WEIGHTS.tensors[name].copy()
    changed.view(np.uint8).ravel()[3] ^= 1
    other = dataclasses.replace(WEIGHTS, tensors={**WEIGHTS.tensors, name: changed})
    with pytest.raises(CertificateError, match="weights are not those"):
        recheck(certificate, other)
    assert hash_weights(WEIGHTS) != hash_weights(permute(WEIGHTS, 1))
    assert hash_weights(WEIGHTS) == hash_weights(dataclasses.replace(WEIGHTS, residual_labels=()))


def test_any_changed_byte_is_refused():
    text = certify(PROGRAM, WEIGHTS).to_json()
    for place in range(0, len(text), 7):
        changed = text[:place] + chr((ord(text[place]) + 1) % 128) + text[place + 1 :]
        with pytest.raises(CertificateError):
            Certificate.from_json(changed)


def test_a_claim_that_does_not_hold_is_refused():
    """Whoever writes a false certificate by hand, hash and all, is found out by the check."""
    false = dataclasses.replace(certify(CASES[0].program, WEIGHTS), verdict="equivalent", summary="equivalent")
    with pytest.raises(CertificateError, match="verdict is 'refuted', the certificate says 'equivalent'"):
        recheck(Certificate.from_json(false.to_json()), WEIGHTS)
    for field, value in (("confidence", 0.999), ("method", "proven by God"), ("bound", 0.1)):
        false = dataclasses.replace(certify(PROGRAM, WEIGHTS), **{field: value})
        with pytest.raises(CertificateError, match=f"{field} is "):
            recheck(Certificate.from_json(false.to_json()), WEIGHTS)
    for field in ("limit", "samples"):
        false = dataclasses.replace(certify(PROGRAM, WEIGHTS), **{field: 0})
        with pytest.raises(CertificateError, match=f"{field}: expected at least 1 input, got 0"):
            recheck(Certificate.from_json(false.to_json()), WEIGHTS)
    for field, value in (("versions", 5), ("seed", "a"), ("inputs", 39.0), ("program", None), ("checked", True)):
        false = dataclasses.replace(certify(PROGRAM, WEIGHTS), **{field: value})
        with pytest.raises(CertificateError, match=f"expected {field} of type"):
            Certificate.from_json(false.to_json())
    for text in ("", "[]", "{}", '{"format": "trade-certificate-1"}', "[" * 100_000):
        with pytest.raises(CertificateError):
            Certificate.from_json(text)


def test_on_the_command_line(tmp_path, capsys):
    model, program, document = tmp_path / "model.safetensors", tmp_path / "program.py", tmp_path / "c.json"
    rotate(WEIGHTS, 2).save(model)
    program.write_text(to_text(PROGRAM))
    assert main(["verify", str(model), str(program), "--write-certificate", str(document)]) == 0
    assert main(["verify", "--certificate", str(document)]) == 0
    assert capsys.readouterr().out.endswith("checked again: equivalent on all 3,905 inputs\n")
    rotate(WEIGHTS, 3).save(model)
    assert main(["verify", "--certificate", str(document), "--json"]) == 1
    assert "weights are not those" in json.loads(capsys.readouterr().out)["reason"]
    document.write_text(document.read_text().replace("reverse", "").replace("3905", "3906"))
    assert main(["verify", "--certificate", str(document)]) == 1
    assert "REFUSED: the certificate was changed" in capsys.readouterr().out
    assert main(["verify", str(model)]) == 2
    assert "expected a model and a program" in capsys.readouterr().err


def test_a_certificate_that_asks_for_too_much_is_refused_at_once():
    longer = compile_program(PROGRAM, VOCAB, 12)
    asks = dataclasses.replace(certify(PROGRAM, longer, samples=100), samples=8_000_000)
    with pytest.raises(CertificateError, match="asks for 8,000,000 inputs; at most 2,000,000 are run unless --limit"):
        recheck(Certificate.from_json(asks.to_json()), longer)
    few = certify(PROGRAM, WEIGHTS)
    with pytest.raises(CertificateError, match="asks for 3,905 inputs; at most 3,000"):
        recheck(few, WEIGHTS, most=3_000)
