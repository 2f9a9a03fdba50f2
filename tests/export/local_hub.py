"""A model hub on this machine, as huggingface_hub calls it without xet: making a repository, uploads, downloads.

Answers the requests of one upload, keeps the files of each commit, and serves them again. Nothing else is served.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

TOKEN = "hf_local"
COMMIT = "0" * 40


@dataclass
class LocalHub:
    """Address, and what was uploaded: repository -> path -> bytes.

    requests: method and path of each. refuse: start of a path -> status with which it is answered.
    """

    endpoint: str
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    refuse: dict[str, int] = field(default_factory=dict)


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Serve a hub until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    server.hub = LocalHub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Answers(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print nothing."""

    @property
    def hub(self) -> LocalHub:
        return self.server.hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._is_refused():
            return
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}"
            self.hub.repositories.setdefault(name, {})
            self._answer({"url": f"{self.hub.endpoint}/{name}"})
        elif self.path == "/api/validate-yaml":
            front = json.loads(body)["content"].split("---\n")[1]
            self._answer({} if "license" in yaml.safe_load(front) else {"errors": [{"message": "no license"}]})
        elif self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".nemo") else "regular" for name in names}
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            self._answer({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            upload = {each["oid"]: {"upload": {"href": f"{self.hub.endpoint}/lfs/{each['oid']}"}} for each in objects}
            self._answer({"objects": [{**each, "actions": upload[each["oid"]]} for each in objects]})
        elif self.path.endswith("/commit/main"):
            self._commit(self.path.removeprefix("/api/models/").removesuffix("/commit/main"), body)
        else:
            self._answer({"error": "unknown"}, 404)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.requests.append(f"PUT {self.path}")
        oid = self.path.removeprefix("/lfs/")
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self._answer({})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        repository, found, name = self.path.removeprefix("/").partition("/resolve/main/")
        content = self.hub.repositories.get(repository, {}).get(name)
        if not found or content is None:
            return self._answer({"error": "unknown"}, 404)
        tag = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return self._send(content, 200, {"Content-Type": "application/octet-stream", **tag})

    def _commit(self, repository: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.hub.repositories[repository][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.repositories[repository][value["path"]] = self.hub.objects[value["oid"]]
        self._answer({"commitUrl": f"{self.hub.endpoint}/{repository}/commit/{COMMIT}", "commitOid": COMMIT})

    def _is_refused(self) -> bool:
        self.hub.requests.append(f"{self.command} {self.path}")
        status = next((code for start, code in self.hub.refuse.items() if self.path.startswith(start)), None)
        if status is None and self.headers["Authorization"] != f"Bearer {TOKEN}":
            status = 401
        if status is not None:
            self._answer({"error": f"refused with {status}"}, status)
        return status is not None

    def _answer(self, content: dict, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
