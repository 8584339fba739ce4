"""Write the figures of `results/` into the documents: pages of docs/, a section of README.md, one of model_card.md.

Run: python scripts/render_figures.py            (rewrites the documents)
     python scripts/render_figures.py --check    (fails if a document shows other figures)
The text around the figures is in scripts/figures/, as Jinja templates; the tables are in scripts/figure_tables.py.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import jinja2
from figure_tables import functions

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
PLOT = ROOT / "docs" / "network.png"
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "figures"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True)
class Document:
    """A document, and the template of all of it or of the section under one heading."""

    path: str
    template: str
    heading: str | None = None


DOCUMENTS = (
    Document("docs/figures.md", "figures.md"),
    Document("docs/failures.md", "failures.md"),
    Document("docs/training.md", "training.md"),
    Document("README.md", "readme.md", "How well it does"),
    Document("model_card.md", "card.md", "Figures"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    stale = [document.path for document in DOCUMENTS if render(ROOT / document.path, write=not args.check)]
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
    """Whether a document's figures differ from the results; rewrites them if `write`. False for one without figures."""
    document = next((item for item in DOCUMENTS if ROOT / item.path == path), None)
    if document is None:
        return False
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rendered = TEMPLATES.get_template(document.template).render(functions(results))
    fresh = rendered if document.heading is None else with_section(text, document.heading, rendered)
    if write and fresh != text:
        path.write_text(fresh, encoding="utf-8")
    return fresh != text


def with_section(text: str, heading: str, section: str) -> str:
    """A document with another text under one of its `##` headings. Raises ValueError where it has no such heading."""
    found = re.search(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"expected a section '## {heading}' to write figures into, found none")
    return f"{text[: found.start()]}## {heading}\n\n{section.strip()}\n\n{text[found.end() :]}"


if __name__ == "__main__":
    main()
