"""Write the figures of `results/` into the README, docs/figures.md and the model's card, which quote nothing else.

Run: python scripts/render_figures.py            (rewrites the documents)
     python scripts/render_figures.py --check    (fails if a document shows another figure)
A figure stands between `<!--name-->` and `<!--/-->` in the documents; so does a table, as `<!--table.name-->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from learning import NEXT, ONCE, OURS, PAPER, Forecast, curve, forecast

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
DOCUMENTS = ("README.md", "docs/figures.md", "model_card.md")
MARK = re.compile(r"<!--([\w.-]+)-->(.*?)<!--/-->", re.DOTALL)
# What each file of `evaluate.py --all` and `--interpbench` is about.
VARIANTS = {
    "test-permuted": "test, 3 to 10 lines, in a random order",
    "test-tracr": "test, in Tracr's own order",
    "test-rotated": "test, in a random orthogonal basis",
    "test-skewed": "test, in a random basis that is not orthogonal",
    "test_long-permuted": "11 to 15 lines, in a random order",
    "test_long-rotated": "11 to 15 lines, in a random orthogonal basis",
    "test_long-skewed": "11 to 15 lines, in a random basis that is not orthogonal",
    "test_long-compressed": "11 to 15 lines, compressed to the dimensions that are read",
    "test_long-noisy-0.001": "11 to 15 lines, noise of 0.1 %",
    "test_long-noisy-0.01": "11 to 15 lines, noise of 1 %",
    "library": "Tracr's own programs",
    "library-rotated": "Tracr's own programs, in a random orthogonal basis",
    "library-skewed": "Tracr's own programs, in a random basis that is not orthogonal",
    "library-compressed": "Tracr's own programs, compressed to the dimensions that are read",
    "library-noisy-0.001": "Tracr's own programs, noise of 0.1 %",
    "library-noisy-0.01": "Tracr's own programs, noise of 1 %",
    "interpbench-tracr": "InterpBench's programs, as the tracr package compiles them",
    "interpbench-permuted": "InterpBench's programs, in a random order",
    "interpbench-rotated": "InterpBench's programs, in a random orthogonal basis",
    "interpbench-skewed": "InterpBench's programs, in a random basis that is not orthogonal",
    "interpbench-compressed": "InterpBench's programs, compressed to the dimensions that are read",
    "test-compressed": "test, compressed to the dimensions that are read",
    "test-noisy-0.0003": "test, noise of 0.03 %",
    "test-noisy-0.001": "test, noise of 0.1 %",
    "test-noisy-0.003": "test, noise of 0.3 %",
    "test-noisy-0.01": "test, noise of 1 %",
    "test-noisy-rotated-0.001": "test, in a random orthogonal basis, noise of 0.1 %",
    "test-noisy-rotated-0.01": "test, in a random orthogonal basis, noise of 1 %",
}
PLOT = ROOT / "docs" / "network.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    stale = [name for name in DOCUMENTS if render(ROOT / name, write=not args.check)]
    stale += [PLOT.relative_to(ROOT).as_posix()] if plot(write=not args.check) else []
    if args.check and stale:
        sys.exit(f"figures differ from results/ in {', '.join(stale)}: run python scripts/render_figures.py")


def plot(write: bool) -> bool:
    """Whether the picture is of other results; draws it anew if `write`."""
    import plot_network  # with matplotlib, which to publish a card does not take

    is_stale = not PLOT.exists() or plot_network.digest(RESULTS).encode() not in PLOT.read_bytes()
    if write and is_stale:
        plot_network.plot(PLOT, RESULTS)
    return is_stale


def render(path: Path, write: bool, results: Path = RESULTS) -> bool:
    """Whether the document's figures differ from the results; rewrites them if `write`."""
    text = path.read_text()
    fresh = MARK.sub(lambda match: f"<!--{match[1]}-->{figure(match[1], results)}<!--/-->", text)
    if write and fresh != text:
        path.write_text(fresh)
    return fresh != text


def figure(name: str, results: Path = RESULTS) -> str:
    """A figure as shown: `test.NAME` a share in per cent, `test.NAME.interval` its interval; `table.NAME` a table; else
    `STUDY.NAME`, in per cent where it has an interval, and `STUDY.NAME.interval`; of two studies, `permuted.loss`."""
    study, key, *rest = name.split(".")
    if study == "table":
        return f"\n{TABLES[key](results)}\n"
    if study == "forecast":
        return FORECASTS[key](forecast(results))
    if name == "permuted.loss":
        return permuted_loss(results)
    result = _load("test-permuted" if study == "test" else study, results)
    if key in result.get("interval_95", {}):
        low, high = result["interval_95"][key]
        return f"{100 * low:.1f}–{100 * high:.1f} %" if rest else f"{100 * result[key]:.1f} %"
    value = result[key]
    for part in rest:
        value = value[part]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def permuted_loss(results: Path = RESULTS) -> str:
    """By how many points fewer programs are exact in a random order than in Tracr's own."""
    own, permuted = (_load(f"test-{order}", results)["free_running_exact"] for order in ("tracr", "permuted"))
    return f"{100 * (own - permuted):.1f}".replace("-0.0", "0.0")


def learning_table(results: Path = RESULTS) -> str:
    """Loss and exact match on validation programs along the training runs, ours and the paper's."""
    lines = [
        "| run | step | validation loss | `free_running_exact` on validation | | of 11 to 15 lines |",
        "|---" * 6 + "|",
    ]
    names = {name: str(number) for number, name in enumerate(NEXT, 1)} | dict.fromkeys(PAPER, "baseline")
    names |= {name: f"{len(OURS)}, then 98 minutes" for name in ONCE if name not in OURS}
    once = [point for point in curve(ONCE, results) if point.run not in OURS]
    for point in (*curve(NEXT, results), *once, *curve(PAPER, results)):
        share = f"{100 * point.exact:.1f} % | {'█' * round(20 * point.exact)}"
        long = "–" if point.long is None else f"{100 * point.long:.1f} %"
        lines.append(f"| {names[point.run]} | {point.step:,} | {point.loss:.3f} | {share} | {long} |")
    return "\n".join(lines)


def exact_by(grouping: str, heading: str, results: Path = RESULTS) -> str:
    """Exact match by the number of lines of the program, or of the programs that hold an operation."""
    shares = _load("test-permuted", results)[grouping]
    greedy, verified = shares["free_running_exact"], shares["decompiled_exact"]
    lines = [f"| {heading} | `free_running_exact` | `decompiled_exact` |", "|---|---|---|---|"]
    for group, row in greedy.items():
        exact = f"{100 * row['share']:.0f} % | {100 * verified[group]['share']:.0f} %"
        lines.append(f"| {group if group.isdigit() else f'`{group}`'} | {row['n']:,} | {exact} |")
    return "\n".join(lines)


def failures(results: Path = RESULTS) -> str:
    """What verified decoding did not bring back exactly: of each kind of model the shortest; of Tracr's own, what was
    not proven."""
    kinds = {what: _load(name, results) for name, what in VARIANTS.items()}
    found = [_shortest_failure(what, kind) for what, kind in kinds.items() if kind.get("decompiled_failures")]
    tracr = [_not_proven(what, kind) for what, kind in kinds.items() if "programs" in kind]
    return "\n".join(f"- {text}" for text in found + tracr if text)


def _not_proven(what: str, kind: dict[str, Any]) -> str:
    items = [f"`{item['name']}` ({item['certificate']})" for item in kind["programs"] if not item["certified"]]
    return f"{what}: not proven are {', '.join(items)}." if items else ""


def _shortest_failure(what: str, kind: dict[str, Any]) -> str:
    """A program, and as comments the lines in which what came back differs."""
    shortest = min(kind["decompiled_failures"], key=lambda item: item["true"].count("\n"))
    true = shortest["true"].strip()
    others = [f"# {line}" for line in shortest["decompiled"].strip().splitlines() if line not in true.splitlines()]
    count = f"{kind['decompiled_failed']} of {kind['n']:,}"
    text = f"{what}: {count}. The shortest, and as comments how what came back differs; that is {shortest['status']}:"
    code = _indented("\n".join([true, *others]))
    return f"{text}\n\n{code}"


def methods(results: Path = RESULTS) -> str:
    """Every decompiler that was run by `evaluate.py --method`, the best first."""
    found = [json.loads(path.read_text()) for path in sorted((results / "methods").glob("*.json"))]
    lines = ["| method | variant | programs | exact | equivalent | seconds, median |", "|---|---|---|---|---|---|"]
    for row in sorted(found, key=lambda row: -row["exact"]):
        shares = [
            f"{100 * row[name]:.1f} % ({100 * low:.0f}–{100 * high:.0f})"
            for name in ("exact", "equivalent")
            for low, high in [row["interval_95"][name]]
        ]
        seconds = f"{row['seconds']['median']:g}"
        lines.append(f"| `{row['method']}` | {row['variant']} | {row['n']} | {' | '.join(shares)} | {seconds} |")
    return "\n".join(lines)


def variants(results: Path = RESULTS) -> str:
    """Every split and variant: the network alone, the weights alone, and both with verification."""
    exact = ("free_running_exact", "lifted_exact", "decompiled_exact")
    columns = (*exact, "certified_equivalence", "equivalent_in_one_precision", "equivalent_but_for_none")
    heads = "greedy, by the network | read from the weights | both, verified | proven | in one precision | but for None"
    lines = [f"| models | programs | {heads} |", "|---" * 8 + "|"]
    for name, what in VARIANTS.items():
        row = _load(name, results)
        shares = [f"{100 * row[column]:.1f} %" if column in row else "–" for column in columns]
        lines.append(f"| {what} | {row['n']:,} | {' | '.join(shares)} |")
    return "\n".join(lines)


def baseline(results: Path = RESULTS) -> str:
    """The paper's model, trained on our data, and ours: greedy programs on the same test split."""
    columns = ("free_running_exact", "identical_weights", "functional_equivalence", "greedy_read_exact")
    lines = [f"| network | models | programs | {' | '.join(f'`{c}`' for c in columns)} |", "|---" * 7 + "|"]
    for name, network, order in (
        ("paper-tracr", "the paper's", "in Tracr's own order"),
        ("paper-permuted", "the paper's", "in a random order"),
        ("test-permuted", "TraDe's", "in a random order"),
        ("once-permuted", "TraDe's, trained on for 98 minutes", "in a random order"),
        ("muon-permuted", "TraDe's, trained on for 278 minutes", "in a random order"),
    ):
        row = _load(name, results)
        shares = " | ".join(
            figure(f"{name}.{c}", results) + f" ({figure(f'{name}.{c}.interval', results)})" for c in columns
        )
        lines.append(f"| {network} | {order} | {row['n']:,} | {shares} |")
    return "\n".join(lines)


# What the network alone is to reach: figure, study, the same study of networks that were trained on, share.
WANTED = (
    ("teacher_forced_exact", "test-permuted", "permuted", 0.92),
    ("free_running_exact", "test-permuted", "permuted", 0.90),
    ("identical_weights", "test-permuted", "permuted", 0.91),
    ("functional_equivalence", "test-permuted", "permuted", 0.95),
    ("free_running_exact", "test-rotated", "rotated", 0.85),
    ("free_running_exact", "test_long-permuted", "long", 0.40),
)


def wanted(results: Path = RESULTS) -> str:
    """What the network alone reaches of what it is to reach."""
    lines = [
        "| figure | models | wanted | the network that ships | 98 more minutes | 278 more minutes |",
        "|---" * 6 + "|",
    ]
    for name, shipped, further, share in WANTED:
        studies = shipped, f"once-{further}", f"muon-{further}"
        shares = " | ".join(figure(f"{study}.{name}", results) for study in studies)
        lines.append(f"| `{name}` | {VARIANTS[shipped]} | {100 * share:.0f} % | {shares} |")
    return "\n".join(lines)


def _indented(text: str) -> str:
    """As a block of Python inside a list."""
    return "\n".join(f"  {line}".rstrip() for line in f"```python\n{text.strip()}\n```".splitlines())


TABLES: dict[str, Callable[[Path], str]] = {
    "curve": learning_table,
    "by_lines": partial(exact_by, "by_lines", "lines | programs"),
    "by_operation": partial(exact_by, "by_operation", "operation | programs with it"),
    "baseline": baseline,
    "failures": failures,
    "methods": methods,
    "variants": variants,
    "wanted": wanted,
}


FORECASTS: dict[str, Callable[[Forecast], str]] = {
    "slope": lambda fitted: f"{fitted.slope:.2f}",
    "shipped": lambda fitted: f"{fitted.shipped:,}",
    "examples": lambda fitted: f"{fitted.last.examples:,}",
    "exact": lambda fitted: f"{100 * fitted.last.exact:.1f} %",
    "long": lambda fitted: f"{100 * fitted.last.long:.1f} %",
    "examples_95": lambda fitted: f"{fitted.examples(0.95) / 1e6:.1f} million",
    "examples_99": lambda fitted: f"{fitted.examples(0.99) / 1e6:.0f} million",
    "times_95": lambda fitted: f"{fitted.examples(0.95) / fitted.last.examples:.1f}",
    "exact_5_million": lambda fitted: f"{100 * fitted.exact(5e6):.0f} %",
    "long_5_million": lambda fitted: f"{100 * fitted.long(5e6):.0f} %",
    "exact_8_million": lambda fitted: f"{100 * fitted.exact(8e6):.0f} %",
    "long_8_million": lambda fitted: f"{100 * fitted.long(8e6):.0f} %",
}


def _load(study: str, results: Path) -> dict[str, Any]:
    return json.loads((results / f"{study}.json").read_text())


if __name__ == "__main__":
    main()
