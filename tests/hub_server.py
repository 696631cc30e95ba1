"""A Hub on this machine: repositories, commits, uploads and downloads over real HTTP, and faults on demand.

What it answers is what huggingface_hub asks for. A large file is uploaded as an LFS object, in one piece or in parts,
or through Xet, for which hf_xet reads and writes a folder (`local://`) in place of a content store. Large files are
downloaded from another host name than that of the Hub, as from its CDN. Blobs lie in a folder, never in memory.

`python tests/hub_server.py --port 8000` starts one to try things with, and says how to use it.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "t0kenOfTheTestsThatIsNowhereElse"
"""Of the user `me`, who may write everywhere."""

WARNING = "; log in for more"
"""In each answer, as the Hub has it for people who did not."""

LARGE_SUFFIXES = (".safetensors", ".bin", ".parquet", ".png", ".jpg")
"""What becomes an LFS object, as the real Hub's `.gitattributes` says."""

LICENCES = ("apache-2.0", "mit", "other")
"""Those that a card may name; the real Hub has more of them."""

PIECE = 1 << 20
"""Bytes read or written at once."""


@dataclass
class Fault:
    """What goes wrong with the next requests of a kind.

    Args:
        method: of the request.
        path: regular expression that is found in its path.
        kind: a status code; `gone`, there is no such file; `stall`, that is no answer; `drop`, the connection is
            closed amid the request's body; `lost`, all is done and the connection is closed before the answer; `cut`,
            half of the answer is sent; `meet`, nothing goes wrong, but it is done when a second request waits for the
            same.
        times: how many requests meet it.
    """

    method: str
    path: str
    kind: str
    times: int = 1


@dataclass(frozen=True)
class File:
    """A file of a commit; its bytes are the blob `sha256`."""

    sha256: str
    size: int
    is_lfs: bool
    oid: str


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    oid: str
    title: str
    parent: str | None
    files: dict[str, File]


@dataclass
class Repo:
    """A repository: its commits, and the branches and tags that name some of them."""

    private: bool
    is_gated: bool = False
    """Whether its files are only for those whom its owner has let in; nobody is."""
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch, a tag, a pull request or a hash."""
        for names in (self.branches, self.tags, self.pulls):
            if revision in names:
                return self.commits[names[revision]]
        return self.commits.get(revision)

    def history(self, revision: str = "main") -> list[Commit]:
        """From the newest commit to the first."""
        commit, found = self.find(revision), []
        while commit is not None:
            found.append(commit)
            commit = self.commits.get(commit.parent)
        return found


class RefusedError(Exception):
    """An answer that is an error: status, `X-Error-Code` and message."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code


class Hub:
    """The server; `with Hub(folder) as hub` starts and stops it.

    Args:
        folder: for the blobs.
        part_size: bytes from which on an LFS object is uploaded in parts of that size.
        port: where it listens; by default one that is free.
    """

    def __init__(self, folder: Path, part_size: int | None = None, port: int = 0):
        self.folder, self.part_size = folder, part_size
        self.blobs, self.xet = folder / "blobs", folder / "xet"
        for each in (self.blobs, self.xet):
            each.mkdir(parents=True)
        self.users = {TOKEN: "me"}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.moved: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, bool]] = []
        """Method, path, and whether a token came along."""
        self.unknown: list[str] = []
        """What was asked for and is no part of a Hub."""
        self.ranges: list[str] = []
        """Parts of files that were asked for."""
        self.stopping = threading.Event()
        self.lock = threading.RLock()
        self.meeting = threading.Barrier(2, timeout=60)
        self.server = Server(("127.0.0.1", port), type("Bound", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.cdn = f"http://localhost:{self.server.server_port}"  # another origin, which gets no token

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()

    def repo(self, name: str, kind: str = "models") -> Repo:
        """A repository by its id."""
        return self.repos[kind, name]

    def files(self, name: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """What a revision holds."""
        return {path: self.read(file) for path, file in self.repo(name, kind).find(revision).files.items()}

    def read(self, file: File) -> bytes:
        """The bytes of a file that did not come through Xet."""
        return (self.blobs / file.sha256).read_bytes()

    def asked(self, method: str, path: str) -> int:
        """How many requests there were whose path holds the regular expression."""
        return sum(each[0] == method and re.search(path, each[1]) is not None for each in self.requests)

    def put(self, name: str, files: dict[str, bytes], kind: str = "models", private: bool = False) -> Repo:
        """A commit on `main` without a client; the repository is made if it is missing."""
        with self.lock:
            repo = self.repos.setdefault((kind, name), Repo(private))
            changes = {path: self.keep(content, path.endswith(LARGE_SUFFIXES)) for path, content in files.items()}
            parent = repo.find("main")
            self.commit(repo, "main", "put", {**(parent.files if parent else {}), **changes})
        return repo

    def keep(self, content: bytes, is_lfs: bool) -> File:
        """A file with this content."""
        sha256 = hashlib.sha256(content).hexdigest()
        (self.blobs / sha256).write_bytes(content)
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return File(sha256, len(content), is_lfs, sha256 if is_lfs else git)

    def commit(self, repo: Repo, branch: str, title: str, files: dict[str, File]) -> Commit:
        """A new head of a branch."""
        names = repo.pulls if branch.startswith("refs/pr/") else repo.branches
        parent = names.get(branch)
        listed = json.dumps([title, parent, time.time_ns(), sorted((path, file.oid) for path, file in files.items())])
        commit = Commit(hashlib.sha1(listed.encode()).hexdigest(), title, parent, files)
        repo.commits[commit.oid] = commit
        names[branch] = commit.oid
        return commit

    def xet_hash(self, sha256: str) -> str | None:
        """The name by which Xet knows a file, as the shards of the content store say."""
        for shard in self.xet.glob("**/shards/*.mdb"):
            if found := dict(files_in_shard(shard.read_bytes())).get(sha256):
                return found
        return None


def files_in_shard(shard: bytes) -> Iterator[tuple[str, str]]:
    """SHA-256 and Xet hash of each file that a shard of Xet's store describes; records have 48 bytes."""

    def words(start: int) -> str:  # a hash is written as four numbers of 64 bits
        return "".join(f"{word:016x}" for word in struct.unpack_from("<4Q", shard, start))

    place = 48  # after the header
    while shard[place : place + 32] != b"\xff" * 32:
        flags, entries = struct.unpack_from("<II", shard, place + 32)
        name, place = words(place), place + 48 * (1 + entries)
        if flags & 1 << 31:  # a record to verify each entry with
            place += 48 * entries
        if flags & 1 << 30:
            yield words(place), name
            place += 48


class Server(ThreadingHTTPServer):
    """One thread for each connection."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        """Clients that are killed break their connections off, which is nothing to tell of; other errors are."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Nothing on stderr: `Hub.requests` is the log."""

    def do_GET(self):
        self.serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def serve(self) -> None:
        """Answer a request, or meet the fault that waits for it."""
        self.unread = int(self.headers.get("Content-Length", 0))
        self.path_only, self.query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.user = self.hub.users.get(token)
        with self.hub.lock:
            self.hub.requests.append((self.command, self.path_only, bool(token)))
            self.fault = next(
                (each for each in self.hub.faults if each.times and self.meets(each)), Fault("", "", "none")
            )
            self.fault.times -= 1
        if self.fault.kind == "stall":
            self.hub.stopping.wait(60)
        if self.fault.kind == "meet":
            self.hub.meeting.wait()
        if self.fault.kind == "drop":
            self.rfile.read(self.unread // 2)
        if self.fault.kind in ("stall", "drop"):
            self.close_connection = True
            self.connection.close()
            return
        try:
            if self.fault.kind == "gone":
                raise RefusedError(404, "EntryNotFound", "Entry not found")
            if self.fault.kind.isdecimal():
                page = b"<html>out of order</html>"  # as gateways answer
                self.answer(
                    int(self.fault.kind), {"Content-Type": "text/html"}, len(page), lambda: self.wfile.write(page)
                )
                return
            if token and self.user is None:
                raise RefusedError(401, "", "Invalid credentials in Authorization header")
            self.route()
        except RefusedError as refusal:
            headers = {"X-Error-Message": str(refusal), **({"X-Error-Code": refusal.code} if refusal.code else {})}
            self.answer_json({"error": str(refusal)}, refusal.status, headers)

    def meets(self, fault: Fault) -> bool:
        return fault.method == self.command and re.search(fault.path, self.path_only) is not None

    def route(self) -> None:
        """Call what belongs to the path; of a repository that was renamed it is elsewhere."""
        for old, new in self.hub.moved.items():
            if self.command in ("GET", "HEAD") and f"/{old}/" in f"{self.path_only}/":
                self.answer(307, {"Location": self.path.replace(old, new, 1)}, 0)
                return
        for method, pattern, action in ROUTES:
            if self.command == method and (match := pattern.fullmatch(self.path_only)):
                action(self, *(part if part is None else unquote(part) for part in match.groups()))
                return
        self.hub.unknown.append(f"{self.command} {self.path}")
        raise RefusedError(404, "EntryNotFound", f"no such place: {self.command} {self.path_only}")

    # reading and answering

    def pieces(self) -> Iterator[bytes]:
        """The request's body."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        while self.unread:
            piece = self.rfile.read(min(PIECE, self.unread))
            if not piece:
                raise ConnectionResetError
            self.unread -= len(piece)
            yield piece

    def body(self) -> bytes:
        return b"".join(self.pieces())

    def json_body(self) -> dict:
        return json.loads(self.body())

    def answer(self, status: int, headers: dict[str, str], size: int, write: Callable[[], None] | None = None) -> None:
        """Send an answer; `write` writes its body."""
        for _ in self.pieces():  # what an error left unread
            pass
        if self.fault.kind == "lost":
            self.close_connection = True
            self.connection.close()
            return
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(size), "X-HF-Warning": WARNING}.items():
            self.send_header(name, value)
        self.end_headers()
        if write is not None and self.command != "HEAD":
            write()

    def answer_json(self, content, status: int = 200, headers: dict[str, str] | None = None) -> None:
        encoded = json.dumps(content).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
        self.answer(status, headers, len(encoded), lambda: self.wfile.write(encoded))

    def answer_blob(self, path: Path, headers: dict[str, str]) -> None:
        """A file, or the range of it that was asked for."""
        size, start, status = path.stat().st_size, 0, 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, status = int(wanted[1]), 206
            self.hub.ranges.append(wanted[0])
            end = min(int(wanted[2]) + 1, size) if wanted[2] else size
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
        else:
            end = size

        def write() -> None:
            left = end - start
            if self.fault.kind == "cut":
                left, self.close_connection = left // 2, True
            with open(path, "rb") as file:
                file.seek(start)
                while left > 0:
                    left -= self.wfile.write(file.read(min(PIECE, left)))
            if self.fault.kind == "cut":
                self.wfile.flush()
                self.connection.close()

        self.answer(status, {"Accept-Ranges": "bytes", **headers}, end - start, write)

    # repositories

    def open(self, kind: str, name: str) -> Repo:
        """A repository that this user may see."""
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and self.user is None):
            raise RefusedError(401 if self.user is None else 404, "RepoNotFound", "Repository not found")
        return repo

    def open_to_read(self, kind: str, name: str) -> Repo:
        """A repository whose files this user may read."""
        repo = self.open(kind, name)
        if repo.is_gated:
            status = 401 if self.user is None else 403
            raise RefusedError(status, "GatedRepo", f"Access to model {name} is restricted.")
        return repo

    def open_to_write(self, kind: str, name: str) -> Repo:
        if self.user is None:
            raise RefusedError(401, "", "Invalid username or password.")
        return self.open(kind, name)

    def at(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(revision)
        if commit is None:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def who(self) -> None:
        if self.user is None:
            raise RefusedError(401, "", "Invalid username or password.")
        self.answer_json({"type": "user", "name": self.user, "orgs": [{"name": "org"}]})

    def create(self) -> None:
        wanted = self.json_body()
        if self.user is None:
            raise RefusedError(401, "", "Invalid username or password.")
        name = f"{wanted['organization'] or self.user}/{wanted['name']}"
        kind = f"{wanted.get('type') or 'model'}s"
        url = f"{self.hub.url}/{prefix(kind)}{name}"
        with self.hub.lock:
            if (kind, name) in self.hub.repos:
                self.answer_json({"error": "You already created this repo", "url": url}, 409)
                return
            repo = self.hub.repos[kind, name] = Repo(wanted.get("visibility") == "private")
            attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES)
            first = {".gitattributes": self.hub.keep(attributes.encode(), False)}
            self.hub.commit(repo, "main", "initial commit", first)
        self.answer_json({"url": url, "name": name, "id": name})

    def validate(self) -> None:
        content = self.json_body()["content"]
        errors = [] if content.startswith("---\n") else [{"message": "there is no metadata"}]
        if (named := re.search(r"^license: (.+)$", content, re.M)) and named[1] not in LICENCES:
            errors.append({"message": f'"license" must be one of {", ".join(LICENCES)}'})
        self.answer_json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def info(self, kind: str, name: str, revision: str | None) -> None:
        repo = self.open(kind, name)
        commit = self.at(repo, revision or "main")
        siblings = [{"rfilename": path} for path in commit.files]
        self.answer_json({"id": name, "sha": commit.oid, "private": repo.private, "siblings": siblings, "tags": []})

    def tree(self, kind: str, name: str, revision: str, folder: str | None) -> None:
        commit, start = self.at(self.open(kind, name), revision), f"{folder}/" if folder else ""
        inside = {path: file for path, file in commit.files.items() if path.startswith(start)}
        if folder and not inside:
            raise RefusedError(404, "EntryNotFound", f"{folder} does not exist")
        deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        listed, folders = [], set()
        for path, file in inside.items():
            rest = path.removeprefix(start)
            folders |= {start + rest[: found.start()] for found in re.finditer("/", rest)}
            if deep or "/" not in rest:
                listed.append(self.entry(path, file))
        folders = {each for each in folders if deep or "/" not in each.removeprefix(start)}
        listed += [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
        self.answer_json(listed)

    def entry(self, path: str, file: File) -> dict:
        """A file as `tree` and `paths-info` show it."""
        found = {"type": "file", "path": path, "size": file.size, "oid": file.oid[:40]}
        if file.is_lfs:
            found["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
            if xet_hash := self.hub.xet_hash(file.sha256):
                found["xetHash"] = xet_hash
        return found

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        wanted = parse_qs(self.body().decode()).get("paths", [])
        files = self.at(self.open(kind, name), revision).files
        self.answer_json([self.entry(path, files[path]) for path in wanted if path in files])

    def refs(self, kind: str, name: str) -> None:
        repo = self.open(kind, name)

        def listed(names: dict[str, str], folder: str) -> list[dict]:
            return [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": oid} for n, oid in names.items()]

        content = {"branches": listed(repo.branches, "heads"), "tags": listed(repo.tags, "tags"), "converts": []}
        self.answer_json(content)

    def commits(self, kind: str, name: str, revision: str) -> None:
        self.at(repo := self.open(kind, name), revision)
        date = "2026-01-01T00:00:00.000Z"
        listed = [
            {"id": each.oid, "title": each.title, "message": "", "authors": [{"user": "me"}], "date": date}
            for each in repo.history(revision)
        ]
        self.answer_json(listed)

    def branch(self, kind: str, name: str, branch: str) -> None:
        repo, start = self.open_to_write(kind, name), (self.json_body() if self.unread else {})
        if branch in repo.branches:
            raise RefusedError(409, "", "Reference already exists")
        repo.branches[branch] = self.at(repo, start.get("startingPoint") or "main").oid
        self.answer_json({})

    def tag(self, kind: str, name: str, revision: str) -> None:
        repo, tag = self.open_to_write(kind, name), self.json_body()["tag"]
        if tag in repo.tags:
            raise RefusedError(409, "", "Tag already exists")
        repo.tags[tag] = self.at(repo, revision).oid
        self.answer_json({})

    # writing

    def preupload(self, kind: str, name: str, revision: str) -> None:
        repo, wanted = self.open_to_write(kind, name), self.json_body()["files"]
        present = self.at(repo, revision).files
        listed = []
        for each in wanted:
            mode = "lfs" if each["path"].endswith(LARGE_SUFFIXES) else "regular"
            oid = present[each["path"]].oid if each["path"] in present else None
            listed.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer_json({"files": listed})

    def commit(self, kind: str, name: str, revision: str) -> None:
        """A commit, all of it or nothing."""
        repo = self.open_to_write(kind, name)
        lines = [json.loads(line) for line in self.body().splitlines()]
        header = lines[0]["value"]
        with self.hub.lock:
            start = self.at(repo, revision)
            if revision not in repo.branches and revision not in repo.pulls:
                raise RefusedError(404, "RevisionNotFound", f"{revision} is no branch")
            if not start.oid.startswith(header.get("parentCommit", "")):
                raise RefusedError(412, "", "A commit has happened since. Please refresh and try again.")
            files = dict(start.files)
            for line in lines[1:]:
                self.apply(files, line["key"], line["value"])
            answer = {}
            if "create_pr" in self.query:
                revision = f"refs/pr/{len(repo.pulls) + 1}"
                repo.pulls[revision] = start.oid
                answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{revision.rpartition('/')[2]}"
            commit = self.hub.commit(repo, revision, header["summary"], files)
        url = f"{self.hub.url}/{prefix(kind)}{name}/commit/{commit.oid}"
        self.answer_json({"success": True, "commitUrl": url, "commitOid": commit.oid, **answer})

    def apply(self, files: dict[str, File], key: str, value: dict) -> None:
        path = value["path"]
        if path.startswith("/") or ".." in path.split("/"):
            raise RefusedError(400, "", f"invalid path {path}")
        if key == "file":
            files[path] = self.hub.keep(base64.b64decode(value["content"]), False)
        elif key == "lfsFile":
            if not (self.hub.blobs / value["oid"]).exists() and self.hub.xet_hash(value["oid"]) is None:
                raise RefusedError(400, "", f"the LFS object of {path} was not uploaded")
            files[path] = File(value["oid"], value["size"], True, value["oid"])
        elif key == "deletedFile":
            del files[path]
        else:
            assert key == "deletedFolder"
            for each in [each for each in files if each.startswith(path)]:
                del files[each]

    def lfs_batch(self, kind: str | None, name: str) -> None:
        self.open_to_write(kind or "models", name)
        listed = []
        for each in self.json_body()["objects"]:
            oid, size, entry = each["oid"], each["size"], {"oid": each["oid"], "size": each["size"]}
            if not (self.hub.blobs / oid).exists():
                upload = {"href": f"{self.hub.cdn}/lfs/{oid}"}
                if self.hub.part_size and size > self.hub.part_size:
                    count = -(-size // self.hub.part_size)
                    parts = {str(n + 1): f"{self.hub.cdn}/lfs-part/{oid}/{n + 1}" for n in range(count)}
                    upload = {
                        "href": f"{self.hub.url}/lfs-complete/{oid}",
                        "header": {"chunk_size": str(self.hub.part_size), **parts},
                    }
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs-verify"}}
            listed.append(entry)
        self.answer_json({"transfer": "basic", "objects": listed})

    def lfs_put(self, oid: str, part: str | None = None) -> None:
        pending = self.hub.blobs / f"pending-{oid}-{part}-{threading.get_ident()}"
        digest = hashlib.sha256()
        try:
            with open(pending, "wb") as file:
                for piece in self.pieces():
                    digest.update(piece)
                    file.write(piece)
            if part is None and digest.hexdigest() != oid:
                raise RefusedError(400, "", "the object is not what was announced")
            pending.replace(self.hub.blobs / (oid if part is None else f"{oid}.{part}"))
        finally:
            pending.unlink(missing_ok=True)
        self.answer(200, {"ETag": f'"{digest.hexdigest()}"'}, 0)

    def lfs_complete(self, oid: str) -> None:
        parts = [self.hub.blobs / f"{oid}.{part['partNumber']}" for part in self.json_body()["parts"]]
        whole = self.hub.blobs / f"pending-{oid}"
        with open(whole, "wb") as file:
            for part in parts:
                with open(part, "rb") as piece:
                    shutil.copyfileobj(piece, file)
                part.unlink()
        whole.replace(self.hub.blobs / oid)
        self.answer_json({"success": True})

    def lfs_verify(self) -> None:
        blob = self.json_body()
        found = self.hub.blobs / blob["oid"]
        if not found.exists() or found.stat().st_size != blob["size"]:
            raise RefusedError(400, "", "the LFS object is not there")
        self.answer_json({})

    def xet_token(self, kind: str, name: str, purpose: str, _revision: str) -> None:
        (self.open_to_write if purpose == "write" else self.open)(kind, name)
        expires = str(int(time.time()) + 3600)
        headers = {
            "X-Xet-Cas-Url": f"local://{self.hub.xet}",
            "X-Xet-Access-Token": "of-the-store",
            "X-Xet-Token-Expiration": expires,
        }
        content = {"casUrl": headers["X-Xet-Cas-Url"], "accessToken": "of-the-store", "exp": int(expires)}
        self.answer_json(content, headers=headers)

    # reading

    def resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        kind = kind or "models"
        commit = self.at(self.open_to_read(kind, name), revision)
        headers = {"X-Repo-Commit": commit.oid}
        file = commit.files.get(path)
        if file is None:
            error = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", **headers}
            self.answer_json({"error": "Entry not found"}, 404, error)
            return
        if not file.is_lfs:
            self.answer_blob(self.hub.blobs / file.sha256, {**headers, "ETag": f'"{file.oid}"'})
            return
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        if xet_hash := self.hub.xet_hash(file.sha256):
            route = f"{self.hub.url}/api/{kind}/{name}/xet-read-token/{commit.oid}"
            headers |= {"X-Xet-Hash": xet_hash, "Link": f'<{route}>; rel="xet-auth"'}
        self.answer(302, {**headers, "Location": f"{self.hub.cdn}/cdn/{file.sha256}"}, 0)

    def cdn(self, sha256: str) -> None:
        if not (self.hub.blobs / sha256).exists():
            raise RefusedError(404, "EntryNotFound", "this file lies in the store of Xet alone")
        self.answer_blob(self.hub.blobs / sha256, {"ETag": f'"{sha256}"'})


def prefix(kind: str) -> str:
    """What stands before a repository's id in the address of its page."""
    return "" if kind == "models" else f"{kind}/"


REPO = r"/api/(models|datasets|spaces)/([^/]+/[^/]+)"
PAGE = r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)"
ROUTES = [
    (method, re.compile(pattern), action)
    for method, pattern, action in (
        ("GET", r"/api/whoami-v2", Handler.who),
        ("POST", r"/api/repos/create", Handler.create),
        ("POST", r"/api/validate-yaml", Handler.validate),
        ("GET", REPO + r"(?:/revision/([^/]+))?", Handler.info),
        ("GET", REPO + r"/tree/([^/]+)(?:/(.+))?", Handler.tree),
        ("POST", REPO + r"/paths-info/([^/]+)", Handler.paths_info),
        ("GET", REPO + r"/refs", Handler.refs),
        ("GET", REPO + r"/commits/([^/]+)", Handler.commits),
        ("POST", REPO + r"/branch/([^/]+)", Handler.branch),
        ("POST", REPO + r"/tag/([^/]+)", Handler.tag),
        ("POST", REPO + r"/preupload/([^/]+)", Handler.preupload),
        ("POST", REPO + r"/commit/([^/]+)", Handler.commit),
        ("GET", REPO + r"/xet-(read|write)-token/([^/]+)", Handler.xet_token),
        ("POST", PAGE + r"\.git/info/lfs/objects/batch", Handler.lfs_batch),
        ("PUT", r"/lfs/(\w+)", Handler.lfs_put),
        ("PUT", r"/lfs-part/(\w+)/(\d+)", Handler.lfs_put),
        ("POST", r"/lfs-complete/(\w+)", Handler.lfs_complete),
        ("POST", r"/lfs-verify", Handler.lfs_verify),
        ("HEAD", PAGE + r"/resolve/([^/]+)/(.+)", Handler.resolve),
        ("GET", PAGE + r"/resolve/([^/]+)/(.+)", Handler.resolve),
        ("HEAD", r"/cdn/(\w+)", Handler.cdn),
        ("GET", r"/cdn/(\w+)", Handler.cdn),
    )
]


def main() -> int:
    """A Hub of one's own, until Ctrl-C; what was pushed to it is gone then."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="where it listens (default: one that is free)")
    port = parser.parse_args().port
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would not hear Ctrl-C
    with tempfile.TemporaryDirectory() as folder:
        try:
            hub = Hub(Path(folder), port=port)
        except (OSError, OverflowError) as error:
            print(f"the port {port} cannot be used ({error}): give another --port.", file=sys.stderr)
            return 2
        with hub:
            variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": f"{folder}/home"}
            variables["HF_HUB_DISABLE_XET"] = "1"  # not every version of hf_xet knows a folder as its store
            print("export", *(f"{name}={value}" for name, value in variables.items()), flush=True)
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
