"""What the tracr package makes of a program on every input: the judge of our verdicts, made without our evaluator."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from trade_hf.compiled.bridge import from_tracr_model, to_tracr
from trade_hf.rasp.functions import Value
from trade_hf.rasp.program import Program

Outputs = list[list[Any]]  # for each input the value at each position, None where there is none


def outputs_in_rasp(program: Program, vocab: tuple[Value, ...], max_seq_len: int, causal: bool = False) -> Outputs:
    """By tracr's evaluator of RASP, or the one with causal masks."""
    from tracr.rasp import causal_eval, rasp

    run, sop = (causal_eval if causal else rasp).evaluate, to_tracr(program)
    return [run(sop, tokens) for tokens in inputs(vocab, max_seq_len)]


def outputs_of_model(program: Program, vocab: tuple[Value, ...], max_seq_len: int, causal: bool = False) -> Outputs:
    """By the model that tracr compiles, run by tracr on all inputs of one length at once. Categorical outputs are None
    where no output direction is on."""
    from tracr.compiler import compiling

    model = compiling.compile_rasp_to_model(to_tracr(program), set(vocab), max_seq_len, causal=causal)
    weights, encode = from_tracr_model(model), model.input_encoder.encode
    found: Outputs = []
    for _, same_length in itertools.groupby(inputs(vocab, max_seq_len), len):
        tokens = np.array([encode([model.input_encoder.bos_token, *one]) for one in same_length])
        given = model.forward(model.params, tokens)
        logits = np.asarray(given.transformer_output.output)[:, 1:] @ weights.unembedding
        decoded = np.asarray(given.unembedded_output)[:, 1:]
        if weights.output_values is None:
            found += logits[..., 0].tolist()
            continue
        for codes, on in zip(decoded, logits.max(-1) > 0.5, strict=True):
            values = model.output_encoder.decode(codes.tolist())
            found.append([value if is_on else None for value, is_on in zip(values, on, strict=True)])
    return found


def inputs(vocab: tuple[Value, ...], max_seq_len: int) -> Iterator[list[Value]]:
    """Every sequence of every length from 1 to the longest."""
    for length in range(1, max_seq_len + 1):
        yield from map(list, itertools.product(vocab, repeat=length))


def differing(first: Outputs, second: Outputs, tolerance: float) -> int:
    """On how many inputs two outputs differ; numbers by more than the tolerance."""
    return sum(not all(map(lambda a, b: equal(a, b, tolerance), *pair)) for pair in zip(first, second, strict=True))


def equal(first: Any, second: Any, tolerance: float) -> bool:
    """Of two values; numbers within the tolerance."""
    if isinstance(first, int | float) and isinstance(second, int | float):
        return abs(first - second) <= tolerance
    return first == second
