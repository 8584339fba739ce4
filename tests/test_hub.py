"""The corpus on a Hub: pushed by huggingface_hub, loaded by datasets where none of our code is; the Hub is the tests'.

Each client is a process of its own, since both libraries read HF_ENDPOINT and HF_HUB_OFFLINE when they are imported.
"""

import http.client
import json
import subprocess
import sys
import sysconfig
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from hub_server import hub_server

from dataset_builder import corpus
from dataset_builder.card import write_card
from dataset_builder.corpus import CONFIGS, SPLITS, build

REPO = "trade/tracr-rasp"
TINY = tuple(
    replace(CONFIGS[name], rows=rows, long_rows=2, shard_rows=60)
    for name, rows in (("small", 50), ("paper", 100), ("wide", 100), ("base", 150))
)

PUSH = """
import sys
from huggingface_hub import HfApi
repo, folder = sys.argv[1:]
print(HfApi().create_repo(repo, repo_type="dataset").repo_id)
for _ in range(2):
    print(HfApi().upload_folder(repo_id=repo, repo_type="dataset", folder_path=folder).oid)
"""

LOAD = """
import importlib.util, json, sys
from pathlib import Path
import pyarrow.parquet as pq
import torch
from datasets import config, get_dataset_config_names, load_dataset

assert not any(importlib.util.find_spec(name) for name in ("dataset_builder", "trade_hf"))
config.USE_PARQUET_EXPORT = False  # else the viewer is asked too, which is another host
repo, folder = sys.argv[1], Path(sys.argv[2])

def to_plain(value):
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    return value.tolist() if torch.is_tensor(value) else value

counts = {}
for name in get_dataset_config_names(repo):
    for split in sorted({path.name.split("-")[0] for path in (folder / name).glob("*.parquet")}):
        paths = sorted((folder / name).glob(f"{split}-*.parquet"))
        expected = [row for path in paths for row in pq.read_table(path).to_pylist()]
        rows = load_dataset(repo, name, split=split)
        stream = load_dataset(repo, name, split=split, streaming=True)
        assert expected == list(rows) == list(stream)
        for tensors in (rows.with_format("torch")[0], next(iter(stream.with_format("torch")))):
            assert any(torch.is_tensor(value) and value.is_floating_point() for value in tensors.values())
            assert {column: to_plain(value) for column, value in tensors.items()} == expected[0]
        counts[f"{name}/{split}"] = len(rows)
print(json.dumps({"counts": counts, "default": load_dataset(repo, split="test").config_name}))
"""

CARD = """
import sys
from huggingface_hub import DatasetCard, DatasetCardData, HfApi
card = DatasetCard.load(sys.argv[1])
card.validate(repo_type="dataset")
assert DatasetCardData(**card.data.to_dict()).to_dict() == card.data.to_dict()
assert DatasetCard.load(sys.argv[2]).content == card.content
try:
    HfApi().upload_file(
        path_or_fileobj=b"---\\n- a list\\n---\\n", path_in_repo="README.md", repo_id=sys.argv[2], repo_type="dataset"
    )
except ValueError as error:
    print(error)
"""

REFUSED = """
import sys
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
api, (repo, folder) = HfApi(), sys.argv[1:]
for attempt in (
    lambda: api.create_repo(repo + "-2", repo_type="dataset"),
    lambda: api.upload_folder(repo_id=repo, repo_type="dataset", folder_path=folder, path_in_repo="again"),
    lambda: api.delete_file("README.md", repo_id=repo, repo_type="dataset"),
):
    try:
        attempt()
    except HfHubHTTPError as error:
        print(error.response.status_code)
"""

ALIKE = """
import sys
from pathlib import Path
from huggingface_hub import HfApi, snapshot_download
api, repo, folder = HfApi(), "trade/alike", sys.argv[1]
for kind, options in (("model", {}), ("dataset", {}), ("space", {"space_sdk": "gradio"})):
    api.create_repo(repo, repo_type=kind, **options)
    api.create_repo(repo, repo_type=kind, **options, exist_ok=True)
    first = api.upload_folder(repo_id=repo, repo_type=kind, folder_path=folder).oid
    api.delete_folder("sub", repo_id=repo, repo_type=kind)
    for revision, names in ((first, ["sub/a.bin", "text.txt"]), ("main", ["text.txt"])):
        copy = Path(snapshot_download(repo, repo_type=kind, revision=revision))
        assert sorted(str(path.relative_to(copy)) for path in copy.rglob("*.*")) == names
        assert all((copy / name).read_bytes() == (Path(folder) / name).read_bytes() for name in names)
        assert api.list_repo_files(repo, repo_type=kind, revision=revision) == names
"""


def run(code, *arguments, environment, cwd):
    """What a client prints, as lines. It finds installed packages alone: `-S` leaves out editable ones too."""
    environment = {**environment, "PYTHONPATH": sysconfig.get_path("purelib")}
    command = [sys.executable, "-S", "-c", code, *map(str, arguments)]
    result = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture(scope="module")
def hub():
    with hub_server() as hub:
        yield hub


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PARTITION_ROWS", 100)  # `base` has two files for a split
        for config in TINY:
            patch.setitem(corpus.CONFIGS, config.name, config)
            build(config, folder, progress=False)
        write_card(folder)
    return folder


@pytest.fixture(scope="module")
def pushed(hub, built, tmp_path_factory):
    home = tmp_path_factory.mktemp("push")
    return run(PUSH, REPO, built, environment=hub.environment(home, hub.token), cwd=home)


def test_the_whole_folder_is_pushed_once(hub, built, pushed):
    local = {str(path.relative_to(built)): path.read_bytes() for path in built.rglob("*") if path.is_file()}
    assert hub.files("dataset", REPO) == local
    initial, commit = hub.repos["dataset", REPO].commits
    assert pushed == [REPO, commit.oid, commit.oid] and commit.parent == initial.oid
    assert all(blob.is_lfs == path.endswith(".parquet") for path, blob in commit.files.items())


def test_every_row_is_loaded_without_our_code_and_without_a_token(hub, built, pushed, tmp_path):
    (line,) = run(LOAD, REPO, built, environment=hub.environment(tmp_path), cwd=tmp_path)
    reports = {config.name: json.loads((built / config.name / "report.json").read_text()) for config in TINY}
    counts = {f"{name}/{split}": report["splits"][split] for name, report in reports.items() for split in SPLITS}
    assert json.loads(line) == {"counts": counts, "default": "small"}
    assert len(list((built / "base").glob("train-*"))) == 2


def test_the_card_is_valid_and_one_that_is_no_mapping_is_refused(hub, built, pushed, tmp_path):
    before = len(hub.requests)
    printed = run(CARD, built / "README.md", REPO, environment=hub.environment(tmp_path, hub.token), cwd=tmp_path)
    assert printed == ["Invalid metadata in README.md.", "- the metadata must be a mapping, got ['a list']"]
    assert hub.requests[before:].count("POST /api/validate-yaml") == 2
    assert hub.files("dataset", REPO)["README.md"] == (built / "README.md").read_bytes()


def test_a_wrong_token_gives_401_and_no_commit(hub, built, pushed, tmp_path):
    before = dict(hub.repos), list(hub.repos["dataset", REPO].commits), dict(hub.uploads)
    assert run(REFUSED, REPO, built, environment=hub.environment(tmp_path, "wrong"), cwd=tmp_path) == ["401"] * 3
    assert (hub.repos, hub.repos["dataset", REPO].commits, hub.uploads) == before


def test_models_data_sets_and_spaces_are_served_alike(hub, tmp_path):
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "folder" / "sub" / "a.bin").write_bytes(bytes(1000))
    (tmp_path / "folder" / "text.txt").write_text("text")
    run(ALIKE, tmp_path / "folder", environment=hub.environment(tmp_path, hub.token), cwd=tmp_path)


# ---------------------------------------------------------------- the server itself


def request(hub, method, path, body=None, **headers):
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=10)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


UNKNOWN = {
    "GET /api/nowhere": None,
    "DELETE /api/repos/delete": None,
    "GET /api/datasets/trade/nothing": "RepoNotFound",
    f"GET /api/models/{REPO}": "RepoNotFound",
    f"GET /api/datasets/{REPO}/revision/nothing": "RevisionNotFound",
    f"GET /api/datasets/{REPO}/tree/main/nothing": "EntryNotFound",
    f"GET /datasets/{REPO}/resolve/main/nothing": "EntryNotFound",
}


@pytest.mark.parametrize("line", UNKNOWN)
def test_what_is_unknown_is_a_404_in_json(hub, pushed, line):
    status, headers, body = request(hub, *line.split())
    assert status == 404 and json.loads(body)["error"] and (headers["X-Error-Code"] or None) == UNKNOWN[line]


@pytest.mark.parametrize("path", ["/api/repos/create", f"/api/datasets/{REPO}/commit/main", f"/upload/{'0' * 64}"])
def test_a_write_without_a_token_is_refused(hub, pushed, path):
    status, _, _ = request(hub, "PUT" if path.startswith("/upload") else "POST", path, b"{}")
    assert status == 401


@pytest.mark.parametrize(("wanted", "part"), [("0-3", slice(4)), ("4-", slice(4, None)), ("2-999999", slice(2, None))])
def test_a_part_of_a_file(hub, built, pushed, wanted, part):
    status, headers, body = request(hub, "GET", f"/datasets/{REPO}/resolve/main/README.md", Range=f"bytes={wanted}")
    whole = (built / "README.md").read_bytes()
    assert (status, body) == (206, whole[part]) and headers["Content-Range"].endswith(f"/{len(whole)}")


OPERATIONS = [
    {"key": "lfsFile", "value": {"path": "b.bin", "oid": "0" * 64}},
    {"key": "deletedFile", "value": {"path": "nothing"}},
    {"key": "unheard of", "value": {"path": "b"}},
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation["key"])
def test_a_commit_is_made_whole_or_not_at_all(hub, pushed, operation):
    before = len(hub.repos["dataset", REPO].commits), hub.files("dataset", REPO)
    header = {"key": "header", "value": {"summary": "half of it works"}}
    lines = [header, {"key": "file", "value": {"path": "a", "content": "YQ=="}}, operation]
    body = "".join(json.dumps(line) + "\n" for line in lines)
    path = f"/api/datasets/{REPO}/commit/main"
    status, _, _ = request(hub, "POST", path, body, Authorization=f"Bearer {hub.token}")
    assert status in (400, 404)
    assert (len(hub.repos["dataset", REPO].commits), hub.files("dataset", REPO)) == before
