"""Changes of a model. Another order, another basis of the residual stream and edits of weights that cancel out leave
its function as it was; fewer dimensions do so as long as all that is read fits into them; noise does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from trade_hf.compiled.weights import UNEMBED, TracrWeights

READERS = ("attn/query/w", "attn/key/w", "attn/value/w", "mlp/linear_1/w")  # [d_model, unit]
READ = 1e-4  # of a singular value of all that reads: something does
WRITERS = ("attn/linear/w", "attn/linear/b", "mlp/linear_2/w", "mlp/linear_2/b")  # [unit, d_model]


def permute(weights: TracrWeights, seed: int) -> TracrWeights:
    """Residual directions, hidden units, head dimensions and heads in a random order."""
    rng = np.random.default_rng(seed)
    moved = with_directions(weights, rng.permutation(weights.d_model))
    tensors = dict(moved.tensors)
    for layer in range(weights.num_layers):
        _reorder_units(tensors, f"transformer/layer_{layer}", weights, rng)
    return replace(moved, tensors=tensors)


def rotate(weights: TracrWeights, seed: int) -> TracrWeights:
    """The residual stream in a random orthogonal basis."""
    rng = np.random.default_rng(seed)
    q, r = np.linalg.qr(rng.standard_normal((weights.d_model, weights.d_model)))
    rotation = (q * np.sign(np.diag(r))).astype(np.float32)
    return change_basis(weights, rotation)


def skew(weights: TracrWeights, seed: int, condition: float = 4.0) -> TracrWeights:
    """The residual stream in a random basis that is not orthogonal: some directions up to `condition` times as long as
    others."""
    return change_coordinates(weights, *_random_basis(np.random.default_rng(seed), weights.d_model, condition))


def rebase_heads(weights: TracrWeights, seed: int) -> TracrWeights:
    """Each head's queries and keys in a random basis of their own, and its values in another."""
    rng = np.random.default_rng(seed)
    tensors = dict(weights.tensors)
    for layer in range(weights.num_layers):
        names = {part: f"transformer/layer_{layer}/attn/{part}" for part in ("query", "key", "value", "linear")}
        for head in range(weights.num_heads):
            own = slice(head * weights.key_size, (head + 1) * weights.key_size)
            (compared, back), (moved, taken) = (_random_basis(rng, weights.key_size) for _ in range(2))
            for part, basis in (("query", compared), ("key", back.T), ("value", moved)):
                for name in (f"{names[part]}/w", f"{names[part]}/b"):
                    tensors[name] = _replaced(tensors[name], own, tensors[name][..., own] @ basis)
            name = f"{names['linear']}/w"
            tensors[name] = _replaced(tensors[name].T, own, (taken @ tensors[name][own]).T).T
    return replace(weights, tensors=tensors)


def scale_units(weights: TracrWeights, seed: int) -> TracrWeights:
    """What each hidden unit reads up to ten times larger or smaller, what it writes as much smaller or larger."""
    rng = np.random.default_rng(seed)
    tensors = dict(weights.tensors)
    for layer in range(weights.num_layers):
        first, second = (f"transformer/layer_{layer}/mlp/linear_{i}" for i in (1, 2))
        scales = np.exp(rng.uniform(-np.log(10), np.log(10), weights.mlp_size)).astype(np.float32)
        tensors[f"{first}/w"] = tensors[f"{first}/w"] * scales
        tensors[f"{first}/b"] = tensors[f"{first}/b"] * scales
        tensors[f"{second}/w"] = tensors[f"{second}/w"] / scales[:, None]
    return replace(weights, tensors=tensors)


def move_constants(weights: TracrWeights, seed: int) -> TracrWeights:
    """A random vector moved from positions to tokens, and another from the position of BOS to BOS."""
    rng = np.random.default_rng(seed)
    tokens, positions = (weights.tensors[name].copy() for name in ("token_embed/embeddings", "pos_embed/embeddings"))
    shared, of_bos = (rng.standard_normal(weights.d_model).astype(np.float32) for _ in range(2))
    tokens += shared
    positions -= shared
    tokens[weights.vocab.index(weights.bos)] += of_bos
    positions[0] -= of_bos
    embeddings = {"token_embed/embeddings": tokens, "pos_embed/embeddings": positions}
    return replace(weights, tensors=weights.tensors | embeddings)


def fold_constant(weights: TracrWeights, seed: int = 0) -> TracrWeights:
    """The embedding of the pad token, which all tokens share, taken from all of them: what readers took of it is in
    their biases, as where TransformerLens folds weights. The unembedding, which has no bias, gets it from the last
    layer."""
    tokens = weights.tensors["token_embed/embeddings"]
    constant = tokens[weights.vocab.index(weights.pad)]
    tensors = weights.tensors | {"token_embed/embeddings": tokens - constant}
    for name in [name for name in tensors if name.endswith(READERS)]:
        bias = f"{name.removesuffix('/w')}/b"
        tensors[bias] = tensors[bias] + constant @ tensors[name]
    last = f"transformer/layer_{weights.num_layers - 1}/mlp/linear_2/b"
    tensors[last] = tensors[last] + constant
    return replace(weights, tensors=tensors)


def scale_logits(weights: TracrWeights, seed: int) -> TracrWeights:
    """All logits of a categorical output times a number from 0.1 to 10, with the same added to all; a numerical output
    stays as it is."""
    if weights.output_values is None:
        return weights
    rng = np.random.default_rng(seed)
    unembedding = weights.unembedding * np.float32(np.exp(rng.uniform(-np.log(10), np.log(10))))
    if unembedding.shape[1] > 1:
        unembedding = unembedding + rng.standard_normal((weights.d_model, 1)).astype(np.float32)
    return replace(weights, unembedding=unembedding)


EDITS = (rebase_heads, scale_units, move_constants, fold_constant, scale_logits)


def edit(weights: TracrWeights, seed: int) -> TracrWeights:
    """One or more of EDITS, drawn at random: other weights that decode to the same on every input."""
    rng = np.random.default_rng(seed)
    chosen = rng.random(len(EDITS)) < 0.5
    chosen[rng.integers(len(EDITS))] = True
    for change, is_chosen in zip(EDITS, chosen.tolist(), strict=True):
        if is_chosen:
            weights = change(weights, seed)
    return weights


def _random_basis(rng: np.random.Generator, size: int, condition: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """A random basis [size, size] of at most this condition number, and its inverse."""
    before, after = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    sizes = np.exp(rng.uniform(-0.5, 0.5, size) * np.log(condition))
    return (before * sizes) @ after, (after.T / sizes) @ before.T


def _replaced(tensor: np.ndarray, columns: slice, part: np.ndarray) -> np.ndarray:
    changed = tensor.copy()
    changed[..., columns] = part
    return changed


def compress(weights: TracrWeights, dimensions: int | None = None) -> TracrWeights:
    """The residual stream projected on `dimensions` directions, in which readers' vectors are largest (SVD).

    As many as `readable_dimensions`, the default, lose nothing. Raises ValueError for less than one or more than there
    are.
    """
    if dimensions is None:
        dimensions = readable_dimensions(weights)
    if not 1 <= dimensions <= weights.d_model:
        raise ValueError(f"expected 1 to {weights.d_model} dimensions, got {dimensions}")
    return change_basis(weights, _principal(weights)[1][:dimensions].T)


def read_directions(weights: TracrWeights) -> np.ndarray:
    """[d_model, direction] orthonormal directions of the residual stream that anything reads."""
    readers = _unit_readers(weights)
    if len(readers) >= weights.d_model:
        sizes, directions = _principal(weights)
    else:  # as in a model with far more directions than its parts read
        sizes, directions = np.linalg.svd(readers, full_matrices=False)[1:]
    return directions[sizes > READ].T.astype(np.float32)


def readable_dimensions(weights: TracrWeights) -> int:
    """How many dimensions of the residual stream anything reads."""
    return read_directions(weights).shape[1]


def _principal(weights: TracrWeights) -> tuple[np.ndarray, np.ndarray]:
    """Singular values, descending, and directions [number, d_model] of all that reads, each vector of length 1."""
    readers = _unit_readers(weights)
    squares, directions = np.linalg.eigh(readers.T @ readers)
    return np.sqrt(np.maximum(squares[::-1], 0)), directions.T[::-1].astype(np.float32)


def _unit_readers(weights: TracrWeights) -> np.ndarray:
    """[reader, d_model] all that reads anything, each vector of length 1."""
    readers = all_readers(residual_vectors(weights))
    lengths = np.linalg.norm(readers, axis=1, keepdims=True)
    return (readers / np.maximum(lengths, 1e-9))[lengths[:, 0] > 0]


def add_noise(weights: TracrWeights, level: float, seed: int) -> TracrWeights:
    """Gaussian noise on every entry of every tensor that holds anything, of `level` times the tensor's root mean
    square."""
    rng = np.random.default_rng(seed)
    tensors = {
        name: (tensor + level * np.sqrt((tensor**2).mean()) * rng.standard_normal(tensor.shape)).astype(np.float32)
        for name, tensor in weights.tensors.items()
    }
    return replace(weights, tensors=tensors, residual_labels=())


def change_basis(weights: TracrWeights, basis: np.ndarray) -> TracrWeights:
    """The model with its residual stream in another basis, [d_model, new d_model], of orthonormal columns."""
    return change_coordinates(weights, basis, basis.T)


def change_coordinates(weights: TracrWeights, writing: np.ndarray, reading: np.ndarray) -> TracrWeights:
    """The model with what it writes times `writing`, [d_model, new d_model], and `reading`, [new d_model, d_model],
    times what it reads; as it was where one is the other's inverse."""
    return _changed(weights, lambda w: (w @ writing).astype(np.float32), lambda w: (reading @ w).astype(np.float32), ())


def with_directions(weights: TracrWeights, some: np.ndarray) -> TracrWeights:
    """The model with some of its residual directions alone, given by their numbers."""
    labels = tuple(weights.residual_labels[i] for i in some) if weights.residual_labels else ()
    return _changed(weights, lambda w: w[..., some], lambda w: w[some], labels)


def residual_vectors(weights: TracrWeights) -> dict[str, np.ndarray]:
    """All that stands in the residual stream, [vector, d_model] float64, by tensor: embeddings, what is read, what is
    written, the unembedding."""
    found = {name: tensor for name, tensor in weights.tensors.items() if name.endswith(("embeddings", *WRITERS))}
    found |= {name: tensor.T for name, tensor in weights.tensors.items() if name.endswith(READERS)}
    found[UNEMBED] = weights.unembedding.T
    return {name: np.atleast_2d(vectors).astype(np.float64) for name, vectors in found.items()}


def all_readers(vectors: dict[str, np.ndarray]) -> np.ndarray:
    """Of `residual_vectors` those that read, the unembedding's among them, [vector, d_model]."""
    return np.concatenate([part for name, part in vectors.items() if name.endswith((*READERS, UNEMBED))])


def _changed(
    weights: TracrWeights,
    write: Callable[[np.ndarray], np.ndarray],
    read: Callable[[np.ndarray], np.ndarray],
    labels: tuple[str, ...],
) -> TracrWeights:
    tensors = {}
    for name, tensor in weights.tensors.items():
        if name.endswith(READERS):
            tensor = read(tensor)
        elif name.endswith((*WRITERS, "embeddings")):
            tensor = write(tensor)
        tensors[name] = tensor
    return replace(weights, tensors=tensors, unembedding=read(weights.unembedding), residual_labels=labels)


def _reorder_units(
    tensors: dict[str, np.ndarray], prefix: str, weights: TracrWeights, rng: np.random.Generator
) -> None:
    hidden = rng.permutation(weights.mlp_size)
    for part, axis in (("mlp/linear_1/w", 1), ("mlp/linear_1/b", 0), ("mlp/linear_2/w", 0)):
        tensors[f"{prefix}/{part}"] = np.take(tensors[f"{prefix}/{part}"], hidden, axis)
    heads, size = rng.permutation(weights.num_heads), weights.key_size
    keys = np.concatenate([head * size + rng.permutation(size) for head in heads])
    values = np.concatenate([head * size + rng.permutation(size) for head in heads])
    for order, parts in ((keys, ("query", "key")), (values, ("value",))):
        for part in parts:
            tensors[f"{prefix}/attn/{part}/w"] = tensors[f"{prefix}/attn/{part}/w"][:, order]
            tensors[f"{prefix}/attn/{part}/b"] = tensors[f"{prefix}/attn/{part}/b"][order]
    tensors[f"{prefix}/attn/linear/w"] = tensors[f"{prefix}/attn/linear/w"][values]
