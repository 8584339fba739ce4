"""Publishing: scripts/push_to_hub.py against the tests' Hub, which also fails, drops connections and refuses."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from hub_server import DROP, Blob, Commit, Repo, hub_server

ROOT = Path(__file__).resolve().parent.parent
MODEL, DATASET, METRIC = ("model", "trade-base"), ("dataset", "tracr-rasp"), ("space", "functional_equivalence")


@pytest.fixture(scope="module")
def hub():
    with hub_server() as hub:
        yield hub


@pytest.fixture(scope="module")
def push(hub, publisher):
    return publisher(hub)


@pytest.fixture(autouse=True)
def empty(hub):
    for held in (hub.repos, hub.uploads, hub.faults, hub.requests):
        held.clear()


@pytest.fixture
def corpus(tiny_corpus, tmp_path):
    """Options for the tiny corpus, and `results/` that speak of it; both may be changed."""
    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    shutil.copytree(ROOT / "results", tmp_path / "results")
    shutil.copy(tiny_corpus / "small" / "report.json", tmp_path / "results" / "corpus-small.json")
    return ("--corpus", tmp_path / "corpus", "--results", tmp_path / "results")


def main_of(hub, kind, namespace="trade"):
    """The files on `main`, or None where there is no repository."""
    repo_type, name = kind
    known = (repo_type, f"{namespace}/{name}") in hub.repos
    return hub.files(repo_type, f"{namespace}/{name}") if known else None


def test_a_dry_run_lists_every_file_and_sends_nothing(hub, push, corpus):
    status, out, err = push("--dry-run", "--only", "model,dataset,metric", *corpus, token=None)
    assert (status, err, hub.requests) == (0, "", [])
    assert f"{(ROOT / 'trade_hf/assets/trade-base/model.safetensors').stat().st_size:>15,}  model.safetensors" in out
    assert "small/train-00000-of-00001.parquet" in out and "functional_equivalence.py" in out and ".work" not in out


def test_each_repository_gets_one_commit_and_a_second_push_none(hub, push, corpus):
    for words in ("/commit/", "holds these files already"):
        status, out, err = push("--only", "model,dataset,metric", "--namespace", "lab", *corpus)
        assert (status, err) == (0, "") and out.count(words) == 3
        for kind, name in (MODEL, DATASET, METRIC):
            repo = hub.repos[kind, f"lab/{name}"]
            assert repo.private and len(repo.commits) == 2
    checkpoint = ROOT / "trade_hf" / "assets" / "trade-base"
    model = main_of(hub, MODEL, "lab")
    assert {path.name for path in checkpoint.iterdir()} | {
        "handler.py",
        "requirements.txt",
        "modeling_trade.py",
    } <= set(model)
    assert model["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
    assert b"lab/tracr-rasp" in model["README.md"] and b"trade/tracr-rasp" not in model["README.md"]
    assert b'load_dataset("lab/tracr-rasp"' in main_of(hub, DATASET, "lab")["README.md"]
    assert b'evaluate.load("lab/functional_equivalence")' in main_of(hub, METRIC, "lab")["README.md"]


REFUSED = {
    "no token": ({"token": None}, {}, "there is none: expected HF_TOKEN"),
    "a wrong token": ({"token": "hf_wrong"}, {}, "does not accept the token (401)"),
    "a token that only reads": ({"token": "hf_that_only_reads"}, {}, "the token only reads"),
    "a failing server": ({}, {"GET /api/whoami-v2": 500}, "the Hub fails (500)"),
    "a server that is down": ({}, {"POST .*/create": 503}, "the Hub fails (503); main holds all"),
    "no answer to the commit": ({}, {"POST .*/commit/main": DROP}, "); main holds all"),
    "a failing commit": ({}, {"POST .*/commit/main": 500}, "the Hub fails (500); main holds all"),
    "a forbidden commit": ({}, {"POST .*/commit/main": 403}, "the token may not write there (403)"),
    "a race": ({}, {"POST .*/commit/main": 412}, "someone else has committed meanwhile (412)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_goes_wrong_is_told_in_one_line(hub, push, name):
    options, faults, words = REFUSED[name]
    hub.faults |= faults
    status, _, err = push("--only", "metric", **options)
    assert status == 2 and err.count("\n") == 1 and err.startswith("push_to_hub: ") and words in err
    assert not main_of(hub, METRIC)


def test_a_foreign_namespace_is_refused(hub, push):
    status, _, err = push("--only", "metric", "--namespace", "another")
    assert status == 2 and err.count("\n") == 1 and "another/functional_equivalence: the token may not write" in err
    assert hub.repos == {}


def wait_for(is_so, seconds=60):
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.parametrize("fault", [DROP, 503])
def test_an_upload_that_is_cut_off_is_picked_up(hub, push, corpus, fault, monkeypatch):
    """The fault is given once the other uploads, which run beside it, are there."""
    assert push("--only", "dataset", "--namespace", "lab", *corpus)[0] == 0
    oids = sorted(hub.uploads)
    for held in (hub.repos, hub.uploads, hub.requests):
        held.clear()
    hub.faults[f"PUT /upload/{oids[0]}"] = fault
    monkeypatch.setattr(hub, "before_fault", lambda: wait_for(lambda: sorted(hub.uploads) == oids[1:]))
    status, _, err = push("--only", "dataset", *corpus)
    assert status == 2 and err.count("\n") == 1 and "run the same command again" in err
    assert main_of(hub, DATASET) == {} and sorted(hub.uploads) == oids[1:]
    hub.faults.clear()
    hub.requests.clear()
    assert push("--only", "dataset", *corpus)[::2] == [0, ""]
    assert [line for line in hub.requests if line.startswith("PUT")] == [f"PUT /upload/{oids[0]}"]
    local = {path.relative_to(corpus[1]).as_posix() for path in corpus[1].rglob("*") if path.is_file()}
    assert set(main_of(hub, DATASET)) == local and len(hub.repos["dataset", "trade/tracr-rasp"].commits) == 2


def test_a_client_that_is_killed_while_it_uploads_is_picked_up_by_another(hub, push, publisher, corpus, monkeypatch):
    killed = publisher(hub)

    class Kill(dict):
        def items(self):
            if hub.requests and re.match(r"PUT|.*/objects/batch", hub.requests[-1]):
                killed.process.kill()
                return [("PUT .*", DROP)]
            return []

    with monkeypatch.context() as patch:
        patch.setattr(hub, "faults", Kill())
        with pytest.raises(json.JSONDecodeError):
            killed("--only", "dataset", *corpus)
    assert killed.process.wait(10) == -signal.SIGKILL and main_of(hub, DATASET) == {}
    there = len(hub.uploads)
    hub.requests.clear()
    assert push("--only", "dataset", *corpus)[::2] == [0, ""]
    assert len(hub.uploads) > there and len(hub.repos["dataset", "trade/tracr-rasp"].commits) == 2
    assert sum(line.startswith("PUT") for line in hub.requests) == len(hub.uploads) - there


def test_a_connection_that_ends_once_is_tried_again_by_the_client(hub, push, monkeypatch):
    class Once(dict):
        def items(self):
            return [self.popitem()] if self and hub.requests and "batch" in hub.requests[-1] else []

    monkeypatch.setattr(hub, "faults", Once({"PUT /upload/.*": DROP}))
    assert push("--only", "model")[::2] == [0, ""]
    assert not hub.faults and main_of(hub, MODEL)


def test_a_name_that_is_taken_is_left_alone_unless_told(hub, push):
    other = Commit({"README.md": Blob(b"another project"), "app.py": Blob(b"")})
    hub.repos["space", "trade/functional_equivalence"] = Repo("space", "trade/functional_equivalence", [other], True)
    status, _, err = push("--only", "metric")
    assert (status, err.count("\n")) == (2, 1) and "is taken: it holds 2 other files; --update replaces them" in err
    assert main_of(hub, METRIC)["README.md"] == b"another project"
    assert push("--only", "metric", "--update")[::2] == [0, ""]
    assert set(main_of(hub, METRIC)) == metric_files()


def metric_files():
    """The metric's folder, with the package that it and its Space run."""
    own = {path.name for path in (ROOT / "trade_hf" / "metrics" / "functional_equivalence").iterdir() if path.is_file()}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "trade_hf").rglob("*") if path.is_file()}
    return own | {"requirements.txt"} | {path for path in package if not re.search("/assets/|__pycache__", path)}


def test_the_space_holds_the_package_that_it_runs(hub, push):
    status, _, err = push("--only", "space", "--namespace", "lab")
    files = main_of(hub, ("space", "decompiler"), "lab")
    assert (status, err) == (0, "") and {"app.py", "requirements.txt", "LICENSE"} <= set(files)
    assert files["app.py"] == (ROOT / "scripts" / "space" / "app.py").read_bytes()
    for name in ("app/page.py", "report/style.css", "assets/trade-base/model.safetensors"):
        assert files[f"trade_hf/{name}"] == (ROOT / "trade_hf" / name).read_bytes()
    assert not [name for name in files if "__pycache__" in name]
    card = files["README.md"].decode()
    assert "sdk: gradio" in card and "lab/trade-base" in card and "trade/trade-base" not in card
    pinned = re.search(r"^sdk_version: (.+)$", card, re.MULTILINE)[1]
    assert f"gradio=={pinned}" in (ROOT / "constraints.txt").read_text().split()


def test_a_space_that_the_hub_has_begun_is_filled(hub, push):
    begun = Commit({"README.md": Blob(b"---\nsdk: gradio\n---\n"), ".gitattributes": Blob(b"*.bin filter=lfs")})
    hub.repos["space", "trade/functional_equivalence"] = Repo("space", "trade/functional_equivalence", [begun], True)
    assert push("--only", "metric")[::2] == [0, ""]
    assert set(main_of(hub, METRIC)) == metric_files() | {".gitattributes"}


def test_what_is_to_be_private_is_not_put_where_all_can_see_it(hub, push):
    assert push("--only", "metric", "--visibility", "public")[0] == 0
    status, _, err = push("--only", "metric", "--update")
    assert status == 2 and "is public: expected a private repository" in err


def edit_json(path, key, value):
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


def test_no_card_is_published_with_other_figures_than_the_results(hub, push, corpus):
    folder, results = corpus[1], corpus[3]

    def refused(kind):
        status, _, err = push("--only", f"metric,{kind}", *corpus)
        assert status == 2 and err.count("\n") == 1 and hub.requests == []
        return err

    edit_json(results / "test-permuted.json", "free_running_exact", 0.99)
    assert "model_card.md: figures differ from" in refused("model")
    edit_json(results / "corpus-small.json", "rows", 1_000_000)
    assert "rows are " in refused("dataset")
    (results / "corpus-small.json").unlink()
    assert "found no such file: build with --report" in refused("dataset")
    parquet = next((folder / "small").glob("train-*.parquet"))
    whole = parquet.read_bytes()
    parquet.write_bytes(whole[:-100])
    assert "the dataset or its results cannot be read as this version writes them: ArrowInvalid" in refused("dataset")
    parquet.write_bytes(whole)
    (results / "library.json").unlink()
    assert "library.json" in refused("model")
    card = folder / "README.md"
    card.write_text(card.read_text().replace("lines | 3: ", "lines | 3: 9"))
    assert "the figures are not those of the data beside it" in refused("dataset")
    (folder / ".work" / "wide").mkdir(parents=True)
    assert "the build of wide is not finished" in refused("dataset")
    shutil.rmtree(folder / "small")
    assert "found no report.json" in refused("dataset")
