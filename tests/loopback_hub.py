"""A hub on loopback that speaks ModelScope's and Hugging Face's protocols to their real SDKs, and fails on demand.

`python tests/loopback_hub.py FOLDER [PORT]` serves FOLDER/OWNER/NAME/* as models.
"""

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE = 1 << 14
KINDS = {"tree": "tree", "files": "listing", "repo": "body", "resolve": "body"}
"""Of requests, by a part of their address."""


@dataclass
class Fault:
    """What goes wrong with one transfer of a file's body."""

    drop_at: int | None = None
    """Bytes of the body after which the connection is cut."""
    corrupt: bool = False
    """One bit of the body flips; the size stays."""
    ignore_range: bool = False
    stall_s: float = 0.0
    """Silence after the first piece."""
    status: int = 0
    """Answered instead of the body."""
    after_offset: int = 0
    """Only requests for a range that starts here or later are hit."""


@dataclass
class Seen:
    """A request as it came in, and how much of a body it has got so far."""

    method: str
    path: str
    range: str
    authorization: str
    sent: int = 0


@dataclass
class LoopbackHub:
    """`with LoopbackHub() as hub:` — then `hub.url` is the endpoint of both SDKs."""

    repositories: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict, repr=False)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    """By file: each transfer meets the first that is left and applies to it."""
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What a listing says about a file, where it is not the truth: Sha256, Size, Path."""
    rate: float = 0.0
    """Bytes a second of each transfer; 0: as fast as it goes."""
    storage: bool = False
    """Bodies come from another host, by a signed address, as from the hubs' object storage."""
    denied: bool = False
    """Listings want a token that nobody has."""
    instead: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    """By kind of request (info, tree, listing, body): status and JSON, or HTML, in place of the truth, each once."""
    slow: dict[str, float] = field(default_factory=dict)
    """By kind of request: seconds of silence before it is answered."""
    page: int = 0
    """Entries in one answer of a listing; 0: all."""
    port: int = 0
    piece: int = PIECE
    """Bytes written at once."""
    seen: list[Seen] = field(default_factory=list)
    sent: int = 0
    """Bytes of bodies so far."""

    def __enter__(self) -> "LoopbackHub":
        self._lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def add(self, repo_id: str, files: Mapping[str, bytes], kind: str = "model") -> None:
        self.repositories[kind, repo_id] = dict(files)

    def transfers(self, path: str) -> list[Seen]:
        """Requests for a file's body."""
        return [seen for seen in self.seen if seen.method == "GET" and seen.path == path]

    def fault(self, path: str, offset: int) -> Fault:
        """The fault that hits this transfer; one that does nothing where there is none left."""
        with self._lock:
            waiting = self.faults.get(path, [])
            if not waiting or offset < waiting[0].after_offset:
                return Fault()
            return waiting.pop(0)

    def entry(self, path: str, content: bytes) -> dict[str, Any]:
        """A file in ModelScope's listing."""
        truth = {"Path": path, "Name": Path(path).name, "Type": "blob", "Size": len(content), "Revision": COMMIT}
        return {**truth, "Sha256": _sha256(content), **self.listed.get(path, {})}

    def leaf(self, path: str, content: bytes) -> dict[str, Any]:
        """A file in Hugging Face's tree: big ones are in LFS, with a SHA-256; small ones git blobs, with a SHA-1."""
        listed = self.listed.get(path, {})
        size = listed.get("Size", len(content))
        if len(content) < 4096:
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return {"type": "file", "path": listed.get("Path", path), "size": size, "oid": blob}
        sha256 = listed.get("Sha256", _sha256(content))
        lfs = {"oid": sha256, "size": size, "pointerSize": 134}
        return {"type": "file", "path": listed.get("Path", path), "size": size, "oid": "0" * 40, "lfs": lfs}


@lru_cache(maxsize=16)
def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: LoopbackHub) -> None:
        super().__init__(("127.0.0.1", hub.port), _Handler)
        self.hub = hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is what these tests are about; anything else is told."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers as both hubs do, from what the server's hub holds."""

    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        try:
            self._route(parts, query)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _route(self, parts: list[str], query: dict[str, str]) -> None:
        kind = next((name for word, name in KINDS.items() if word in parts), "info")
        threading.Event().wait(self.server.hub.slow.get(kind, 0.0))
        if waiting := self.server.hub.instead.get(kind):
            status, body = waiting.pop(0)
            self._json(body, status, {"Retry-After": "0"})
            return
        match parts:
            case ["api", "v1", kinds, owner, name, "repo", "files" | "tree"]:
                self._listing(kinds, f"{owner}/{name}", query)
            case ["api", "v1", kinds, owner, name, "repo"]:
                self._body(kinds, f"{owner}/{name}", query["FilePath"])
            case ["api", kinds, owner, name, "revision", _] | ["api", kinds, owner, name]:
                self._info(kinds, f"{owner}/{name}")
            case ["api", kinds, owner, name, "tree", _]:
                self._tree(kinds, f"{owner}/{name}", int(query.get("cursor", 0)))
            case ["signed", kinds, owner, name, *path]:
                self._body(kinds, f"{owner}/{name}", "/".join(path), signed=True)
            case ["datasets", owner, name, "resolve", _, *path]:
                self._body("datasets", f"{owner}/{name}", "/".join(path))
            case [owner, name, "resolve", _, *path]:
                self._body("models", f"{owner}/{name}", "/".join(path))
            case _:
                self._json({"Code": 404, "Message": "not found"}, 404)

    def _listing(self, kinds: str, repo_id: str, query: dict[str, str]) -> None:
        revision = query.get("Revision", "")
        files = self.server.hub.repositories.get((kinds.removesuffix("s"), repo_id))
        if self.server.hub.denied:
            self._json({"Code": 10010205002, "Message": "no permission", "Success": False}, 403)
            return
        if files is None or revision not in ("master", COMMIT):
            self._json({"Code": 10010205001, "Message": "record not found", "Success": False}, 404)
            return
        entries = [self.server.hub.entry(path, content) for path, content in files.items()]
        if size := int(query.get("PageSize", self.server.hub.page)):
            begin = (int(query.get("PageNumber", 1)) - 1) * size
            entries = entries[begin : begin + size]
        self._json({"Code": 200, "Success": True, "Data": {"Files": entries}})

    def _info(self, kinds: str, repo_id: str) -> None:
        files = self.server.hub.repositories.get((kinds.removesuffix("s"), repo_id))
        if files is None:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        siblings = [{"rfilename": path} for path in files]
        about = {"_id": "x", "id": repo_id, "sha": COMMIT, "private": False, "gated": False, "disabled": False}
        self._json({**about, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings})

    def _tree(self, kinds: str, repo_id: str, begin: int) -> None:
        hub = self.server.hub
        files = list(hub.repositories[kinds.removesuffix("s"), repo_id].items())
        end = begin + (hub.page or len(files))
        following = f"{hub.url}{urlsplit(self.path).path}?recursive=true&cursor={end}"
        more = {"Link": f'<{following}>; rel="next"'} if end < len(files) else {}
        self._json([hub.leaf(path, content) for path, content in files[begin:end]], headers=more)

    def _body(self, kinds: str, repo_id: str, path: str, signed: bool = False) -> None:
        if self.server.hub.storage and not signed:
            storage = self.server.hub.url.replace("127.0.0.1", "localhost")
            self._json({}, 302, {"Location": f"{storage}/signed/{kinds}/{repo_id}/{quote(path)}?Signature=s3cret"})
            return
        content = self.server.hub.repositories.get((kinds.removesuffix("s"), repo_id), {}).get(path)
        if content is None:
            self._json({"Code": 404, "Message": "no such file"}, 404)
            return
        asked = self.headers.get("Range", "")
        first, _, last = asked.removeprefix("bytes=").partition("-")
        offset, stop = int(first or 0), min(int(last) + 1, len(content)) if last else len(content)
        fault = self.server.hub.fault(path, offset) if self.command == "GET" else Fault()
        if fault.status:
            self._saw(path)
            self._json({"Code": fault.status, "Message": "no"}, fault.status)
            return
        if fault.corrupt:
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        if asked and offset >= len(content):
            self._json({}, 416, {"Content-Range": f"bytes */{len(content)}"})
            return
        if not asked or fault.ignore_range:
            offset, stop = 0, len(content)
        self._send(path, content, (offset, stop), bool(asked) and not fault.ignore_range, fault)

    def _send(self, path: str, content: bytes, span: tuple[int, int], ranged: bool, fault: Fault) -> None:
        rest = memoryview(content)[slice(*span)]
        self.send_response(206 if ranged else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{_sha256(content)}"')
        if ranged:
            self.send_header("Content-Range", f"bytes {span[0]}-{span[1] - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        seen = self._saw(path)
        end = len(rest) if fault.drop_at is None else min(fault.drop_at, len(rest))
        while seen.sent < end:
            piece = rest[seen.sent : min(seen.sent + self.server.hub.piece, end)]
            self.server.hub.sent += len(piece)  # first: a client that has it all may look at once
            seen.sent += len(piece)
            self.wfile.write(piece)
            if self.server.hub.rate:
                time.sleep(len(piece) / self.server.hub.rate)
            if fault.stall_s and seen.sent < end:
                self.wfile.flush()
                time.sleep(fault.stall_s)
        if end < len(rest):
            self.wfile.flush()
            self.close_connection = True

    def _saw(self, path: str) -> Seen:
        seen = Seen(self.command, path, self.headers.get("Range", ""), self.headers.get("Authorization", ""))
        self.server.hub.seen.append(seen)
        return seen

    def _json(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        page = isinstance(value, str)
        data = value.encode() if page else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {**(headers or {}), "Content-Type": "text/html" if page else "application/json"}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.server.hub.seen.append(Seen(self.command, self.path, "", self.headers.get("Authorization", "")))


def serve(folder: Path, port: int, wait: Callable[[], None]) -> None:
    """Serve FOLDER/OWNER/NAME/* until `wait` returns."""
    with LoopbackHub(port=port) as hub:
        for repository in sorted(folder.glob("*/*")):
            files = [file for file in repository.rglob("*") if file.is_file()]
            content = {str(file.relative_to(repository)): file.read_bytes() for file in files}
            hub.add(f"{repository.parent.name}/{repository.name}", content)
        print(hub.url, flush=True)
        wait()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, threading.Event().wait)
