"""A small model hub on loopback: the endpoints that huggingface_hub calls to create, fill and read a model."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "t" * 34
BINARY = (".safetensors", ".h5")  # stored as LFS objects


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"{len(self.commits)} {sorted(self.files)}".encode()).hexdigest()


class Hub:
    """Repositories by "user/name". A write needs ``TOKEN``, as does a private repository, which is 404 without it."""

    def __init__(self, server: ThreadingHTTPServer):
        self.address = f"http://127.0.0.1:{server.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []


@contextlib.contextmanager
def loopback_hub() -> Iterator[Hub]:
    """Serve a hub on a free port of loopback until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = Hub(server)  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.hub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_PUT = do_POST = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        body = self._body()
        self.hub.requests.append(f"{self.command} {path}")
        parts = path.split("/")
        if path == "api/repos/create":
            return self._create(json.loads(body))
        if path == "api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if parts[0] == "objects":
            self.hub.objects[parts[1]] = body
            return self._json({})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self._known()):
            return self._refuse(404, "RepoNotFound", "Repository not found")
        rest = parts[4:] if parts[0] == "api" else parts[2:]
        return self._repository(name, found, rest, body)

    def _repository(self, name: str, found: Repository, rest: list[str], body: bytes) -> None:
        rest = rest or ["revision", "main"]  # about the repository
        if rest[0] in ("preupload", "commit") and not self._known():
            return self._refuse(401, "", "Invalid credentials")
        if rest[0] == "preupload":
            files = [f["path"] for f in json.loads(body)["files"]]
            mode = {f: "lfs" if f.endswith(BINARY) else "regular" for f in files}
            return self._json({"files": [{"path": f, "uploadMode": mode[f], "shouldIgnore": False} for f in files]})
        if rest[0] == "commit":
            for line in body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "file":
                    found.files[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    found.files[value["path"]] = self.hub.objects[value["oid"]]
                elif item["key"] == "header":
                    found.commits.append(value["summary"])
            url = f"{self.hub.address}/{name}/commit/{found.sha}"
            return self._json({"success": True, "commitOid": found.sha, "commitUrl": url})
        if rest[0] in ("revision", "tree", "resolve") and rest[1] not in ("main", found.sha):
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {rest[1]}")
        if rest[0] == "revision":
            siblings = [{"rfilename": file} for file in found.files]
            return self._json(
                {"id": name, "modelId": name, "sha": found.sha, "private": found.private} | {"siblings": siblings}
            )
        if rest[0] == "tree":
            rows = [{"type": "file", "path": f, "size": len(b), "oid": _etag(b)} for f, b in found.files.items()]
            return self._json(rows)
        if rest[0] == "resolve" and (data := found.files.get("/".join(rest[2:]))) is not None:
            return self._send(200, data, {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": found.sha})
        return self._refuse(404, "EntryNotFound", "Entry not found")

    def _create(self, asked: dict[str, Any]) -> None:
        if not self._known():
            return self._refuse(401, "", "Invalid username or password.")
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.hub.address}/{name}", "name": name}
        if asked["organization"] != "user":
            return self._refuse(403, "", "You don't have the rights to create a model under this namespace")
        if name in self.hub.repositories:
            return self._json(url | {"error": "You already created this model repo"}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[name] = Repository(private)
        return self._json(url)

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.hub.address}/objects/{o['oid']}"}}} for o in asked["objects"]
        ]
        return self._json({"transfer": "basic", "objects": objects})

    def _known(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
