"""Is every certificate true? Pairs that are made to differ, and random mutations, against an independent forward pass.

Run: python scripts/benchmark.py attacks --mutations 5000 --json --out results/attacks.json
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataset_builder.attacks import SMALL, Attack, attacks, mutated
from dataset_builder.judge import answers_of, differ, tracr_logits
from dataset_builder.sampler import sample_programs
from trade_hf.compiled.transforms import permute, rotate, skew
from trade_hf.compiled.weights import TracrWeights
from trade_hf.rasp.evaluate import PADDING, all_inputs, count_inputs, evaluate, random_inputs
from trade_hf.rasp.functions import Value
from trade_hf.rasp.program import Program
from trade_hf.rasp.tables import UnsupportedError
from trade_hf.verification import Verdict, verify, verify_weights

MOST_RUN = 2_000  # inputs of a domain that are all run, by the verifier and by the judge
RUN_BY_TRACR = 3  # of the inputs on which the maker knows that the two differ; each takes a second or two
SAMPLED = 300  # of a larger one, beside those on which the maker knows that the two differ
AT_A_TIME = 50  # mutations
BASES = (lambda weights, seed: weights, permute, rotate, skew)


@dataclass(frozen=True)
class Mutations:
    """A batch of random mutations, by number."""

    number: int
    seed: int
    count: int


def items_of(mutations: int, seed: int) -> list[Attack | Mutations]:
    """All attacks, and then the mutations in batches."""
    starts = range(0, mutations, AT_A_TIME)
    return [*attacks(), *(Mutations(n, seed, min(AT_A_TIME, mutations - n)) for n in starts)]


def row_of(item: Attack | Mutations, number: int = 0) -> dict[str, Any]:
    """What is found of one attack, or of one batch of mutations. `number`, its place in the list, is not used."""
    return attack_row(item) if isinstance(item, Attack) else mutations_row(item)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Totals, and the table of attacks."""
    table = [{k: v for k, v in row.items() if k != "of"} for row in rows if "kind" in row]
    batches = [row for row in rows if "kind" not in row]
    differing = [row for row in table if row["differs_float32"] or row["differs_float64"] or row["differs_tracr"]]
    return {
        "attacks": len(table),
        "differing": len(differing),
        "certified": sum(row["certified"] for row in table),
        "wrong": sum(row["wrong"] for row in table),
        "mutations": sum(row["count"] for row in batches),
        "mutations_certified": sum(row["certified"] for row in batches),
        "mutations_wrong": sum(row["wrong"] for row in batches),
        "mutations_by_status": dict(sum((Counter(row["by_status"]) for row in batches), Counter())),
        "table": table,
    }


def attack_row(attack: Attack, with_tracr: bool = True) -> dict[str, Any]:
    """What the verifier says of one pair, and whether the pair differs: in each precision, and by tracr's code."""
    compiled = attack.program if isinstance(attack.program, TracrWeights) else attack.domain.compile(attack.program)
    inputs, known = _inputs(attack), attack.triggers[:RUN_BY_TRACR]
    values = compiled.output_values, attack.model.output_values
    meant = (
        [_in_rasp(attack, tokens) for tokens in inputs] if attack.is_rasp else answers_of(compiled, inputs, np.float64)
    )
    found = {
        f"differs_{dtype.__name__}": any(map(_differ(values), meant, answers_of(attack.model, inputs, dtype)))
        for dtype in (np.float32, np.float64)
    }
    by_tracr = [tracr_logits(attack.model, tokens) for tokens in known] if with_tracr else []
    found["differs_tracr"] = any(map(_differ(values), meant[: len(known)], by_tracr))
    verdict = _verdict(attack.program, attack.model)
    return {
        "kind": attack.kind,
        "basis": attack.basis,
        "size": attack.domain.name,
        **found,
        "status": verdict.status.value,
        "certified": verdict.is_verified,
        "wrong": verdict.is_verified and any(found.values()),
    }


def _differ(values: tuple[tuple | None, tuple | None]) -> Any:
    return lambda meant, given: differ(meant, given, values)


def _verdict(program: Program | TracrWeights, model: TracrWeights) -> Verdict:
    check: Any = verify_weights if isinstance(program, TracrWeights) else verify
    return check(program, model, limit=MOST_RUN, samples=SAMPLED)


def _inputs(attack: Attack) -> list[tuple[Value, ...]]:
    """Those that the attack names, then all others or a sample of them."""
    vocab, length = attack.domain.vocab, attack.domain.length
    is_small = count_inputs(len(vocab), length) <= MOST_RUN
    codes = all_inputs(len(vocab), length) if is_small else random_inputs(len(vocab), length, SAMPLED, 0)
    return [*attack.triggers, *(tuple(vocab[code] for code in row[row != PADDING].tolist()) for row in codes)]


def _in_rasp(attack: Attack, tokens: tuple[Value, ...]) -> np.ndarray:
    """[position, 1] the numbers that RASP gives."""
    assert isinstance(attack.program, Program)
    vocab = attack.domain.vocab
    codes = np.array([[*map(vocab.index, tokens)]])
    return evaluate(attack.program, codes, vocab, attack.domain.length).codes[0, : len(tokens), None].astype(np.float64)


def mutations_row(batch: Mutations) -> dict[str, Any]:
    """How many of a batch of mutated models are certified, and how many of these differ from their program."""
    inputs = [tuple(row[row != PADDING].tolist()) for row in all_inputs(len(SMALL.vocab), SMALL.length)]
    programs = sample_programs(f"mutations-{batch.seed}-{batch.number}")
    rng = np.random.default_rng([batch.seed, batch.number])
    statuses: Counter[str] = Counter()
    certified = wrong = count = 0
    for number, sample in enumerate(programs):
        if count == batch.count:
            break
        try:
            compiled = SMALL.compile(sample.spelled)
        except UnsupportedError:  # not over fewer tokens
            continue
        count += 1
        model = mutated(BASES[number % len(BASES)](compiled, number), rng)
        verdict = verify(sample.spelled, model, limit=1 if number % 3 else MOST_RUN, samples=20)
        statuses[verdict.status.value] += 1
        if verdict.is_verified:
            certified += 1
            meant = answers_of(compiled, inputs, np.float64)
            is_same = _differ((compiled.output_values, model.output_values))
            wrong += any(
                is_same(one, other)
                for dtype in (np.float32, np.float64)
                for one, other in zip(meant, answers_of(model, inputs, dtype), strict=True)
            )
    return {"count": count, "certified": certified, "wrong": wrong, "by_status": dict(statuses)}
