"""A Hub of the tests' own: what huggingface_hub and datasets call, over real HTTP on 127.0.0.1, kept in memory.

Models, data sets and Spaces are served alike; a private one needs a token to be seen. A write needs the token; a wrong
token is refused anywhere, the read-only one for writes. `Hub.faults` makes requests fail.
There is one branch, `main`, whose earlier commits can be read by their oid. What is not served gives a 404.
Protocol: hf_api.py, _commit_api.py, lfs.py and file_download.py of huggingface_hub 2.
Run: with hub_server() as hub: subprocess.run(command, env=hub.environment(tmp_path, hub.token))
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

USER = "trade"  # whose token it is
DROP = 0  # in place of a status: the connection ends in the middle of the request's body
LFS_SIZE = 10_000_000  # bytes; a larger file is not kept in git, even if it is text
API = r"/api/(?P<type>model|dataset|space)s/(?P<id>[^/]+/[^/]+)"
WEB = r"/(?:(?P<type>dataset|space)s/)?(?P<id>[^/]+/[^/]+)"
REVISION = r"/(?P<revision>[^/]+)"


def git_oid(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


@dataclass(frozen=True)
class Blob:
    """A file's content. Clients know that of an LFS file by its SHA-256, any other by its oid in git."""

    content: bytes = field(repr=False)
    is_lfs: bool = False

    @cached_property
    def oid(self) -> str:
        return hashlib.sha256(self.content).hexdigest() if self.is_lfs else git_oid("blob", self.content)


@dataclass(frozen=True)
class Commit:
    """All files of a repository at one time."""

    files: Mapping[str, Blob]
    message: str = "initial commit"
    parent: str = ""

    @cached_property
    def oid(self) -> str:
        return git_oid("commit", json.dumps([self.parent, self.message, self.tree_oid("")]).encode())

    def tree_oid(self, prefix: str) -> str:
        inside = {path: blob.oid for path, blob in sorted(self.files.items()) if path.startswith(prefix)}
        return git_oid("tree", json.dumps(inside).encode())

    @cached_property
    def entries(self) -> dict[str, dict[str, Any]]:
        """Files and folders as listings show them, by path."""
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in self.files.items():
            size = len(blob.content)
            lfs = {"oid": blob.oid, "size": size, "pointerSize": 130} if blob.is_lfs else None
            entries[path] = {"type": "file", "path": path, "size": size, "oid": blob.oid, "lfs": lfs}
            for folder in map(str, PurePosixPath(path).parents[:-1]):
                entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": self.tree_oid(f"{folder}/")}
        return dict(sorted(entries.items()))


@dataclass(frozen=True)
class Repo:
    type: str  # model, dataset or space
    id: str
    commits: list[Commit] = field(default_factory=lambda: [Commit({})])
    private: bool = False

    @property
    def web_path(self) -> str:
        return self.id if self.type == "model" else f"{self.type}s/{self.id}"

    def at(self, revision: str) -> Commit:
        for commit in reversed(self.commits):
            if revision in ("main", commit.oid):
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")


@dataclass(frozen=True)
class Response:
    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def answer(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value).encode(), status, {"Content-Type": "application/json"})


class Refusal(Exception):
    """`code` is what clients choose their exception by, and for a 401 the message."""

    def __init__(self, status: int, message: str, code: str = "", **more: str) -> None:
        super().__init__(message)
        headers = {"X-Error-Code": code, "X-Error-Message": message.encode("ascii", "replace").decode()}
        body = json.dumps({"error": message, **more}).encode()
        self.response = Response(body, status, {"Content-Type": "application/json", **headers})


@dataclass(repr=False)
class Hub:
    """What the server holds. `requests` are those that came, as `GET /path`, without their queries."""

    url: str = ""
    token: str = "hf_of_the_tests"
    read_only_token: str = "hf_that_only_reads"
    namespaces: tuple[str, ...] = (USER, "lab")  # where the user may write
    faults: dict[str, int] = field(default_factory=dict)  # status, or DROP, of requests whose `GET /path` matches
    before_fault: Callable[[], object] = str  # called before a fault is given: it may wait for other requests
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)  # by SHA-256
    requests: list[str] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def files(self, repo_type: str, repo_id: str) -> dict[str, bytes]:
        return {path: blob.content for path, blob in self.repos[repo_type, repo_id].commits[-1].files.items()}

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """For a client in a process of its own, whose cache is `home`."""
        others = re.compile("HF_.*|PYTHON.*|.*_PROXY", re.IGNORECASE)
        inherited = {name: text for name, text in os.environ.items() if not others.fullmatch(name)}
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return inherited | ours | ({"HF_TOKEN": token} if token else {})


ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Response], bool]] = []


def route(method: str, pattern: str, needs_token: bool = False) -> Callable:
    """What answers `method` on paths that match `pattern`; the groups of the match are its arguments."""

    def register(handler: Callable[..., Response]) -> Callable[..., Response]:
        ROUTES.append((method, re.compile(pattern), handler, needs_token))
        return handler

    return register


class Handler(BaseHTTPRequestHandler):
    """One connection. A repository comes to the methods as `repo`, a revision as `commit`."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together; apart, the second waits for the first to be acknowledged

    def __init__(self, hub: Hub, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def respond(self) -> None:
        parts = urlsplit(self.path)
        self.query = {name: texts[-1] for name, texts in parse_qs(parts.query).items()}
        size, line = int(self.headers.get("Content-Length", 0)), f"{self.command} {parts.path}"
        fault = next((status for known, status in self.hub.faults.items() if re.fullmatch(known, line)), None)
        if fault is not None:
            self.hub.before_fault()
        self.body = self.rfile.read(size // 2 if fault == DROP else size)
        if fault == DROP:
            self.close_connection = True
            return
        with self.hub.lock:
            self.hub.requests.append(line)
            try:
                if fault is not None:
                    raise Refusal(fault, "the server of the tests was told to fail")
                response = self.dispatch(self.command.replace("HEAD", "GET"), parts.path)
            except Refusal as refusal:
                response = refusal.response
            except (ValueError, KeyError, TypeError) as error:
                response = Refusal(400, f"malformed request: {error!r}").response
        self.send_response(response.status)
        for name, text in {**response.headers, "Content-Length": str(len(response.body))}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = respond  # noqa: N815

    def log_message(self, *args: Any) -> None:
        """Nothing: `Hub.requests` has them."""

    def dispatch(self, method: str, path: str) -> Response:
        given = self.headers.get("Authorization")
        for known, pattern, handler, needs_token in ROUTES:
            match = pattern.fullmatch(path)
            if match and known == method:
                if given not in (f"Bearer {self.hub.token}", f"Bearer {self.hub.read_only_token}"):
                    if given or needs_token:
                        raise Refusal(401, "Invalid credentials in Authorization header")
                elif self.is_read_only and needs_token and method != "GET":
                    raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
                return handler(self, **self.arguments(match))
        raise Refusal(404, "Not Found")

    @property
    def is_read_only(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.read_only_token}"

    def arguments(self, match: re.Match[str]) -> dict[str, Any]:
        values: dict[str, Any] = {name: unquote(text or "") for name, text in match.groupdict().items()}
        if "id" in values:
            repo = values["repo"] = self.hub.repos.get((values.pop("type") or "model", values.pop("id")))
            if repo is None or (repo.private and not self.headers.get("Authorization")):
                raise Refusal(404, "Repository not found", "RepoNotFound")
            if "revision" in values:
                values["commit"] = repo.at(values.pop("revision") or "main")
        return values

    @route("GET", "/api/whoami-v2", needs_token=True)
    def whoami(self) -> Response:
        orgs = [{"name": name} for name in self.hub.namespaces if name != USER]
        access = {"accessToken": {"role": "read" if self.is_read_only else "write"}}
        return answer({"type": "user", "name": USER, "fullname": USER, "orgs": orgs, "auth": access})

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self) -> Response:
        header = re.match(r"---\r?\n(.*?)^---\s*$", json.loads(self.body)["content"], re.DOTALL | re.MULTILINE)
        if header is None:
            return answer({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        try:
            data = yaml.safe_load(header[1])
        except yaml.YAMLError as error:
            data = error
        if isinstance(data, dict):
            return answer({"errors": [], "warnings": []})
        return answer({"errors": [{"message": f"the metadata must be a mapping, got {data!r}"}], "warnings": []}, 400)

    @route("POST", "/api/repos/create", needs_token=True)
    def create(self) -> Response:
        asked = json.loads(self.body)
        namespace, is_private = asked.get("organization") or USER, asked.get("visibility") == "private"
        if namespace not in self.hub.namespaces:
            raise Refusal(403, f"You don't have the rights to create a repository under the namespace {namespace}.")
        repo = Repo(asked.get("type") or "model", f"{namespace}/{asked['name']}", private=is_private)
        url = f"{self.hub.url}/{repo.web_path}"
        if (repo.type, repo.id) in self.hub.repos:
            raise Refusal(409, "You already created this repo", url=url)
        self.hub.repos[repo.type, repo.id] = repo
        return answer({"url": url})

    @route("POST", f"{API}/preupload{REVISION}", needs_token=True)
    def preupload(self, repo: Repo, commit: Commit) -> Response:
        files = []
        for file in json.loads(self.body)["files"]:
            # Git, too, takes a zero byte near the beginning as the sign of a binary file.
            is_lfs = b"\0" in base64.b64decode(file["sample"]) or file["size"] > LFS_SIZE
            oid = commit.files[file["path"]].oid if file["path"] in commit.files else None
            mode = "lfs" if is_lfs else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return answer({"files": files})

    @route("POST", rf"{WEB}\.git/info/lfs/objects/batch", needs_token=True)
    def lfs_batch(self, repo: Repo) -> Response:
        objects = []
        for item in json.loads(self.body)["objects"]:
            href = f"{self.hub.url}/upload/{item['oid']}?signature={self.hub.token}"
            there = item["oid"] in self.hub.uploads
            objects.append(item if there else {**item, "actions": {"upload": {"href": href}}})
        return answer({"transfer": "basic", "objects": objects})

    @route("PUT", "/upload/(?P<oid>[0-9a-f]{64})")
    def upload(self, oid: str) -> Response:
        if self.query.get("signature") != self.hub.token:  # clients send no header with it here
            raise Refusal(401, "the upload is not signed")
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, f"the content is not that of {oid}")
        self.hub.uploads[oid] = self.body
        return answer({})

    @route("POST", f"{API}/commit{REVISION}", needs_token=True)
    def commit(self, repo: Repo, commit: Commit) -> Response:
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        head, files = repo.commits[-1], dict(commit.files)
        if commit is not head or header["value"].get("parentCommit", head.oid) != head.oid:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        if self.query:  # a pull request, say
            raise Refusal(404, f"not served here: {', '.join(self.query)}")
        for operation in operations:
            self.apply(operation["key"], operation["value"], files)
        repo.commits.append(Commit(files, header["value"]["summary"], head.oid))
        oid = repo.commits[-1].oid
        return answer({"commitOid": oid, "commitUrl": f"{self.hub.url}/{repo.web_path}/commit/{oid}"})

    def apply(self, key: str, value: Mapping[str, str], files: dict[str, Blob]) -> None:
        path = value["path"]
        if key == "file":
            files[path] = Blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            files[path] = Blob(self.hub.uploads[value["oid"]], is_lfs=True)
        elif key in ("deletedFile", "deletedFolder"):
            gone = [name for name in files if name == path or name.startswith(f"{path.rstrip('/')}/")]
            if not gone:
                raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
        else:
            raise Refusal(400, f"unknown operation: {key}")

    @route("GET", f"{API}(?:/revision{REVISION})?")
    def info(self, repo: Repo, commit: Commit) -> Response:
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        facts = {"private": repo.private, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
        return answer({"id": repo.id, "sha": commit.oid, "siblings": siblings, **facts})

    @route("GET", f"{API}/tree{REVISION}(?:/(?P<path>.+))?")
    def tree(self, repo: Repo, commit: Commit, path: str) -> Response:
        depth = None if self.query.get("recursive", "").lower() == "true" else 1
        parents = {name: [str(parent) for parent in PurePosixPath(name).parents[:depth]] for name in commit.entries}
        inside = [entry for name, entry in commit.entries.items() if (path or ".") in parents[name]]
        if path and not inside:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        return answer(inside)

    @route("POST", f"{API}/paths-info{REVISION}")
    def paths_info(self, repo: Repo, commit: Commit) -> Response:
        paths = parse_qs(self.body.decode()).get("paths", [])
        return answer([commit.entries[path] for path in paths if path in commit.entries])

    @route("GET", f"{WEB}/resolve{REVISION}/(?P<path>.+)")
    def resolve(self, repo: Repo, commit: Commit, path: str) -> Response:
        if path not in commit.files:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        blob = commit.files[path]
        content, size = blob.content, len(blob.content)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return Response(content, headers=headers)
        first, last = int(wanted[1]), min(int(wanted[2] or size), size - 1)
        if first > last:
            return Response(b"", 416, {"Content-Range": f"bytes */{size}"})
        return Response(content[first : last + 1], 206, {**headers, "Content-Range": f"bytes {first}-{last}/{size}"})


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A Hub without repositories, on a free port."""
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, hub)) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
