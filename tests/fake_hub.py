"""A Hugging Face Hub on 127.0.0.1, in a thread: as much of it as pushing and pulling uses.

Repositories, commits and large files (git-lfs) are in memory. Every request is kept in `seen`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right"
LARGE = 4096
"""Bytes from which a file goes through git-lfs."""


class Repository:
    def __init__(self, private: bool) -> None:
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        """Files by commit, the latest last."""
        self.commit({})

    def commit(self, files: dict[str, bytes]) -> str:
        content = sorted((path, hashlib.sha256(data).hexdigest()) for path, data in files.items())
        sha = hashlib.sha1(json.dumps([len(self.commits), content]).encode()).hexdigest()
        self.commits[sha] = files
        return sha

    @property
    def head(self) -> str:
        return [*self.commits][-1]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.head]


class FakeHub:
    """`with FakeHub() as hub`: it answers at `hub.url`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        """By kind and name, such as models/me/policy."""
        self.large: dict[str, bytes] = {}
        self.seen: list[str] = []
        """Method and path of each request."""
        self.refuses: tuple[int, str] | None = None
        """Status and message with which every request is answered."""

        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    # --- requests ---

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.seen.append(f"{self.command} {path}")
        if self.hub.refuses is not None:
            status, message = self.hub.refuses
            self._send(status, {"error": message})
            return
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            self._api(parts[1:], body)
        elif parts[0] == "large":
            if self.command == "PUT":
                assert hashlib.sha256(body).hexdigest() == parts[1]
                self.hub.large[parts[1]] = body
            self._send(200, {})
        else:
            kind = "datasets" if parts[0] == "datasets" else "models"
            owner, name, *rest = parts[kind == "datasets" :]
            if rest[0] == "info":
                self._batch(json.loads(body))
            else:
                self._file(f"{kind}/{owner}/{name}", rest[1], "/".join(rest[2:]))

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815 (the server's names)

    def _api(self, parts: list[str], body: bytes) -> None:
        if parts == ["repos", "create"]:
            self._create(json.loads(body))
            return
        if parts == ["validate-yaml"]:
            self._send(200, {"errors": [], "warnings": []})
            return
        if len(parts) < 3:  # huggingface_hub asks for more than it needs
            self._send(404, {})
            return
        kind, owner, name, *rest = parts
        repository = self._repository(f"{kind}/{owner}/{name}")
        if repository is None:
            return
        action, revision, *_ = rest or ["revision", "main"]
        if action == "preupload":
            files = [_mode(each, repository.files) for each in json.loads(body)["files"]]
            self._send(200, {"files": files})
            return
        if action == "commit":
            self._commit(repository, f"{owner}/{name}", body)
            return
        sha = repository.head if revision == "main" else revision
        if sha not in repository.commits:
            self._send(404, {}, **{"X-Error-Code": "RevisionNotFound"})
            return
        files = repository.commits[sha]
        if action == "tree":
            self._send(200, [_entry(path, data) for path, data in files.items()])
        else:
            siblings = [{"rfilename": path} for path in files]
            self._send(200, {"id": f"{owner}/{name}", "sha": sha, "siblings": siblings})

    def _create(self, asked: dict[str, Any]) -> None:
        if not self._may_write():
            return
        id_ = f"{asked['organization']}/{asked['name']}"
        key = f"{asked.get('type', 'model')}s/{id_}"
        told = {"url": f"{self.hub.url}/{id_}", "id": id_, "name": id_}
        if key in self.hub.repositories:
            self._send(409, {"error": "You already created this repo", **told})
            return
        # Older clients say it in another way.
        private = asked.get("visibility") == "private" or asked.get("private", False)
        self.hub.repositories[key] = Repository(private)
        self._send(200, told)

    def _commit(self, repository: Repository, id_: str, body: bytes) -> None:
        if not self._may_write():
            return
        files = dict(repository.files)
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
            else:
                assert entry["key"] == "header"
        sha = repository.commit(files)
        url = f"{self.hub.url}/{id_}/commit/{sha}"
        self._send(200, {"success": True, "commitOid": sha, "commitUrl": url})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for each in asked["objects"]:
            address = f"{self.hub.url}/large/{each['oid']}"
            actions = {"upload": {"href": address}, "verify": {"href": f"{address}/verify"}}
            objects.append({**each, "actions": actions})
        self._send(200, {"transfer": "basic", "objects": objects})

    def _file(self, key: str, revision: str, path: str) -> None:
        repository = self._repository(key)
        if repository is None:
            return
        data = repository.commits[revision].get(path)
        if data is None:
            self._send(404, {}, **{"X-Error-Code": "EntryNotFound"})
            return
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        headers = {"X-Repo-Commit": revision, "ETag": etag, "Accept-Ranges": "bytes"}
        self._send(200, data, **headers)

    # --- answers ---

    def _may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._send(401, {"error": "Invalid username or password."})
        return False

    def _repository(self, key: str) -> Repository | None:
        found = self.hub.repositories.get(key)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None or (found.private and not known):
            status = 404 if known else 401  # as the Hub, which does not say that it exists
            self._send(
                status, {"error": "Repository not found"}, **{"X-Error-Code": "RepoNotFound"}
            )
            return None
        return found

    def _send(self, status: int, content: Any, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if not isinstance(content, bytes):
            self.send_header("Content-Type", "application/json")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _mode(file: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
    mode = "lfs" if file["size"] >= LARGE else "regular"
    told = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
    if file["path"] in files:
        entry = _entry(file["path"], files[file["path"]])
        told["oid"] = entry.get("lfs", entry)["oid"]
    return told


def _entry(path: str, data: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry = {"type": "file", "path": path, "size": len(data), "oid": blob}
    if len(data) >= LARGE:
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
    return entry
