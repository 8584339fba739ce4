"""Figures and tables of `results/` as Markdown, for the templates in scripts/figures/ (render_figures.py).

A figure that a study does not have is shown as a dash.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from learning import NEXT, ONCE, OURS, PAPER, curve, forecast

NONE = "–"
# Test sets and changes of evaluate.py --all and --interpbench; a study is in results/SET-CHANGE.json.
SETS = {
    "test": "test programs, 3 to 10 lines",
    "test_long": "longer programs, 11 to 15 lines",
    "library": "Tracr's own programs",
    "interpbench": "InterpBench's programs",
}
CHANGES = {
    "tracr": "none",
    "permuted": "random order",
    "rotated": "random orthogonal basis",
    "skewed": "random non-orthogonal basis",
    "edited": "non-orthogonal basis, edited",
    "compressed": "compressed",
    "noisy-0.0003": "noise of 0.03 %",
    "noisy-0.001": "noise of 0.1 %",
    "noisy-0.003": "noise of 0.3 %",
    "noisy-0.01": "noise of 1 %",
    "noisy-rotated-0.001": "orthogonal basis, noise of 0.1 %",
    "noisy-rotated-0.01": "orthogonal basis, noise of 1 %",
}
NETWORKS = (
    ("paper-tracr", "the paper's", "none"),
    ("paper-permuted", "the paper's", "random order"),
    ("test-permuted", "TraDe's, as shipped", "random order"),
    ("once-permuted", "TraDe's, 98 minutes more", "random order"),
    ("muon-permuted", "TraDe's, 278 minutes more", "random order"),
)
# Our own goals for the network alone: figure, study, the same study of networks that were trained further, share.
GOALS = (
    ("teacher_forced_exact", "test-permuted", "permuted", 0.92),
    ("free_running_exact", "test-permuted", "permuted", 0.90),
    ("identical_weights", "test-permuted", "permuted", 0.91),
    ("functional_equivalence", "test-permuted", "permuted", 0.95),
    ("free_running_exact", "test-rotated", "rotated", 0.85),
    ("free_running_exact", "test_long-permuted", "long", 0.40),
)


def functions(results: Path) -> dict[str, Callable[..., Any]]:
    """What the templates call, by name, on the results in a folder."""
    names = (percent, interval, value, has, variants, by_group, networks, goals, methods, trained, learning_curve)
    return {f.__name__: partial(f, results) for f in (*names, failures, unproven, forecast)}


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


# ---------------------------------------------------------------- single figures


def percent(results: Path, study: str, name: str) -> str:
    """A share in per cent: 0.0 and 100.0 of none and of all alone."""
    share = _load(results, study).get(name)
    if share is None:
        return NONE
    is_rounded_away = f"{100 * share:.1f}" in ("0.0", "100.0") and share not in (0, 1)
    return f"{100 * share:.{2 if is_rounded_away else 1}f} %"


def interval(results: Path, study: str, name: str) -> str:
    """The 95 % interval of a share."""
    bounds = _load(results, study).get("interval_95", {}).get(name)
    return NONE if bounds is None else f"{100 * bounds[0]:.1f}–{100 * bounds[1]:.1f} %"


def value(results: Path, study: str, path: str) -> str:
    """A number or a yes or no; `path` has a dot before each key of an inner dictionary."""
    found: Any = _load(results, study)
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    if found is None:
        return NONE
    if isinstance(found, bool):
        return "yes" if found else "no"
    return f"{found:,}" if isinstance(found, int) else f"{found:g}"


def has(results: Path, study: str, name: str) -> bool:
    """Whether a study has a figure."""
    return name in _load(results, study)


# ---------------------------------------------------------------- tables


def variants(results: Path) -> str:
    """Every test set and change: the network alone, the weights alone, and both with verification."""
    columns = {
        "free_running_exact": "network alone, exact",
        "lifted_exact": "weights alone, exact",
        "decompiled_exact": "both, exact",
        "certified_equivalence": "proven",
        "equivalent_in_one_precision": "equal in one precision",
        "equivalent_but_for_none": "equal but for None",
    }
    rows = [
        [SETS[split], CHANGES[change], f"{study['n']:,}", *(percent(results, name, column) for column in columns)]
        for name, split, change, study in _studies(results)
    ]
    return table(["models", "change", "number", *columns.values()], rows)


def by_group(results: Path, grouping: str, heading: str) -> str:
    """Exact match by the number of lines of the program, or of the programs with an operation."""
    shares = _load(results, "test-permuted")[grouping]
    network, verified = shares["free_running_exact"], shares["decompiled_exact"]
    rows = [
        [
            group if group.isdigit() else f"`{group}`",
            f"{row['n']:,}",
            f"{100 * row['share']:.0f} %",
            f"{100 * verified[group]['share']:.0f} %",
        ]
        for group, row in network.items()
    ]
    return table([heading, "programs", "`free_running_exact`", "`decompiled_exact`"], rows)


def networks(results: Path) -> str:
    """The paper's model and ours: greedy programs on the same test split."""
    columns = ("free_running_exact", "identical_weights", "functional_equivalence", "greedy_read_exact")
    rows = [
        [network, change, value(results, name, "n")]
        + [f"{percent(results, name, column)} ({interval(results, name, column)})" for column in columns]
        for name, network, change in NETWORKS
    ]
    return table(["network", "change", "programs", *(f"`{column}`" for column in columns)], rows)


def goals(results: Path) -> str:
    """What the network alone reaches of our goals."""
    rows = []
    for name, shipped, further, share in GOALS:
        split, _, change = shipped.partition("-")
        studies = (shipped, f"once-{further}", f"muon-{further}")
        reached = [percent(results, study, name) for study in studies]
        rows.append([f"`{name}`", SETS[split], CHANGES[change], f"{100 * share:.0f} %", *reached])
    return table(["figure", "models", "change", "goal", "as shipped", "98 minutes more", "278 minutes more"], rows)


def methods(results: Path) -> str:
    """Every decompiler that was scored by `evaluate.py --method`, the best first."""
    found = [json.loads(path.read_text()) for path in sorted((results / "methods").glob("*.json"))]
    rows = []
    for row in sorted(found, key=lambda row: -row["exact"]):
        shares = [
            f"{100 * row[name]:.1f} % ({100 * low:.0f}–{100 * high:.0f})"
            for name in ("exact", "equivalent")
            for low, high in [row["interval_95"][name]]
        ]
        change = CHANGES.get(row["variant"], row["variant"])
        rows.append([f"`{row['method']}`", change, row["n"], *shares, f"{row['seconds']['median']:g}"])
    return table(["method", "change", "programs", "exact", "equivalent", "median seconds"], rows)


def trained(results: Path) -> str:
    """Each trained model: what was found, how long it took, and how far the model works as the program does."""
    rows = []
    for row in _load(results, "trained")["rows"]:
        accuracies = row.get("interchange")
        lowest = NONE if not accuracies else f"{100 * accuracies[0]:.0f} %"
        agreeing = f"{row['agreeing']:,} of {row['inputs']:,}"
        proven = "yes" if row["proven"] else "no"
        rows.append([f"`{row['model']}`", row["task"], agreeing, proven, row["lines"], f"{row['seconds']:.0f}", lowest])
    heads = ["model", "task", "equal on inputs", "proven", "lines", "seconds", "lowest interchange accuracy"]
    return table(heads, rows)


def learning_curve(results: Path) -> str:
    """Loss and exact match on validation programs along the training runs, ours and the paper's."""
    names = {name: str(number) for number, name in enumerate(NEXT, 1)} | dict.fromkeys(PAPER, "the paper's")
    names |= {name: f"{len(OURS)}, then 98 minutes" for name in ONCE if name not in OURS}
    once = [point for point in curve(ONCE, results) if point.run not in OURS]
    rows = [
        [
            names[point.run],
            f"{point.step:,}",
            f"{point.loss:.3f}",
            f"{100 * point.exact:.1f} %",
            "█" * round(20 * point.exact),
            NONE if point.long is None else f"{100 * point.long:.1f} %",
        ]
        for point in (*curve(NEXT, results), *once, *curve(PAPER, results))
    ]
    return table(["run", "step", "validation loss", "exact on validation", "", "exact, 11 to 15 lines"], rows)


# ---------------------------------------------------------------- failures


def failures(results: Path) -> list[dict[str, Any]]:
    """For each study with failures: what it is of, how many there are, and the shortest, with the lines that differ."""
    found = []
    for _, split, change, study in _studies(results):
        if study.get("decompiled_failures"):
            shortest = min(study["decompiled_failures"], key=lambda item: item["true"].count("\n"))
            true = shortest["true"].strip().splitlines()
            others = [f"# {line}" for line in shortest["decompiled"].strip().splitlines() if line not in true]
            found.append(
                {
                    "about": f"{SETS[split].capitalize()}; change: {CHANGES[change]}",
                    "count": f"{study['decompiled_failed']} of {study['n']:,}",
                    "status": shortest["status"],
                    "code": "\n".join([*true, *others]),
                }
            )
    return found


def unproven(results: Path) -> str:
    """Programs of Tracr and InterpBench that are not proven, with what is said of each."""
    rows = [
        [SETS[split], CHANGES[change], f"`{item['name']}`", item["certificate"].replace("|", "\\|")]
        for _, split, change, study in _studies(results)
        for item in study.get("programs", ())
        if not item["certified"]
    ]
    return table(["models", "change", "program", "certificate"], rows)


def _studies(results: Path) -> list[tuple[str, str, str, dict[str, Any]]]:
    """Name, test set, change and result of each study that was run."""
    named = [(f"{split}-{change}", split, change) for split in SETS for change in CHANGES]
    named = [("library", *item[1:]) if item[0] == "library-permuted" else item for item in named]
    return [(*item, _load(results, item[0])) for item in named if (results / f"{item[0]}.json").exists()]


def _load(results: Path, study: str) -> dict[str, Any]:
    return json.loads((results / f"{study}.json").read_text())
