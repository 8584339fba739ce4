"""What the command line is given: files to read and to write, tokens, what a model's file does not tell.

Everything is checked before the work begins; bad input raises UsageError with one line.
"""

from __future__ import annotations

import argparse
import ast
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trade_hf.files import read_start
from trade_hf.rasp.functions import Value
from trade_hf.rasp.program import Program

if TYPE_CHECKING:
    from trade_hf.compiled.weights import TracrWeights

MAX_PROGRAM_BYTES = 4_000_000
MAX_CERTIFICATE_BYTES = 8_000_000
_ONE_PARAMETER = ("bos", "max_seq_len", "num_heads", "causal")  # of `Known`, as they are


class UsageError(ValueError):
    """Bad input; the message is the one line that the user sees, `place` what is shown below it of a program."""

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.place = place


# ---------------------------------------------------------------- files


def read_program(path: Path) -> Program:
    """The program in a file. Raises UsageError with the place in it."""
    from trade_hf.compiled.tensor_files import is_safetensors
    from trade_hf.rasp.syntax import RaspSyntaxError
    from trade_hf.rasp.text import parse

    content = _read(path, MAX_PROGRAM_BYTES, "a program")
    if is_safetensors(content) or content[:2] == b"PK":
        raise UsageError(f"{path}: expected a program, got a model: a model comes before its program")
    try:
        return parse(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise UsageError(f"{path}: expected text, got bytes that are not UTF-8") from None
    except RaspSyntaxError as error:
        raise UsageError(f"{path}: {error}", error.place) from None


def read_certificate(path: Path) -> str:
    """A certificate's text."""
    return _read(path, MAX_CERTIFICATE_BYTES, "a certificate").decode("utf-8", errors="replace")


def _read(path: Path, most: int, what: str) -> bytes:
    if path.is_dir():
        raise UsageError(f"{path}: expected {what}, got a folder")
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    content = read_start(path, most + 1)
    if len(content) > most:
        raise UsageError(f"{path}: expected {what}, got more than {most:,} bytes")
    return content


def check_output(path: Path | None, *suffixes: str) -> None:
    """Raises UsageError where a file cannot be written, or has the suffix of another format than these."""
    if path is None:
        return
    if suffixes and path.suffix and path.suffix.lower() not in suffixes:
        raise UsageError(f"{path}: expected a name with {' or '.join(suffixes)}, which is what is written")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: expected a folder to write {path.name} to")
    if path.is_dir():
        raise UsageError(f"{path}: expected a file to write to, got a folder")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{path}: no permission to write there")


def check_port(port: int | None, host: str) -> None:
    """Raises UsageError for a port that cannot be served on."""
    if port is None:
        return
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OverflowError:
            raise UsageError(f"--port: expected a number up to 65535, got {port}") from None
        except OSError as error:
            raise UsageError(f"--port: {port} cannot be served on ({error.strerror}): give another one") from None


def seconds(text: str) -> float:
    """A time, as an option gives it."""
    found = float(text)
    if not 0 < found <= 86_400:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text}")
    return found


# ---------------------------------------------------------------- tokens and models


def parse_vocab(text: str, option: str = "--vocab") -> tuple[Value, ...]:
    """Comma-separated tokens; numbers where they read as numbers."""
    tokens = [part.strip() for part in text.split(",")]
    if not all(tokens):
        raise UsageError(f"{option}: expected tokens separated by commas, got {text!r}")
    return tuple(_token(token) for token in tokens)


def _token(text: str) -> Value:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: nested too deep
        return text
    return value if isinstance(value, int | float | str) else text


def add_known(parser: argparse.ArgumentParser) -> None:
    """Options for what a model's file does not tell (`compiled/formats.py`, `Known`)."""
    options = parser.add_argument_group("what the file does not tell, or what counts in its place")
    options.add_argument("--vocab", metavar="TOKENS", help="of each row of the embedding, BOS and pad too, in order")
    options.add_argument("--bos", metavar="TOKEN", help="what BOS is called there (default compiler_bos)")
    pad = options.add_mutually_exclusive_group()
    pad.add_argument("--pad", metavar="TOKEN", help="what pad is called there (default compiler_pad)")
    pad.add_argument("--no-pad", action="store_true", help="the embedding has no row for pad")
    options.add_argument("--max-seq-len", type=int, metavar="N", help="the longest input, without BOS")
    output = options.add_mutually_exclusive_group()
    output.add_argument("--output-values", metavar="VALUES", help="of each output, in order, comma-separated")
    output.add_argument("--numerical", action="store_true", help="the output is a number")
    options.add_argument("--output-directions", metavar="NUMBERS", help="the residual direction of each output")
    options.add_argument("--num-heads", type=int, metavar="N", help="heads in a layer")
    options.add_argument("--causal", action=argparse.BooleanOptionalAction, help="whether attention is causal")


def read_model(path: Path, args: argparse.Namespace) -> TracrWeights:
    """A model's file with what the options of `add_known` say."""
    from trade_hf.compiled.formats import to_weights

    known: dict[str, Any] = {name: getattr(args, name) for name in _ONE_PARAMETER if getattr(args, name) is not None}
    for name in ("vocab", "output_values", "output_directions"):
        if (text := getattr(args, name)) is not None:
            known[name] = parse_vocab(text, f"--{name.replace('_', '-')}")
    if args.pad is not None or args.no_pad:
        known["pad"] = args.pad
    if args.numerical:
        known["output_values"] = None
    return to_weights(path, **known)
