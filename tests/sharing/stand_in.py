"""A stand-in for the Hugging Face hub on this machine: what of its protocol fetching and pushing take."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Files by repository; `cut` cuts the answers for a file off in the middle."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.cut: str | None = None
        self.address = ""


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers at ``hub.address``."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._get(with_body=False)

    def do_GET(self) -> None:
        self._get(with_body=True)

    def _get(self, with_body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts == [""]:
            return self._json({})
        if parts[:2] == ["api", "models"]:
            files = self.hub.files.get("/".join(parts[2:4]))
            if files is None:
                return self._missing("RepoNotFound", "Repository not found")
            if len(parts) > 5 and parts[5] not in ("main", SHA):
                return self._missing("RevisionNotFound", f"Invalid rev id: {parts[5]}")
            if parts[4:5] == ["tree"]:
                entries = [{"type": "file", "path": n, "size": len(b), "oid": _oid(b)} for n, b in files.items()]
                return self._json(entries)
            name = "/".join(parts[2:4])
            return self._json({
                "id": name, "modelId": name, "sha": SHA, "private": name in self.hub.private, "tags": [],
                "siblings": [{"rfilename": n, "size": len(b), "blobId": _oid(b)} for n, b in files.items()],
            })  # fmt: skip
        if parts[2:3] == ["resolve"]:
            body = self.hub.files.get("/".join(parts[:2]), {}).get("/".join(parts[4:]))
            if body is None:
                return self._missing("EntryNotFound", "Entry not found")
            headers = {"ETag": f'"{_oid(body)}"', "X-Repo-Commit": SHA, "Content-Length": str(len(body))}
            self._start(200, headers)
            if with_body:
                self.wfile.write(body[: len(body) // 2] if self.hub.cut == parts[-1] else body)
            return None
        return self._missing("EntryNotFound", "no such thing")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.hub.files.setdefault(name, {})
            self.hub.private |= {name} if asked.get("private") or asked.get("visibility") == "private" else set()
            return self._json({"url": f"{self.hub.address}/{name}", "name": name, "id": name})
        if parts[4:5] == ["preupload"]:
            wanted = json.loads(body)["files"]
            return self._json({
                "files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted]
            })  # fmt: skip
        if parts[4:5] == ["commit"]:
            name = "/".join(parts[2:4])
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.hub.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.hub.address}/{name}/commit/{SHA}"
            return self._json({"success": True, "commitUrl": url, "commitOid": SHA})
        return self._json({})

    def _json(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self._start(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self, code: str, message: str) -> None:
        self._start(404, {"X-Error-Code": code, "X-Error-Message": message, "Content-Length": "0"})

    def _start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()


def _oid(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()
