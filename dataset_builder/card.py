"""The data set's card: README.md beside the Parquet files, from the template and the reports of what was built."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from dataset_builder.corpus import CONFIGS, HASHED_SPLITS, SPLITS
from dataset_builder.zoo import TRAINED
from trade_hf.files import write_text

TEMPLATE = Path(__file__).parent / "card_template.md"
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}


def write_card(folder: Path) -> None:
    """Write `folder`/README.md for every configuration that is finished there."""
    text = render_card(folder)
    write_text(folder / "README.md", text)


def render_card(folder: Path) -> str:
    """The card of the configurations that are finished under `folder`, from the reports and the data there."""
    reports, trained = _reports(folder, built(folder)), _reports(folder, TRAINED)
    body = TEMPLATE.read_text()
    for place, text in {
        "{sizes}": _sizes(reports),
        "{plots}": "\n\n".join(_plot(name) for name in reports if (folder / "plots" / f"{name}.png").exists()),
        "{distribution}": "\n\n".join(_distribution(folder / name, name) for name in reports),
        "{rejections}": "\n\n".join(_rejections(name, report) for name, report in reports.items()),
        "{trained}": "\n".join(_trained(name, report) for name, report in trained.items()) or "None here.",
    }.items():
        body = body.replace(place, text)
    header = yaml.safe_dump(card_data(reports | trained), sort_keys=False)
    return f"---\n{header}---\n{body}"


def _reports(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The report of each configuration that is finished under `folder`."""
    paths = {name: folder / name / "report.json" for name in names}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def built(folder: Path) -> list[str]:
    """Names of the configurations that are finished under `folder`, smallest first."""
    names = sorted(CONFIGS, key=lambda name: CONFIGS[name].rows)
    return [name for name in names if (folder / name / "report.json").exists()]


def card_data(reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The card's YAML: `load_dataset` finds the files of each configuration and split by it."""
    total = sum(report["rows"] for report in reports.values())
    configs = [
        {
            "config_name": name,
            "data_files": [  # `load_dataset` takes no empty split
                {"split": split, "path": f"{name}/{split}-*.parquet"} for split, n in report["splits"].items() if n
            ],
            **({"default": True} if number == 0 else {}),
        }
        for number, (name, report) in enumerate(reports.items())
        if report["rows"]
    ]
    configs += _all_trained(reports)
    return {
        "license": "apache-2.0",
        "pretty_name": "Tracr RASP: compiled transformers and their programs",
        "language": ["code"],
        "task_categories": ["graph-ml", "text-generation"],
        "annotations_creators": ["machine-generated"],
        "source_datasets": ["original"],
        "tags": ["interpretability", "rasp", "tracr", "weights", "program-synthesis"],
        "size_categories": [next((text for limit, text in SIZES.items() if total < limit), "10M<n<100M")],
        "configs": configs,
    }


def _all_trained(reports: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The configuration `trained`, which holds every part of trained models; none where no part is finished."""
    paths: dict[str, list[str]] = {}
    for name, report in reports.items():
        for split, count in report["splits"].items():
            if name in TRAINED and count:
                paths.setdefault(split, []).append(f"{name}/{split}-*.parquet")
    files = [{"split": split, "path": found} for split, found in paths.items()]
    return [{"config_name": "trained", "data_files": files}] if files else []


def _sizes(reports: dict[str, dict[str, Any]]) -> str:
    lines = [f"| configuration | {' | '.join(SPLITS)} | Parquet |", "|---" * (len(SPLITS) + 2) + "|"]
    for name, report in reports.items():
        counts = " | ".join(f"{report['splits'][split]:,}" for split in SPLITS)
        lines.append(f"| `{name}` | {counts} | {report['bytes'] / 1e6:,.1f} MB |")
    return "\n".join(lines)


def _trained(name: str, report: dict[str, Any]) -> str:
    """What is in one of the configurations of trained models, and what was left out."""
    left_out = ", ".join(f"{why} {count:,}" for why, count in report["left_out"].items()) or "nothing"
    return (
        f"- `{name}`: {report['rows']:,} models ({_shares(list(report['architectures'].items()))}), "
        f"{report['right_on_all_inputs']:,} of them right on all inputs. Left out: {left_out}."
    )


def _plot(name: str) -> str:
    """What scripts/plot_corpus.py drew of a configuration, in words for who cannot see it."""
    return (
        f"![Charts of configuration {name}: shares of programs by number of lines, layers and d_model in train, test "
        f"and test_long; shares of operations; non-zero weights by number of lines.](plots/{name}.png)"
    )


def _distribution(home: Path, name: str) -> str:
    """Shares of program lengths and operations, and the spread of model sizes, in `train`."""
    lengths: Counter[int] = Counter()
    operations: Counter[str] = Counter()
    widths: Counter[int] = Counter()
    layers: Counter[int] = Counter()
    columns = ["num_lines", "operations", "d_model", "num_layers"]
    for path in sorted(home.glob("train-*.parquet")):
        table = pq.read_table(path, columns=columns)
        lengths.update(table["num_lines"].to_pylist())
        for text, count in Counter(table["operations"].to_pylist()).items():
            operations.update({operation: count * n for operation, n in Counter(text.split()).items()})
        widths.update(table["d_model"].to_pylist())
        layers.update(table["num_layers"].to_pylist())
    return "\n".join(
        [
            f"`{name}`, split `train`:\n",
            "| | |",
            "|---|---|",
            f"| lines | {_shares(sorted(lengths.items()))} |",
            f"| operations | {_shares(operations.most_common())} |",
            f"| layers | {_shares(sorted(layers.items()))} |",
            f"| d_model | {min(widths)} to {max(widths)}, median {_median(widths)} |",
        ]
    )


def _shares(counts: list[tuple[Any, int]]) -> str:
    total = sum(count for _, count in counts)
    return ", ".join(f"{what}: {100 * count / total:.1f} %" for what, count in counts)


def _median(counts: Counter[int]) -> int:
    return sorted(counts.elements())[counts.total() // 2]


def _rejections(name: str, report: dict[str, Any]) -> str:
    rejected = report["rejected"]
    tried = report["drawn"] + sum(rejected.values())
    shares = ", ".join(
        f"{reason} {100 * n / tried:.1f} %" for reason, n in sorted(rejected.items(), key=lambda i: -i[1])
    )
    taken = sum(report["splits"][split] for split in HASHED_SPLITS)
    again = report["lines_drawn_again"]
    lines = ", ".join(f"{reason} {n / tried:.2f}" for reason, n in sorted(again.items(), key=lambda i: -i[1]))
    return (
        f"`{name}`: of {tried:,} programs sampled {report['drawn']:,} passed, {report['repeated']:,} of them repeated; "
        f"the corpus takes {taken:,}. Rejected: {shares}. Lines drawn again, a program: {lines}."
    )
