"""The certificate: a JSON document that says how a program and a model were found to agree, and how to check it again.

It is made by running the comparison, and holds the program and hashes of the weights, of the program and of itself, so
that a change of one byte in any of them shows.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import numpy as np

from trade_hf.compiled.weights import TracrWeights
from trade_hf.rasp.evaluate import count_inputs
from trade_hf.rasp.program import Program, RaspError
from trade_hf.rasp.text import parse, to_text
from trade_hf.verification import (
    CONFIDENCE,
    EXHAUSTIVE_LIMIT,
    PRECISIONS,
    SAMPLED_INPUTS,
    TOLERANCE,
    Status,
    Verdict,
    verify,
)

FORMAT = "trade-certificate-4"
METHODS = {
    Status.NOT_COMPARABLE: "no input was run",
    Status.IDENTICAL: "a reordering of residual directions, hidden units and heads was found; every tensor is equal",
    Status.SAME_IN_ANOTHER_BASIS: "an order of hidden units and heads was found; what each part reads of each other is "
    "so nearly equal that no output can differ; and both agree on the shortest inputs and a seeded sample of the "
    "others",
    Status.EQUIVALENT: "both were run in float32 and in float64 on every input of every length up to the maximum",
    Status.EQUIVALENT_BUT_FOR_NONE: "both were run in float32 and in float64 on every input of every length up to the "
    "maximum, and agree where the program gives a value",
    Status.EQUIVALENT_IN_ONE_PRECISION: "both were run in float32 and in float64 on every input of every length up to "
    "the maximum, and agree in one of the two",
    Status.AGREES: "both were run on all of the shortest inputs and on a seeded sample of the others",
    Status.REFUTED: "both were run on this input, and differ",
}
# What another machine may find otherwise: where the precisions disagree, on how many inputs, as it rounds otherwise.
_DEPENDS_ON_MACHINE = {False: ("versions",), True: ("versions", "elsewhere", "summary")}
DOES_NOT_FIT = "the program cannot be what the model computes"


class CertificateError(ValueError):
    """A certificate that does not hold; the message says what does not fit."""


@dataclass(frozen=True)
class Certificate:
    """What was compared, how, and what came out.

    Attributes:
      verdict: the value of a `Status`.
      method: how that was found, in words.
      summary: the verdict in words.
      inputs: how many inputs there are, of all lengths.
      checked: on how many of them both were run (all, where weights are identical: they need not be run).
      bound: the share of inputs that may differ at most, with `confidence`; None where all were checked.
      tolerance: by how much numbers may differ, and the logits of a None.
      holds_in: the precisions in which both agree on the inputs that were run, or, where that is a counterexample,
        differ.
      elsewhere, faint, departure: what the verdict is to be read with (see `Verdict`), None where there is nothing.
      limit: up to how many inputs all are run.
      samples: how many are run where there are more.
      seed: of their draw.
      program: as Python for the tracr package.
      program_sha256, weights_sha256: of the program's text and of the model (see `hash_weights`).
      weights_file: where the model was, None if it was in memory.
      versions: of Python, numpy and trade-hf.
      check: the command that does all of it again.
    """

    verdict: str
    method: str
    summary: str
    inputs: int
    checked: int
    bound: float | None
    confidence: float
    tolerance: float
    holds_in: list[str]
    elsewhere: dict | None
    faint: dict | None
    departure: dict | None
    limit: int
    samples: int
    seed: int
    program: str
    program_sha256: str
    weights_sha256: str
    weights_file: str | None
    versions: dict[str, str]
    check: str = "trade verify --certificate FILE"
    format: str = FORMAT

    def to_json(self) -> str:
        """The document, closed by its own hash."""
        fields = asdict(self)
        return json.dumps({**fields, "sha256": _sha256(_plain(fields))}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        """Raises CertificateError for what is no certificate, or was changed."""
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            raise CertificateError("expected a certificate, got something that is not JSON") from None
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise CertificateError(f"expected a certificate of format {FORMAT!r}")
        expected = fields.pop("sha256", None)
        if expected != _sha256(_plain(fields)):
            raise CertificateError("the certificate was changed: its hash is another one")
        if set(fields) != set(cls.__dataclass_fields__):
            raise CertificateError(f"expected the fields {sorted(cls.__dataclass_fields__)}, got {sorted(fields)}")
        for name, kind in get_type_hints(cls).items():
            if not _is_of(fields[name], kind):
                raise CertificateError(f"expected {name} of type {kind}, got {str(fields[name])[:40]!r}")
        certificate = cls(**fields)
        if text != certificate.to_json():
            raise CertificateError("the certificate was changed: it is not written as it was")
        if _sha256(certificate.program) != certificate.program_sha256:
            raise CertificateError("the program was changed: its hash is another one")
        return certificate


def certify(
    program: Program,
    weights: TracrWeights,
    weights_file: str | os.PathLike | None = None,
    limit: int = EXHAUSTIVE_LIMIT,
    seed: int = 0,
    samples: int = SAMPLED_INPUTS,
) -> Certificate:
    """Compare a program with a model, as `verify` does, and write down what was found. It is of the program's text."""
    code = to_text(program)
    verdict = verify(parse(code), weights, limit, seed, samples)
    file = None if weights_file is None else str(Path(weights_file).resolve())
    return _written(verdict, code, weights, weights_file=file, limit=limit, samples=samples, seed=seed)


def recheck(certificate: Certificate, weights: TracrWeights | None = None, most: int = EXHAUSTIVE_LIMIT) -> Certificate:
    """Run the comparison of a certificate again, by default on the model at its `weights_file`.

    What a certificate asks for is bounded: it is refused where it asks for more than `most` inputs.
    Raises CertificateError if the model is another one or the comparison comes out otherwise, WeightsError for a file
    that is none.
    """
    if weights is None:
        if certificate.weights_file is None:
            raise CertificateError("the certificate names no weights file: give the model")
        weights = TracrWeights.load(certificate.weights_file)
    if hash_weights(weights) != certificate.weights_sha256:
        raise CertificateError("the weights are not those of the certificate: their hash is another one")
    try:
        program = parse(certificate.program)
    except RaspError as error:
        raise CertificateError(f"its program is none: {error}") from None
    how = {"limit": certificate.limit, "samples": certificate.samples, "seed": certificate.seed}
    total = count_inputs(len(weights.input_vocab), weights.max_seq_len)
    asked = total if total <= max(certificate.limit, certificate.samples) else certificate.samples
    if asked > most:
        raise CertificateError(f"it asks for {asked:,} inputs; at most {most:,} are run unless --limit allows more")
    try:
        verdict = verify(program, weights, **how)
    except ValueError as error:
        raise CertificateError(str(error)) from None
    again = _written(verdict, certificate.program, weights, weights_file=certificate.weights_file, **how)
    for name, expected in asdict(certificate).items():
        got = getattr(again, name)
        if got != expected and name not in _DEPENDS_ON_MACHINE[again.elsewhere is not None]:
            raise CertificateError(f"checked again, {name} is {got!r}, the certificate says {expected!r}")
    return again


def hash_weights(weights: TracrWeights) -> str:
    """SHA-256 (hexadecimal) of all that decides what a model computes: names of directions do not."""
    digest = hashlib.sha256()
    described = {name: value for name, value in weights.metadata().items() if name != "residual_labels"}
    digest.update(_plain(described).encode())
    for name, tensor in sorted({**weights.tensors, "unembed/w": weights.unembedding}.items()):
        digest.update(f"{name} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor, "<f4").tobytes())
    return digest.hexdigest()


def _written(verdict: Verdict, program: str, weights: TracrWeights, **how: Any) -> Certificate:
    """`how`: weights_file, limit, samples and seed."""
    row = verdict.to_dict()
    return Certificate(
        verdict=verdict.status.value,
        method=_method(verdict),
        summary=str(verdict),
        inputs=verdict.inputs,
        checked=verdict.checked,
        bound=verdict.bound,
        confidence=CONFIDENCE,
        tolerance=TOLERANCE,
        holds_in=[verdict.precision] if verdict.precision else [*PRECISIONS] if verdict.reason is None else [],
        **{name: row[name] for name in verdict.reservations},
        program=program,
        program_sha256=_sha256(program),
        weights_sha256=hash_weights(weights),
        versions={
            "python": platform.python_version(),
            "numpy": np.__version__,
            "trade-hf": _own_version(),
        },
        **how,
    )


def _method(verdict: Verdict) -> str:
    if verdict.status is Status.REFUTED and verdict.counterexample is None:
        return DOES_NOT_FIT
    if verdict.status is Status.EQUIVALENT_IN_ONE_PRECISION and verdict.checked < verdict.inputs:
        return METHODS[Status.SAME_IN_ANOTHER_BASIS]
    return METHODS[verdict.status]


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value from JSON is of a field's type."""
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(isinstance(part, str) for part in value.values())
    if get_origin(kind) is list:
        return isinstance(value, list) and all(isinstance(part, str) for part in value)
    return isinstance(value, kind) and not isinstance(value, bool)


def _own_version() -> str:
    try:
        return version("trade-hf")
    except PackageNotFoundError:  # run from a folder that was not installed
        return "not installed"


def _plain(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
