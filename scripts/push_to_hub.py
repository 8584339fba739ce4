"""Publish the model, the corpus, the metric and the Space on the Hub: one commit for each repository, or none.

Run: python scripts/push_to_hub.py --dry-run --corpus corpus           (lists files and sizes; needs no token)
     python scripts/push_to_hub.py --only model,metric --namespace trade
     python scripts/push_to_hub.py --corpus corpus --namespace trade --visibility public --update

The token is taken from HF_TOKEN, or from `hf auth login`. Everything is put together and its cards compared with
`results/` before anything is sent. Large files are uploaded first and become part of `main` by the one commit that
names all files, so `main` holds a whole release or the one before. A push that was cut off is run again: what the Hub
has is not sent a second time. A repository that holds other files is left alone without --update, which replaces them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    EvalResultEntry,
    HfApi,
    ModelCard,
    eval_result_entries_to_yaml,
)
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.sha import git_hash

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from render_figures import PLOT, RESULTS, render

from dataset_builder.card import built, render_card
from trade_hf.remote_code import export

HOME = "trade"  # the namespace that the documents speak of
CHECKPOINT = ROOT / "trade_hf" / "assets" / "trade-base"
METRIC = ROOT / "trade_hf" / "metrics" / "functional_equivalence"
SPACE = ROOT / "scripts" / "space"
PACKAGE = ROOT / "trade_hf"
LEFT_OUT = ("__pycache__", ".work", ".gitattributes")
NOT_SHARES = ("compiles", "wrongly_certified")  # said in the card, no score of the model's
Content = Path | bytes
Files = dict[str, Content]  # by path in the repository


class PushError(Exception):
    """Why something cannot be published, in one line."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=chosen, default=list(RELEASES), metavar="KIND,KIND", help=", ".join(RELEASES))
    parser.add_argument("--namespace", default=HOME, help="user or organisation on the Hub")
    parser.add_argument("--visibility", choices=("private", "public"), default="private", help="of a new repository")
    parser.add_argument("--corpus", type=Path, help="folder that build_dataset.py wrote")
    parser.add_argument("--results", type=Path, default=RESULTS, help="what the figures of the cards are compared with")
    parser.add_argument("--update", action="store_true", help="replace what a repository holds")
    parser.add_argument("--dry-run", action="store_true", help="list files and sizes, send nothing")
    args = parser.parse_args(arguments)
    hub_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            staged = {kind: put_together(kind, args, Path(scratch)) for kind in args.only}
            for kind, files in staged.items():
                show(RELEASES[kind].repo_id(args.namespace), files)
            if not args.dry_run:
                publish(staged, args)
    except PushError as error:
        print(f"push_to_hub: {error}", file=sys.stderr)
        return 2
    return 0


def chosen(text: str) -> list[str]:
    kinds = text.split(",")
    for kind in kinds:
        if kind not in RELEASES:
            raise argparse.ArgumentTypeError(f"expected some of {','.join(RELEASES)}, got {kind!r}")
    return [kind for kind in RELEASES if kind in kinds]


def put_together(kind: str, args: argparse.Namespace, scratch: Path) -> Files:
    """What the repository is to hold; raises PushError where it, or what it is compared with, cannot be read."""
    try:
        return RELEASES[kind].stage(args, scratch)
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = f"{type(error).__name__}: {first_line(error)}"
        raise PushError(f"the {kind} or its results cannot be read as this version writes them: {said}") from error


def show(repo_id: str, files: Files) -> None:
    sizes = {path: len(text) if isinstance(text, bytes) else text.stat().st_size for path, text in files.items()}
    print(f"{repo_id}: {len(files)} files, {sum(sizes.values()):,} bytes")
    for path, size in sorted(sizes.items()):
        print(f"  {size:>13,}  {path}")


# ---------------------------------------------------------------- what a repository holds


def stage_model(args: argparse.Namespace, scratch: Path) -> Files:
    export(CHECKPOINT, scratch / "model")
    card = ROOT / "model_card.md"
    check_figures(card, args.results)
    entries = evaluation(args.results, args.namespace)
    scores = yaml.safe_dump(eval_result_entries_to_yaml([entry for _, entry in entries]), sort_keys=False)
    text = with_model_index(moved(card, args.namespace).decode(), [result for result, _ in entries])
    return folder_files(scratch / "model") | {
        "README.md": text.encode(),
        ".eval_results/tracr-rasp.yaml": scores.encode(),
        "LICENSE": ROOT / "LICENSE",
        PLOT.relative_to(ROOT).as_posix(): PLOT,
    }


def evaluation(results: Path, namespace: str) -> list[tuple[EvalResult, EvalResultEntry]]:
    """The scores of the model for the card's `model-index`, and for `.eval_results`, in per cent."""
    measured = json.loads((results / "test-permuted.json").read_text())
    return [
        (
            EvalResult(
                task_type="rasp-decompilation",
                task_name="Decompilation of Tracr models",
                dataset_type=f"{namespace}/tracr-rasp",
                dataset_name="Tracr RASP: test, in a permuted basis",
                dataset_config="base",
                dataset_split="test",
                metric_type=name,
                metric_name=name,
                metric_value=round(100 * measured[name], 2),
            ),
            EvalResultEntry(
                dataset_id=f"{namespace}/tracr-rasp",
                task_id=name,
                value=round(100 * measured[name], 2),
                notes=f"per cent of {measured['n']} programs; 95 %: {100 * low:.1f} to {100 * high:.1f}",
            ),
        )
        for name, (low, high) in measured["interval_95"].items()
        if name not in NOT_SHARES
    ]


def with_model_index(text: str, scores: list[EvalResult]) -> str:
    card = ModelCard(text)
    card.data.model_name, card.data.eval_results = "trade-base", scores
    return str(card)


def stage_dataset(args: argparse.Namespace, scratch: Path) -> Files:
    if args.corpus is None:
        raise PushError("the data set is in no known place: expected --corpus FOLDER, as build_dataset.py wrote it")
    names = built(args.corpus)
    if not names:
        raise PushError(f"{args.corpus}: expected a folder that build_dataset.py finished, found no report.json")
    unfinished = [path.name for path in (args.corpus / ".work").glob("*") if path.is_dir() and path.name not in names]
    if unfinished:
        raise PushError(f"{args.corpus}: the build of {', '.join(unfinished)} is not finished: run build_dataset.py")
    card = args.corpus / "README.md"
    if not card.exists() or card.read_text() != render_card(args.corpus):
        raise PushError(f"{card}: the figures are not those of the data beside it: run build_dataset.py again")
    for name in names:
        check_report(args.corpus / name / "report.json", args.results / f"corpus-{name}.json")
    return folder_files(args.corpus) | {"README.md": moved(card, args.namespace)}


def check_report(report: Path, result: Path) -> None:
    """The corpus is the one that `results/` speaks of."""
    if not result.exists():
        raise PushError(f"{report}: expected the same figures in {result}, found no such file: build with --report")
    here, there = json.loads(report.read_text()), json.loads(result.read_text())
    for key in ("rows", "bytes", "splits"):
        if here[key] != there[key]:
            raise PushError(f"{report}: {key} are {here[key]}, in {result} {there[key]}: build again with --report")


def stage_metric(args: argparse.Namespace, scratch: Path) -> Files:
    """The module that `evaluate.load` takes, its Space, and the package that both run, without the checkpoint."""
    package = {name: path for name, path in package_files().items() if "/assets/" not in name}
    return stage_folder(METRIC, args) | package | {"requirements.txt": SPACE / "requirements.txt"}


def stage_space(args: argparse.Namespace, scratch: Path) -> Files:
    """The Space's own files, and the package with the checkpoint that they run."""
    return stage_folder(SPACE, args) | package_files() | {"LICENSE": ROOT / "LICENSE"}


def package_files() -> Files:
    return {f"{PACKAGE.name}/{name}": path for name, path in folder_files(PACKAGE).items()}


def stage_folder(folder: Path, args: argparse.Namespace) -> Files:
    card = folder / "README.md"
    if not card.exists():
        raise PushError(f"{card}: expected a Space with its card, found none; --only leaves it out")
    check_figures(card, args.results)
    return folder_files(folder) | {"README.md": moved(card, args.namespace)}


def folder_files(folder: Path) -> Files:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path for name, path in files.items() if not set(name.split("/")) & set(LEFT_OUT)}


def check_figures(card: Path, results: Path) -> None:
    if render(card, write=False, results=results):
        raise PushError(f"{card}: figures differ from {results}: run python scripts/render_figures.py")


def moved(card: Path, namespace: str) -> bytes:
    """A card whose names of repositories are those in `namespace`."""
    text = card.read_text()
    for release in RELEASES.values():
        text = text.replace(release.repo_id(HOME), release.repo_id(namespace))
    return text.encode()


@dataclass(frozen=True)
class Release:
    repo_type: str
    name: str
    stage: Callable[[argparse.Namespace, Path], Files]

    def repo_id(self, namespace: str) -> str:
        return f"{namespace}/{self.name}"


# What others load comes first: the metric and the Space speak of the model, and that of the data set.
RELEASES = {
    "dataset": Release("dataset", "tracr-rasp", stage_dataset),
    "model": Release("model", "trade-base", stage_model),
    "metric": Release("space", "functional_equivalence", stage_metric),
    "space": Release("space", "decompiler", stage_space),
}


# ---------------------------------------------------------------- to the Hub


def publish(staged: Mapping[str, Files], args: argparse.Namespace) -> None:
    api, where = HfApi(), "the token"
    try:
        check_token(api)
        for kind, files in staged.items():
            where = RELEASES[kind].repo_id(args.namespace)
            print(f"{where}: {push(api, RELEASES[kind], where, files, args)}", flush=True)
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        # huggingface_hub puts a RuntimeError around what ended the upload of a file.
        cause = error.__cause__ or error if isinstance(error, RuntimeError) else error
        raise PushError(f"{where}: {in_words(cause, api.endpoint)}") from error


def check_token(api: HfApi) -> None:
    user = api.whoami()
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PushError("the token only reads: expected one that may write (https://huggingface.co/settings/tokens)")


def push(api: HfApi, release: Release, repo_id: str, files: Files, args: argparse.Namespace) -> str:
    """Make the repository's `main` hold these files and no others; gives what was done."""
    about = {"repo_id": repo_id, "repo_type": release.repo_type}
    sdk = "gradio" if release.repo_type == "space" else None
    api.create_repo(**about, private=args.visibility == "private", space_sdk=sdk, exist_ok=True)
    info = api.repo_info(**about)
    if args.visibility == "private" and not info.private:
        raise PushError(f"{repo_id} is public: expected a private repository, or --visibility public")
    additions = [CommitOperationAdd(path, content) for path, content in files.items()]
    there = {item.path: oid(item) for item in api.list_repo_tree(**about, recursive=True) if isinstance(item, RepoFile)}
    there.pop(".gitattributes", None)
    if all(item.path_in_repo in there and is_same(item, there[item.path_in_repo]) for item in additions):
        if len(there) == len(additions):
            return "holds these files already"
    begun = {"README.md"} if release.repo_type == "space" else set()  # the Hub starts a Space with a card of its own
    if not (set(there) <= begun or args.update):
        raise PushError(f"{repo_id} is taken: it holds {len(there)} other files; --update replaces them")
    gone = [CommitOperationDelete(path) for path in there if path not in files]
    commit = api.create_commit(
        **about, operations=[*additions, *gone], commit_message="Release", parent_commit=info.sha
    )
    return str(commit.commit_url)


def oid(file: RepoFile) -> str:
    return file.lfs.sha256 if file.lfs else file.blob_id


def is_same(addition: CommitOperationAdd, remote: str) -> bool:
    """Whether the Hub's file, known by its SHA-256 or by its oid in git, is the one to be added."""
    if len(remote) == 64:
        return addition.upload_info.sha256.hex() == remote
    with addition.as_file() as file:
        return git_hash(file.read()) == remote


def in_words(error: BaseException, endpoint: str) -> str:
    """One line on what went wrong at the Hub and what to do."""
    again = (
        "main holds all of the release or none of it; run the same command again, what has arrived is not sent twice"
    )
    if isinstance(error, LocalTokenNotFoundError):
        return "there is none: expected HF_TOKEN in the environment, or `hf auth login`"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        said = {
            401: "the Hub does not accept the token (401): expected a valid one in HF_TOKEN",
            403: "the token may not write there (403): expected one with write access to this namespace",
            409: "the name is taken (409)",
            412: f"someone else has committed meanwhile (412); {again}",
        }
        if status >= 500:
            return f"the Hub fails ({status}); {again}"
        return said.get(status, f"the Hub refuses ({status}): {first_line(error)}")
    if isinstance(error, HTTPError):
        return f"the connection to {endpoint} ended ({type(error).__name__}); {again}"
    return first_line(error)


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


if __name__ == "__main__":
    sys.exit(main())
