"""What a visitor can keep of an answer: program, certificate and model as files, a link, commands for a terminal."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from trade_hf.app.settings import STATE
from trade_hf.certificate import Certificate
from trade_hf.compiled.weights import TracrWeights
from trade_hf.decompiler import Decompilation
from trade_hf.report.markup import Html, download, element, join, scrolling

MAX_MODEL = 4_000_000  # bytes of a model that is put into the page
MAX_LINK = 6_000  # characters of a link
OPTIONS = {"noise 0.1 %": "--noise 0.001", "noise 1 %": "--noise 0.01", "none": ""}  # of `trade compile`; else --NAME


def keep_html(request: dict[str, Any], result: Decompilation, certificate: Certificate, weights: TracrWeights) -> Html:
    """Files to save, and how to check the certificate with them."""
    links = [download(result.code, "program.py", "text/x-python")]
    links.append(download(certificate.to_json(), "certificate.json", "application/json"))
    if (content := _content(weights)) is not None:
        links.append(download(content, "model.safetensors", "application/octet-stream"))
    files = element("ul", *[element("li", link) for link in links])
    commands = ["trade verify model.safetensors --certificate certificate.json", "trade decompile model.safetensors"]
    parts = [element("h3", "Files"), files, element("h3", "Check the certificate, or decompile the model again")]
    parts.append(_block("\n".join(commands)))
    if "code" in request:
        parts += [element("h3", "Compile the same model"), _block(_command(request))]
        parts += [element("h3", "This page again"), _link(request)]
    return join(parts)


def _content(weights: TracrWeights) -> bytes | None:
    """The model's file; None for one that is too large for a page."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        weights.save(path)
        return path.read_bytes() if path.stat().st_size <= MAX_MODEL else None


def _block(text: str) -> Html:
    return scrolling(element("pre", element("code", text)), "command")


def _command(request: dict[str, Any]) -> str:
    """How to compile the model in a terminal, with the program as it was typed in source.py."""
    change = OPTIONS.get(request["scramble"], f"--{request['scramble']}")
    vocab = "".join(str(request["vocab"]).split())
    return f"trade compile source.py -o model.safetensors --vocab '{vocab}' --max-seq-len {request['length']} {change}"


def _link(request: dict[str, Any]) -> Html:
    """A link that holds the program and the settings."""
    target = f"?{urlencode({name: request[name] for name in STATE if request.get(name) is not None})}"
    if len(target) > MAX_LINK:
        return element("p", "The program is too long for a link.", class_="note")
    return element("p", element("a", "link with this program and these settings", href=target, class_="state"))
