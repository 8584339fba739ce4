"""A hook of mkdocs: the site's first page is README.md. Of its links to files, only those into docs/ stay."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

README = Path(__file__).resolve().parent.parent / "README.md"


def on_files(files: Files, config: Any) -> Files:
    """The files of docs/, and README.md as index.md."""
    text = re.sub(r"\]\(docs/", "](", README.read_text(encoding="utf-8"))
    text = re.sub(r"\[([^]]+)\]\((?!https?:)([\w.]+)\)", _kept, text)
    files.append(File.generated(config, "index.md", content=text))
    return files


def _kept(link: re.Match[str]) -> str:
    """A link to a page of the site; the words of any other."""
    return link[0] if (README.parent / "docs" / link[2]).exists() else link[1]
