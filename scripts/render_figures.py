"""Write the figures of `results/` into README.md and model_card.md, so that both quote nothing else.

Run: python scripts/render_figures.py            (rewrites the documents)
     python scripts/render_figures.py --check    (fails if a document shows another figure)
A figure stands between `<!--name-->` and `<!--/-->` in the documents.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "model_card.md")
MARK = re.compile(r"<!--([\w.-]+)-->(.*?)<!--/-->")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    stale = [name for name in DOCUMENTS if render(ROOT / name, write=not args.check)]
    if args.check and stale:
        sys.exit(f"figures differ from results/ in {', '.join(stale)}: run python scripts/render_figures.py")


def render(path: Path, write: bool) -> bool:
    """Whether the document's figures differ from the results; rewrites them if `write`."""
    text = path.read_text()
    fresh = MARK.sub(lambda match: f"<!--{match[1]}-->{figure(match[1])}<!--/-->", text)
    if write and fresh != text:
        path.write_text(fresh)
    return fresh != text


def figure(name: str) -> str:
    """A figure as shown: `test.NAME` a share in per cent, `test.NAME.interval` its interval; else `STUDY.NAME`, in per
    cent where it has an interval."""
    study, key, *rest = name.split(".")
    if study == "test":
        result = _load("test-permuted")
        if rest:
            low, high = result["interval_95"][key]
            return f"{100 * low:.1f}–{100 * high:.1f} %"
        return f"{100 * result[key]:.1f} %"
    value = _load(study)[key]
    for part in rest:
        value = value[part]
    if key in _load(study).get("interval_95", {}):
        return f"{100 * value:.1f} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _load(study: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / f"{study}.json").read_text())


if __name__ == "__main__":
    main()
