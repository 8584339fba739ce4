"""The notebooks of examples/ run from top to bottom, print what is stored in them, and can be installed on Colab."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_prints_what_is_stored_in_it(path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "scripts" / "run_notebooks.py"), "--check", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_there_are_four_and_each_shows_what_it_is_about():
    shown = {path.stem[2:]: "".join(str(cell["outputs"]) for cell in cells(path)) for path in NOTEBOOKS}
    assert shown.keys() == {"your_tracr_model", "transformer_lens", "score_your_decompiler", "trained_model"}
    assert "refuted by" in shown["your_tracr_model"] and "confirmed by ablation" in shown["your_tracr_model"]
    assert "identical weights" in shown["transformer_lens"] and "refuted by" in shown["transformer_lens"]
    assert "'exact_match': 1.0" in shown["score_your_decompiler"]
    assert "equal on all 9,840 inputs" in shown["trained_model"] and "interchange" in shown["trained_model"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_the_package_where_it_is_missing(path):
    first = source(cells(path)[0])
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    target = re.search(r'"install", "-q", "(.*?)"', first)[1]
    assert 'find_spec("trade_hf") is None' in first
    assert target == "." or target[2:-1] in extras
