"""The quickstart notebook runs from top to bottom, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).parent.parent / "scripts" / "quickstart.ipynb"
# As a kernel does it: cells share one namespace, and what a cell's last expression gives is shown.
RUN = """
import ast, json, sys
names = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] != "code":
        continue
    body = ast.parse("".join(cell["source"])).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), cell["id"], "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), cell["id"], "eval"), names)
        html = getattr(value, "_repr_html_", lambda: None)()
        print(cell["id"], "shows", "HTML" if html else repr(value))
"""


def test_the_quickstart_notebook_runs(tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, str(NOTEBOOK)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=NOTEBOOK.parent.parent,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("shows HTML") == 3  # a model, a result, a model
    assert "equivalent on all 340 inputs | refuted by" in done.stdout
    assert "'functional_equivalence': 0.8" in done.stdout and "'compiles': 0.8" in done.stdout
    assert (next(tmp_path.rglob("report.html"))).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_notebook_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")
