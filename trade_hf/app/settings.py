"""What a visitor sets beside a program: tokens, the longest input, and how the model is changed. Quick to import."""

from __future__ import annotations

from collections.abc import Callable

from trade_hf.arguments import parse_vocab
from trade_hf.compiled.transforms import add_noise, compress, permute, rotate, skew
from trade_hf.compiled.weights import TracrWeights
from trade_hf.rasp.functions import Value

MAX_CODE = 20_000  # characters
MAX_VOCAB, MAX_LENGTH = 12, 12  # of what is compiled here
FILES = ("model.safetensors", "config.json", "domain.json")  # of a trained model
STATE = ("code", "vocab", "length", "scramble", "tokens")  # what a link holds
SCRAMBLES: dict[str, Callable[[TracrWeights, int], TracrWeights]] = {
    "none": lambda weights, seed: weights,
    "permute": permute,
    "rotate": rotate,
    "skew": skew,
    "compress": lambda weights, seed: compress(weights),
    "noise 0.1 %": lambda weights, seed: add_noise(weights, 0.001, seed),
    "noise 1 %": lambda weights, seed: add_noise(weights, 0.01, seed),
}


def domain(vocab: str, length: float) -> tuple[tuple[Value, ...], int]:
    """What programs run on, as typed: tokens separated by commas, the longest input. Raises ValueError."""
    tokens = named("vocabulary", vocab)
    if len(tokens) > MAX_VOCAB or len(set(tokens)) < len(tokens):
        raise ValueError(f"vocabulary: expected at most {MAX_VOCAB} distinct tokens, got {len(tokens)}: {vocab[:80]}")
    if length not in range(1, MAX_LENGTH + 1):
        raise ValueError(f"longest input: expected 1 to {MAX_LENGTH}, got {length}")
    return tokens, int(length)


def named(what: str, text: str) -> tuple[Value, ...]:
    """Tokens separated by commas. Raises ValueError that says of what."""
    try:
        return parse_vocab(text)
    except ValueError:
        raise ValueError(f"{what}: expected tokens separated by commas, got {text[:80]!r}") from None
