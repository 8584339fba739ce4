"""What is read of the hidden units of a circuit: whether they write a number, and how their values are read."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from trade_hf.circuit.circuit import Block, Circuit, Head

NOTHING = 1e-3  # products up to this are none
NEAR = 0.1  # of a product, where it should be a whole number


class Futures:
    """Readers of a circuit's writers.

    Numbers are compared with thresholds, added up by two units of opposite signs, or are the output (arXiv:2301.05062
    section 3). Values are what sequence maps, keys and outputs read as 0 or 1.
    """

    def __init__(self, circuit: Circuit, is_categorical: bool) -> None:
        self.circuit, self.is_categorical = circuit, is_categorical
        self.size = len(circuit.writers.kind)
        self.at = {
            (block.layer, unit): block.out + place
            for block in circuit.blocks
            for place, members in enumerate(block.members)
            for unit in members
        }

    @cached_property
    def are_numbers(self) -> np.ndarray:
        """[writer] whether anything reads it as a number, directly or where a head moves it."""
        found = np.zeros(self.size, bool)
        if not self.is_categorical:
            found |= np.abs(self.circuit.outputs).max(0) > NOTHING
        for part in reversed(self.circuit.parts):
            if isinstance(part, Head):
                found[part.values] |= found[part.out : part.out + len(part.values)]
            else:
                read = part.products[_reads_numbers(part)]
                found[: read.shape[1]] |= np.abs(read).max(0, initial=0) > NOTHING
        return found

    def is_number(self, layer: int, unit: int) -> bool:
        """Of a hidden unit of the model."""
        writer = self.at.get((layer, unit))
        return writer is not None and bool(self.are_numbers[writer])

    @cached_property
    def readers_of_values(self) -> np.ndarray:
        """[reader, writer] products of all that reads values as 0 or 1."""
        rows = []
        if self.is_categorical:
            shifted = self.circuit.outputs - self.circuit.outputs.min(0) * (len(self.circuit.outputs) > 1)
            rows.append(shifted / max(np.abs(shifted).max(initial=0), 1e-9))
        for part in self.circuit.parts:
            if isinstance(part, Block):
                joins = np.isinf(part.ceiling) & (part.bias < -NEAR)
                rows.append(self._padded(part.products[joins] / -part.bias[joins, None]))
            else:
                scale = max(np.abs(part.products).max(initial=0), np.abs(part.bias).max(initial=0), 1e-9)
                rows.append(self._padded(part.products / scale))
                keys = np.zeros((part.products.shape[1], self.size))
                keys[:, part.keys] = part.products.T / scale
                rows.append(keys)
        return np.concatenate(rows)

    @cached_property
    def readers_of_numbers(self) -> np.ndarray:
        """[reader, writer] products of all that reads numbers."""
        rows = [np.zeros((0, self.size))]
        rows += [self._padded(block.products[_reads_numbers(block)]) for block in self.circuit.blocks]
        return np.concatenate(rows)

    def of(self, layer: int, units: list[int]) -> np.ndarray:
        """[unit, product] what is read of hidden units by what reads values, directly or where a head moves them."""
        return self._of(np.array([self.at.get((layer, unit), -1) for unit in units], int))

    def _of(self, writers: np.ndarray) -> np.ndarray:
        is_there = (writers >= 0)[:, None]
        rows = [self.readers_of_values[:, writers].T * is_there]
        for head in self.circuit.heads:
            if len(writers) and head.out > writers.max():
                place = np.full(self.size, -1)
                place[head.values] = head.out + np.arange(len(head.values))
                moved = np.where(writers >= 0, place[writers], -1)
                if (moved >= 0).any():
                    rows.append(self._of(moved))
        return np.concatenate(rows, 1)

    def as_numbers(self, layer: int, units: list[int]) -> np.ndarray:
        """[unit, product] all that is read of hidden units by what reads numbers."""
        writers = np.array([self.at.get((layer, unit), -1) for unit in units], int)
        return self.readers_of_numbers[:, writers].T * (writers >= 0)[:, None]

    def _padded(self, products: np.ndarray) -> np.ndarray:
        return np.pad(products, ((0, 0), (0, self.size - products.shape[1])))


def _reads_numbers(block: Block) -> np.ndarray:
    """[unit] whether it is a threshold's, or one of two that read the opposite."""
    found = np.isfinite(block.ceiling)
    plain = np.flatnonzero(~found & (np.abs(block.bias) < NEAR) & (np.abs(block.products).max(1, initial=0) > NEAR))
    rows = block.products[plain]
    squares = (rows**2).sum(1)
    apart = squares[:, None] + squares + 2 * rows @ rows.T
    found[plain] |= (apart < NOTHING * np.maximum(squares, 1e-9)).any(1) if len(plain) else False
    return found
