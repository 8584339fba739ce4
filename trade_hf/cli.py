"""The command line: trade demo | decompile | compile | verify | sample | app.

People get text, `--json` gets JSON. Bad input gets one line on standard error and exit status 2.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from trade_hf import __version__
from trade_hf.arguments import (
    UsageError,
    add_known,
    check_output,
    check_port,
    parse_vocab,
    read_certificate,
    read_model,
    read_program,
    seconds,
)
from trade_hf.changes import add_changes, changed
from trade_hf.decompile_command import add_decompile, decompile_file
from trade_hf.files import write_text
from trade_hf.rasp.functions import Value
from trade_hf.terminal import NOT_PROVEN, code_in_colour, exit_status, headline, indented, say

DEFAULT_VOCAB = "0,1,2,3,4"
DEFAULT_LENGTH = 5
EXIT_STATUS = "(exit status 0: proven, 1: refuted, 3: neither)"


def main(argv: list[str] | None = None) -> int:
    """Entry point of `trade`; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever reads, as `head`, has enough; what Python flushes at its end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"trade: {_one_line(error)}", file=sys.stderr)
        if isinstance(error, UsageError) and error.place:
            print(error.place, file=sys.stderr)
        return 2


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trade", description="Decompile transformers that Tracr compiled from RASP.")
    parser.add_argument("--version", action="version", version=f"trade {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Any, about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print JSON")
        return sub

    sub = command("decompile", decompile_file, f"recover the program of a model and check it {EXIT_STATUS}")
    add_decompile(sub)

    sub = command("compile", _compile, "compile a RASP program to weights, bit for bit as Tracr does")
    sub.add_argument("program", type=Path, help="lines as tracr has them, `program = …` at the end; read, never run")
    sub.add_argument("-o", "--output", type=Path, required=True, help="the safetensors file to write")
    sub.add_argument("--format", choices=("tracr", "transformer-lens"), default="tracr", help="names of the tensors")
    sub.add_argument("--causal", action="store_true", help="with a causal mask, as Tracr's causal=True")
    sub.add_argument("--bos", metavar="NAME", help="as Tracr's compiler_bos (default compiler_bos)")
    sub.add_argument("--pad", metavar="NAME", help="as Tracr's compiler_pad (default compiler_pad)")
    sub.add_argument("--exactness", type=float, metavar="N", help="as Tracr's mlp_exactness (default 100)")
    _add_domain(sub)
    add_changes(sub)

    sub = command(
        "verify",
        _verify,
        f"check whether a program and a compiled model agree {EXIT_STATUS}",
    )
    sub.add_argument("file", type=Path, nargs="?")
    sub.add_argument("program", type=Path, nargs="?")
    sub.add_argument("--write-certificate", type=Path, metavar="FILE", help="write down what was found, as JSON")
    sub.add_argument(
        "--certificate",
        type=Path,
        metavar="FILE",
        help="check a certificate again, on FILE's model; it may ask for --limit inputs",
    )
    sub.add_argument("--limit", type=int, metavar="N", help="run all inputs up to so many (default 2,000,000)")
    sub.add_argument("--samples", type=int, metavar="N", help="of more, run so many (default 10,000)")
    sub.add_argument("--seed", type=int, metavar="N", help="of the sample (default 0)")
    add_known(sub)

    sub = command("sample", _sample, "random programs as in the corpus")
    sub.add_argument("-n", type=int, default=10, help="how many")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--min-lines", type=int, default=3)
    sub.add_argument("--max-lines", type=int, default=10)
    _add_domain(sub)

    sub = command("demo", _demo, "compile known programs with the real tracr package, decompile and check them")
    sub.add_argument("--checkpoint", type=Path)

    sub = commands.add_parser("app", help="the demo in a browser", description="Serve the demo on this machine.")
    sub.set_defaults(run=_app)
    sub.add_argument("--host", help="the address to serve on (default 127.0.0.1: this machine alone)")
    sub.add_argument("--port", type=int, help="(default: the first free one from 7860)")
    sub.add_argument("--time-limit", type=seconds, metavar="SECONDS", help="of a request (default 20)")
    return parser


def _add_domain(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--vocab", default=DEFAULT_VOCAB, help=f"tokens, comma-separated (default {DEFAULT_VOCAB})")
    sub.add_argument(
        "--max-seq-len", type=int, default=DEFAULT_LENGTH, help=f"longest input (default {DEFAULT_LENGTH})"
    )


def _distinct_vocab(text: str) -> tuple[Value, ...]:
    vocab = parse_vocab(text)
    if len(set(vocab)) != len(vocab):
        raise UsageError(f"--vocab: expected distinct tokens, got {text}")
    return vocab


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given, by name."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _print(data: Any, text: str, as_json: bool) -> None:
    print(json.dumps(data, indent=2) if as_json else text.rstrip("\n"))


# ---------------------------------------------------------------- commands


def _compile(args: argparse.Namespace) -> int:
    from trade_hf.compiled.compiler import compile_program
    from trade_hf.compiled.transformer_lens import save as save_for_transformer_lens
    from trade_hf.rasp.folding import folded

    check_output(args.output)
    vocab = _distinct_vocab(args.vocab)
    how = _given(args, "bos", "pad", "exactness")
    program = folded(read_program(args.program), vocab, args.max_seq_len)
    weights = changed(compile_program(program, vocab, args.max_seq_len, causal=args.causal, **how), args)
    if args.format == "transformer-lens":
        save_for_transformer_lens(weights, args.output)
    else:
        weights.save(args.output)
    _print({"file": str(args.output), "model": repr(weights)}, f"{args.output}: {weights!r}", args.json)
    return 0


def _verify(args: argparse.Namespace) -> int:
    how = _given(args, "limit", "samples", "seed")
    if args.certificate:
        if how.keys() - {"limit"}:
            raise UsageError(f"--{min(how.keys() - {'limit'})}: the certificate holds its own")
        return _recheck(args)
    if args.file is None or args.program is None:
        raise UsageError("expected a model and a program: trade verify MODEL PROGRAM, or --certificate FILE")
    check_output(args.write_certificate)
    program, weights = read_program(args.program), read_model(args.file, args)
    from trade_hf.certificate import certify  # takes seconds, so bad input is answered before
    from trade_hf.rasp.folding import folded
    from trade_hf.verification import verify

    program = folded(program, weights.input_vocab, weights.max_seq_len)
    verdict = verify(program, weights, **how)
    if args.write_certificate:
        write_text(args.write_certificate, certify(program, weights, args.file, **how).to_json())
    text = headline(verdict)
    if verdict.counterexample is not None:
        text += f"\n  program: {list(verdict.expected or ())}\n  model:   {list(verdict.got or ())}"
    _print(verdict.to_dict(), text, args.json)
    return exit_status(verdict.status)


def _recheck(args: argparse.Namespace) -> int:
    if args.program is not None or args.write_certificate is not None:
        raise UsageError("--certificate: expected a model or nothing beside it, the certificate holds the program")
    text, weights = read_certificate(args.certificate), read_model(args.file, args) if args.file else None
    from trade_hf.certificate import Certificate, CertificateError, recheck
    from trade_hf.verification import EXHAUSTIVE_LIMIT, Status

    try:
        found = recheck(Certificate.from_json(text), weights, args.limit or EXHAUSTIVE_LIMIT)
    except CertificateError as error:
        _print({"holds": False, "reason": str(error)}, f"REFUSED: {error}", args.json)
        return 1
    _print({"holds": True, "certificate": found.summary}, f"checked again: {found.summary}", args.json)
    return exit_status(Status(found.verdict))


def _sample(args: argparse.Namespace) -> int:
    from dataset_builder.sampler import SamplerConfig, sample_programs
    from trade_hf.compiled.compiler import check_names
    from trade_hf.compiled.weights import BOS, PAD
    from trade_hf.rasp.canonical import hash_canonical
    from trade_hf.rasp.tables import sort_values
    from trade_hf.rasp.text import to_text

    vocab = tuple(sort_values(_distinct_vocab(args.vocab)))
    check_names(vocab, BOS, PAD)
    if args.n < 0 or not 1 <= args.min_lines <= args.max_lines <= 15 or not 1 <= args.max_seq_len <= 12:
        raise UsageError("expected -n of at least 0, 1 ≤ --min-lines ≤ --max-lines ≤ 15 and --max-seq-len from 1 to 12")
    config = SamplerConfig(vocab, args.max_seq_len, args.min_lines, args.max_lines)
    samples = sample_programs(args.seed, config)
    rows = [
        {
            "code": to_text(sample.spelled),
            "canonical_hash": hash_canonical(sample.program, sample.vocab, sample.max_seq_len),
            "vocab": list(sample.vocab),
            "max_seq_len": sample.max_seq_len,
        }
        for _, sample in zip(range(args.n), samples, strict=False)
    ]
    _print(rows, "\n".join(str(row["code"]) for row in rows), args.json)
    return 0


def _demo(args: argparse.Namespace) -> int:
    from trade_hf.demo import run_demo

    rows: list[dict[str, Any]] = []
    for row, result in run_demo(args.checkpoint, say):
        rows.append(row)
        if not args.json:
            print(f"━━ {row['name']}\n\nthe program that was compiled\n{code_in_colour(indented(row['true_code']))}\n")
            print(f"read from the scrambled weights\n{code_in_colour(indented(row['code']))}\n")
            print(f"{headline(result.verdict)}\n", flush=True)
    proven = sum(row["proven"] for row in rows)
    _print(rows, f"{proven} of {len(rows)} proven", args.json)
    return 0 if proven == len(rows) else NOT_PROVEN


def _app(args: argparse.Namespace) -> int:
    try:
        from trade_hf.app.page import serve
    except ImportError:
        raise ImportError("the app needs gradio: pip install '.[app]' in the repository") from None
    check_port(args.port, args.host or os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
    serve(args.port, args.time_limit, args.host)
    return 0


if __name__ == "__main__":
    sys.exit(main())
