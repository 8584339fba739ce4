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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
DOCUMENTS = ("README.md", "docs/figures.md", "model_card.md")
MARK = re.compile(r"<!--([\w.-]+)-->(.*?)<!--/-->", re.DOTALL)
# What each file of `evaluate.py --all` is about.
VARIANTS = {
    "test-permuted": "test, 3 to 10 lines, in a random order",
    "test-rotated": "test, in a random basis",
    "test_long-permuted": "11 to 15 lines, in a random order",
    "test_long-rotated": "11 to 15 lines, in a random basis",
    "library": "Tracr's own programs",
    "test-compressed": "test, compressed to the dimensions that are read",
    "test-noisy-0.0003": "test, noise of 0.03 %",
    "test-noisy-0.001": "test, noise of 0.1 %",
    "test-noisy-0.003": "test, noise of 0.3 %",
    "test-noisy-0.01": "test, noise of 1 %",
    "test-noisy-rotated-0.001": "test, in a random basis, noise of 0.1 %",
    "test-noisy-rotated-0.01": "test, in a random basis, noise of 1 %",
}
CURVES = ("training-cpu", "training-cpu-2", "training-cpu-3")  # one run after the other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    stale = [name for name in DOCUMENTS if render(ROOT / name, write=not args.check)]
    if args.check and stale:
        sys.exit(f"figures differ from results/ in {', '.join(stale)}: run python scripts/render_figures.py")


def render(path: Path, write: bool, results: Path = RESULTS) -> bool:
    """Whether the document's figures differ from the results; rewrites them if `write`."""
    text = path.read_text()
    fresh = MARK.sub(lambda match: f"<!--{match[1]}-->{figure(match[1], results)}<!--/-->", text)
    if write and fresh != text:
        path.write_text(fresh)
    return fresh != text


def figure(name: str, results: Path = RESULTS) -> str:
    """A figure as shown: `test.NAME` a share in per cent, `test.NAME.interval` its interval; `table.NAME` a table; else
    `STUDY.NAME`, in per cent where it has an interval, and `STUDY.NAME.interval`."""
    study, key, *rest = name.split(".")
    if study == "table":
        return f"\n{TABLES[key](results)}\n"
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


def curve(results: Path = RESULTS) -> str:
    """Loss and exact match on validation programs along the training runs, from what each of them wrote."""
    lines = ["| run | step | validation loss | `free_running_exact` on validation | |", "|---|---|---|---|---|"]
    for number, name in enumerate(CURVES, 1):
        rows = [json.loads(line) for line in (results / f"{name}.jsonl").read_text().splitlines()]
        for row in rows:
            if "eval_loss" in row:
                share = row["eval_free_running_exact"]
                bar = "█" * round(20 * share)
                lines.append(f"| {number} | {row['step']:,} | {row['eval_loss']:.3f} | {100 * share:.1f} % | {bar} |")
    return "\n".join(lines)


def by_lines(results: Path = RESULTS) -> str:
    """Exact match by the number of lines of the program."""
    shares = _load("test-permuted", results)["by_lines"]
    greedy, verified = shares["free_running_exact"], shares["decompiled_exact"]
    lines = ["| lines | programs | `free_running_exact` | `decompiled_exact` |", "|---|---|---|---|"]
    for count, row in greedy.items():
        lines.append(f"| {count} | {row['n']} | {100 * row['share']:.0f} % | {100 * verified[count]['share']:.0f} % |")
    return "\n".join(lines)


def failures(results: Path = RESULTS) -> str:
    """What verified decoding did not bring back exactly: of each kind of model the shortest, of Tracr's own all."""
    kinds = {what: _load(name, results) for name, what in VARIANTS.items()}
    found = [_shortest_failure(what, kind) for what, kind in kinds.items() if kind.get("failures")]
    tracr = [
        f"`{item['name']}` of `tracr.compiler.test_cases` ({item['lines']} lines): {item['certificate']}"
        for item in _load("library", results)["programs"]
        if not item["certified"]
    ]
    return "\n".join(f"- {text}" for text in found + tracr)


def _shortest_failure(what: str, kind: dict[str, Any]) -> str:
    """A program, and as comments the lines in which what came back differs."""
    shortest = min(kind["failures"], key=lambda item: item["true"].count("\n"))
    true = shortest["true"].strip()
    others = [f"# {line}" for line in shortest["decompiled"].strip().splitlines() if line not in true.splitlines()]
    count = f"{len(kind['failures'])} of {kind['n']:,}"
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
    columns = ("free_running_exact", "lifted_exact", "decompiled_exact", "certified_equivalence")
    lines = [
        "| models | programs | greedy, by the network | read from the weights | both, verified | proven |",
        "|---|---|---|---|---|---|",
    ]
    for name, what in VARIANTS.items():
        row = _load(name, results)
        shares = [f"{100 * row[column]:.1f} %" if column in row else "–" for column in columns]
        lines.append(f"| {what} | {row['n']:,} | {' | '.join(shares)} |")
    return "\n".join(lines)


def _indented(text: str) -> str:
    """As a block of Python inside a list."""
    return "\n".join(f"  {line}".rstrip() for line in f"```python\n{text.strip()}\n```".splitlines())


TABLES: dict[str, Callable[[Path], str]] = {
    "curve": curve,
    "by_lines": by_lines,
    "failures": failures,
    "methods": methods,
    "variants": variants,
}


def _load(study: str, results: Path) -> dict[str, Any]:
    return json.loads((results / f"{study}.json").read_text())


if __name__ == "__main__":
    main()
