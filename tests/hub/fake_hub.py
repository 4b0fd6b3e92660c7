"""A fake server with the hub's HTTP API (listings, trees, files with ranges) for an unmodified huggingface_hub."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Repo:
    """A model: its files at each commit, its branches, and its access restrictions."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    token: str | None = None
    gated: bool = False


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted((name, _oid(data)) for name, data in files.items())).encode()).hexdigest()


@dataclass
class Hub:
    """The models of the server, its data sets (with names "datasets/owner/name"), and a record of its traffic.

    Attributes:
        requests: method and path of each request, in order.
        bytes_sent: total size of the files sent.
        listing: replaces the body of every listing; a string is sent as HTML, an integer as the HTTP status.
        damaged_files: names of files that are sent with one bit changed.
        seconds_per_megabyte: how slowly files are sent.
        interrupt_after: the next download of more bytes than this stops after this number; None: no download stops.
    """

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    bytes_sent: int = 0
    interrupt_after: int | None = None
    listing: dict[str, Any] | str | int | None = None
    damaged_files: tuple[str, ...] = ()
    seconds_per_megabyte: float = 0.0

    def add(self, name: str, files: dict[str, bytes], branch: str = "main", **settings: Any) -> Repo:
        commit = commit_of(files)
        repo = self.repos.setdefault(name, Repo({}, {}, **settings))
        repo.commits[commit], repo.branches[branch] = files, commit
        return repo


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        url = urlsplit(self.path)
        parts = unquote(url.path).strip("/").split("/")
        is_api = parts[:1] == ["api"]
        prefix = "datasets/" if "datasets" in parts[:2] else ""
        parts = parts[2 if is_api else len(prefix) > 0 :]
        name, rest = prefix + "/".join(parts[:2]), parts[2:]
        repo = self.hub.repos.get(name)
        if repo is None or (repo.token is not None and self.headers.get("Authorization") != f"Bearer {repo.token}"):
            return self._refuse(401 if repo is None else 404, "RepoNotFound")
        revision = rest[1] if len(rest) > 1 else "main"
        commit = repo.branches.get(revision, revision)
        files = repo.commits.get(commit)
        if files is None:
            return self._refuse(404, "RevisionNotFound")
        if not is_api:
            return self._send_file(repo, commit, files, "/".join(rest[2:]))
        if rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": path, "size": len(data), "oid": _oid(data)} for path, data in files.items()
            ]
            return self._send_json(tree)
        if isinstance(self.hub.listing, int):
            return self._refuse(self.hub.listing, "Unavailable")
        if isinstance(self.hub.listing, str):
            return self._send(self.hub.listing.encode(), "text/html")
        sizes = "blobs" in parse_qs(url.query)
        siblings = [
            {"rfilename": path} | ({"size": len(data), "blobId": _oid(data)} if sizes else {})
            for path, data in files.items()
        ]
        listing = {"id": name, "sha": commit, "siblings": siblings, "private": False, "gated": repo.gated}
        return self._send_json(listing | (self.hub.listing or {}))

    def _send_file(self, repo: Repo, commit: str, files: dict[str, bytes], path: str) -> None:
        if repo.gated:
            return self._refuse(403, "GatedRepo")
        if path not in files:
            return self._refuse(404, "EntryNotFound")
        data = files[path]
        first = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0]) if "Range" in self.headers else 0
        self.send_response(206 if first else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{_oid(data)}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        if path in self.hub.damaged_files:
            data = data[:-1] + bytes((data[-1] ^ 1,))
        body = data[first:]
        if self.hub.interrupt_after is not None and len(body) > self.hub.interrupt_after:
            body, self.hub.interrupt_after = body[: self.hub.interrupt_after], None
            self.close_connection = True
        self.hub.bytes_sent += len(body)
        for at in range(0, len(body), 2**18):
            time.sleep(self.hub.seconds_per_megabyte / 4)
            try:
                self.wfile.write(body[at : at + 2**18])
            except (BrokenPipeError, ConnectionResetError):  # the client was interrupted
                self.close_connection = True
                break
        return None

    def _send_json(self, content: Any) -> None:
        self._send(json.dumps(content).encode(), "application/json")

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@functools.lru_cache(maxsize=64)
def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def run_hub() -> Iterator[Hub]:
    """Runs the server until the end of the `with` block, at the `url` of the returned `Hub`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
