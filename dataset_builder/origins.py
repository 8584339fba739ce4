"""Where each line is in a model that we compiled and changed ourselves: the truth for `trade_hf/provenance.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from trade_hf.compiled.compiler import owners_of
from trade_hf.compiled.weights import TracrWeights
from trade_hf.rasp.program import Op, Program


def true_places(
    program: Program, compiled: TracrWeights, change: Callable[[TracrWeights], TracrWeights]
) -> dict[int, set[tuple]]:
    """For each line but selects, its ("head", layer, head) and ("mlp", layer, unit) in `change(compiled)`.

    The parts are tagged in the biases of the queries and of the hidden units, which Tracr leaves 0, and followed.
    """
    tensors = dict(compiled.tensors)
    for layer in range(compiled.num_layers):
        prefix = f"transformer/layer_{layer}/"
        heads = np.arange(compiled.num_heads, dtype=np.float32).repeat(compiled.key_size)
        tensors[f"{prefix}attn/query/b"] = heads
        tensors[f"{prefix}mlp/linear_1/b"] = np.arange(compiled.mlp_size, dtype=np.float32)
    tagged = change(replace(compiled, tensors=tensors))
    places: dict[int, set[tuple]] = {n: set() for n in program.live_lines if program.lines[n].op is not Op.SELECT}
    for layer, owners in enumerate(owners_of(program, compiled)):
        heads, units = (tagged.layer(layer, name).tolist() for name in ("attn/query/b", "mlp/linear_1/b"))
        for head, line in enumerate(owners.heads):
            places[line].add(("head", layer, heads[:: compiled.key_size].index(head)))
        for unit, lines in enumerate(owners.units):
            for line in lines:
                places[line].add(("mlp", layer, units.index(unit)))
    return places
