"""Tracr models that were trained further, and models that were trained to be like one, each with its program known.

- `compress`: a learned projection of the residual stream to d dimensions, all else frozen, as in section 5 of
  arXiv:2301.05062: below the dimensions that the model needs, features lie in superposition.
- `retrain`: noise on all weights, then training on the model's own answers.
- `implant`: a transformer trained from scratch to answer like a program and, under interchange interventions, to hold
  each line's value in directions of its own (interchange training, as in arXiv:2407.14494). Other directions may hold
  tokens and positions; a copy of the value there would spoil the answers after an exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from trade_hf.compiled.weights import TracrWeights
from trade_hf.trained.answers import Answers
from trade_hf.trained.config import Config
from trade_hf.trained.domain import Domain
from trade_hf.trained.program import Op, Program
from trade_hf.trained.transformer import Transformer

BATCH = 192  # inputs of one step
RATE = 3e-3
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Retrained:
    """A model at its end.

    Attributes:
      model: the transformer.
      loss: of the last step.
      right: inputs on which all answers are those that were asked for.
      projection: [d_model, dimension] of `compress`.
    """

    model: Transformer
    loss: float
    right: int
    projection: np.ndarray | None = None


def domain_of(weights: TracrWeights) -> Domain:
    """All inputs of a compiled model as token ids, BOS in front, with an answer at each token; the columns of its
    unembedding are the answers. Raises ValueError for a model whose output is a number."""
    if weights.output_values is None:
        raise ValueError("expected a categorical output, got a numerical one")
    return Domain.from_dict(
        {
            "enumerate": {
                "prefix": [weights.vocab.index(weights.bos)],
                "vocab": [weights.vocab.index(token) for token in weights.input_vocab],
                "lengths": [1, weights.max_seq_len],
            },
            "answer": {"positions": {"from": 1}, "columns": len(weights.output_values)},
        }
    )


# ---------------------------------------------------------------- a learned projection


def compress(source: Transformer, domain: Domain, dimensions: int, steps: int = 1_000, seed: int = 0) -> Retrained:
    """A model of another width: what is written is projected by a matrix W, what reads does so by its transpose.

    Args:
      source: without layer norm.
      domain: its inputs and answers.
      dimensions: of the residual stream at the end.
      steps: of training W on the answers and on the stream after each part.
      seed: of the first W and of batches.

    Raises ValueError for a model with layer norm, or for more dimensions than it has.
    """
    if source.config.normalization_type is not None or not 1 <= dimensions <= source.config.d_model:
        raise ValueError(f"expected no layer norm and at most {source.config.d_model} dimensions, got {source!r}")
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(source.config.d_model, dimensions, generator=generator)
    projection = torch.linalg.qr(first)[0].requires_grad_()
    config = Config(**{**vars(source.config), "d_model": dimensions})
    model = Transformer(config, _numpy(projected(source.parameters, projection.detach())))

    def loss(rows: np.ndarray) -> torch.Tensor:
        model.parameters = projected(source.parameters, projection)
        wanted: Tensors = {}
        got: Tensors = {}
        tokens = domain.tokens[rows, : domain.lengths[rows[0]]]
        with torch.no_grad():
            source.run(tokens, cache=wanted)
        logits = model.run(tokens, cache=got)
        streams = [name for name in wanted if "hook_resid" in name]
        apart = sum((got[name] @ projection.T - wanted[name]).square().mean() for name in streams) / len(streams)
        return _cross_entropy(logits, answers[rows], domain) + apart

    answers = Answers.of(source.logits(domain), domain).values
    last = _train([projection], loss, domain, steps, seed)
    made = Transformer(config, _numpy(projected(source.parameters, projection.detach())))
    return Retrained(made, last, _right(made, domain, answers), projection.detach().numpy())


def projected(tensors: Mapping[str, torch.Tensor], projection: torch.Tensor) -> Tensors:
    """Parameters of a model whose stream is another's times a projection [d_model, dimension]."""
    found = {}
    for name, part in tensors.items():
        kind = name.rsplit(".", 1)[1]
        if kind in ("W_E", "W_pos", "W_O", "b_O", "W_out", "b_out"):
            found[name] = part @ projection
        elif kind in ("W_Q", "W_K", "W_V", "W_in", "W_U"):
            found[name] = projection.T @ part
        else:
            found[name] = part
    return found


# ---------------------------------------------------------------- noise, then training


def retrain(source: Transformer, domain: Domain, noise: float, steps: int = 500, seed: int = 0) -> Retrained:
    """A model with normal noise on all weights, trained on the answers that it had.

    Args:
      source, domain: the model, its inputs and answers.
      noise: its standard deviation, in that of each tensor.
      steps: of training.
      seed: of noise and batches.
    """
    answers = Answers.of(source.logits(domain), domain).values
    generator = torch.Generator().manual_seed(seed)
    parameters = {
        name: (part + noise * float(part.std(correction=0)) * torch.randn(part.shape, generator=generator))
        for name, part in source.parameters.items()
    }
    return _trained(Transformer(source.config, _numpy(parameters)), domain, answers, steps, seed)


def _trained(model: Transformer, domain: Domain, answers: np.ndarray, steps: int, seed: int) -> Retrained:
    parameters = [part.requires_grad_() for part in model.parameters.values()]

    def loss(rows: np.ndarray) -> torch.Tensor:
        logits = model.run(domain.tokens[rows, : domain.lengths[rows[0]]])
        return _cross_entropy(logits, answers[rows], domain)

    last = _train(parameters, loss, domain, steps, seed)
    made = Transformer(model.config, _numpy(model.parameters))
    return Retrained(made, last, _right(made, domain, answers))


# ---------------------------------------------------------------- interchange training


@dataclass(frozen=True)
class Site:
    """Where a line is to be held: directions `start` to `end` of the residual stream at a hook."""

    line: int
    hook: str
    start: int
    end: int


def sites(program: Program, config: Config) -> tuple[Site, ...]:
    """A site for each s-op but the output, by how many selectors lie before it: directions of its own after a layer;
    for what is gathered, after its attention.

    Raises ValueError where the model has too few layers or too few directions.
    """
    depths: list[int] = []
    for line in program.lines:
        before = max([depths[argument] for argument in line.args if argument >= 0], default=0)
        depths.append(before + (line.op.takes_selector[:1] == (True,) and not line.op.gives_selector))
    held = [n for n, line in enumerate(program.lines[:-1]) if not line.op.gives_selector]
    width = config.d_model // max(2 * len(held), 1)  # half of the stream belongs to no line
    if max(depths, default=0) > config.n_layers or (held and width < 2):
        raise ValueError(f"expected a model of more layers or directions for {len(held)} lines, got {config}")
    return tuple(
        Site(n, f"blocks.{max(depths[n], 1) - 1}.{_part(program, n, config)}", place * width, (place + 1) * width)
        for place, n in enumerate(held)
    )


def _part(program: Program, number: int, config: Config) -> str:
    is_gathered = program.lines[number].op is Op.AGGREGATE and not config.attn_only
    return "hook_resid_mid" if is_gathered else "hook_resid_post"


def implant(program: Program, config: Config, domain: Domain, steps: int = 2_000, seed: int = 0) -> Retrained:
    """A model that was trained to answer like a program, and to hold each line at its site and nowhere else.

    Two losses: of answers; and of answers with a site exchanged for another input's, which are to be the program's with
    that line's values exchanged.

    Args:
      program: its answers are columns.
      config, domain: of the model; the program's inputs.
      steps: of training.
      seed: of first weights, pairs of inputs and batches.
    """
    rng = np.random.RandomState(seed)
    tensors = {name: _first(name, shape, rng) for name, shape in config.shapes().items()}
    model = Transformer(config, tensors)
    parameters = [part.requires_grad_() for part in model.parameters.values()]
    values, places = program.evaluate_all(domain.tokens), sites(program, config)
    base = np.where(domain.is_answer, program.evaluate(domain.tokens), np.nan)

    def loss(rows: np.ndarray) -> torch.Tensor:
        length = domain.lengths[rows[0]]
        tokens, partner = domain.tokens[rows, :length], rng.permutation(rows)
        total = _cross_entropy(model.run(tokens), base[rows], domain)
        if not places:
            return total
        cache: Tensors = {}
        model.run(domain.tokens[partner, :length], cache=cache)
        site = places[rng.randint(len(places))]
        theirs = values[site.line]
        assert theirs is not None
        changed = program.evaluate_with(tokens, site.line, theirs[partner, :length])
        wanted = np.where(domain.is_answer[rows, :length], changed, np.nan)
        patch = swap(cache[site.hook], slice(site.start, site.end))
        return total + _cross_entropy(model.run(tokens, patches={site.hook: patch}), wanted, domain)

    last = _train(parameters, loss, domain, steps, seed)
    made = Transformer(config, _numpy(model.parameters))
    return Retrained(made, last, _right(made, domain, base))


def swap(theirs: torch.Tensor, part: slice) -> Callable[[torch.Tensor], torch.Tensor]:
    def patch(own: torch.Tensor) -> torch.Tensor:
        return torch.cat([own[..., : part.start], theirs[..., part], own[..., part.stop :]], -1)

    return patch


def _first(name: str, shape: tuple[int, ...], rng: np.random.RandomState) -> np.ndarray:
    kind = name.rsplit(".", 1)[1]
    if kind == "w":
        return np.ones(shape, np.float32)
    if kind.startswith("b"):
        return np.zeros(shape, np.float32)
    scale = 0.5 if kind in ("W_E", "W_pos") else 0.8 * shape[-2] ** -0.5
    return (scale * rng.randn(*shape)).astype(np.float32)


# ---------------------------------------------------------------- training


def _train(
    parameters: list[torch.Tensor], loss: Callable[[np.ndarray], torch.Tensor], domain: Domain, steps: int, seed: int
) -> float:
    """AdamW on batches of inputs of one length, long ones more often; the loss of the last step."""
    rng = np.random.RandomState(seed)
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    last = torch.zeros(())
    for step in range(steps):
        length = domain.lengths[rng.randint(len(domain))]
        rows = rng.permutation(np.flatnonzero(domain.lengths == length))[:BATCH]
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / 50, 0.05 + 1.9 * (1 - step / steps))
        optimizer.zero_grad()
        last = loss(rows)
        last.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return float(last.detach())


def _cross_entropy(logits: torch.Tensor, answers: np.ndarray, domain: Domain) -> torch.Tensor:
    """The mean loss of [input, position, column] logits where there are [input, position] answers."""
    answers = answers[:, : logits.shape[1]]
    asked = ~np.isnan(answers)
    chosen, codes = logits[torch.tensor(asked)][:, : domain.columns], torch.tensor(answers[asked].astype(np.int64))
    if domain.reads == "positive":
        bits = (codes[:, None] >> torch.arange(domain.columns)) & 1
        return functional.binary_cross_entropy_with_logits(chosen, bits.float())
    return functional.cross_entropy(chosen, codes.clamp(0, domain.columns - 1))


def _right(model: Transformer, domain: Domain, answers: np.ndarray) -> int:
    found = Answers.of(model.logits(domain), domain).values
    return int((~(domain.is_answer & (found != answers)).any(1)).sum())


def _numpy(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: part.detach().numpy().copy() for name, part in tensors.items()}
