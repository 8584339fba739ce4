"""The package's own papers: one version everywhere, types that checkers see, words that speak of the project alone."""

import importlib
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import trade_hf

ROOT = Path(__file__).resolve().parent.parent
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
TEXTS = [name for name in TRACKED if Path(name).suffix in {".py", ".md", ".sh", ".yaml", ".toml", ".cff", ".txt", ""}]

# Words about how work is organised say nothing to a user. Pytest's and Gradio's sessions are other things.
ORGANISATION = [
    r"\b(first|second|last|this|next|previous|\w+th) session\b",
    r"\bissues? #?\d",
    r"\ba helper\b.{0,20}\b(read|found|wrote|audit)",
    r"\bhelper's (audit|work|clone)\b",
    r"\blent (machine|gpu)\b",
]


def test_the_version_is_one():
    assert trade_hf.__version__ == yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version("trade-hf")


def test_types_are_visible():
    assert (ROOT / "trade_hf" / "py.typed").is_file()


@pytest.mark.parametrize("pattern", ORGANISATION)
def test_no_text_speaks_of_how_the_work_was_organised(pattern):
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name in TEXTS
        if name != "tests/test_package.py"
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line, re.IGNORECASE)
    ]
    assert not found


def test_the_documentation_is_built_without_a_warning(tmp_path):
    call = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    pages = {path.parent.name for path in (tmp_path / "site").glob("*/index.html")}
    assert pages >= {"use", "figures", "experiments", "reference"}


def test_the_reference_names_what_there_is():
    text = (ROOT / "docs" / "reference.md").read_text()
    for module, options in re.findall(r"^::: (\S+)\n(?:    options:\n      members: \[(.*)\]\n)?", text, re.MULTILINE):
        found = importlib.import_module(module)
        assert all(hasattr(found, name) for name in options.split(", ") if name), (module, options)
