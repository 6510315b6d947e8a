"""A model hub on this machine: what huggingface_hub sends to one is kept, and given back."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + 34 * "0"


class Hub:
    """``files`` by repository and path; ``requests`` as (method, path, token); ``url``."""

    def __init__(self, url):
        self.url, self.files, self.requests, self.created = url, {}, [], []
        self.messages = []


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, body, headers=(), status=200):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def note(self):
        hub = self.server.hub
        hub.requests.append((self.command, self.path, self.headers.get("Authorization")))
        return hub

    def do_POST(self):
        hub = self.note()
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            asked = json.loads(raw)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            private = asked.get("private") or asked.get("visibility") == "private"
            hub.created.append((name, bool(private)))
            return self.answer({"url": f"{hub.url}/{name}", "name": name, "id": name})
        if self.path == "/api/validate-yaml":  # the card's header
            assert "library_name: vae_fast" in json.loads(raw)["content"]
            return self.answer({"errors": [], "warnings": []})
        repo = self.path.removeprefix("/api/models/").split("/")
        name, verb = "/".join(repo[:2]), repo[2]
        if verb == "preupload":  # every file within the commit itself
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for f in json.loads(raw)["files"]]  # fmt: skip
            return self.answer({"files": files})
        assert verb == "commit", self.path
        kept = hub.files.setdefault(name, {})
        for line in map(json.loads, raw.splitlines()):
            if line["key"] == "header":
                hub.messages.append(line["value"]["summary"])
            elif line["key"] == "file":
                assert line["value"]["encoding"] == "base64"
                kept[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            else:
                raise AssertionError(line)
        self.answer({"success": True, "commitOid": COMMIT,
                     "commitUrl": f"{hub.url}/{name}/commit/{COMMIT}"})  # fmt: skip

    def do_GET(self):
        hub = self.note()
        name, _, rest = self.path.lstrip("/").partition("/resolve/")
        path = rest.partition("/")[2]
        content = hub.files.get(name, {}).get(path)
        if content is None:
            code = "EntryNotFound" if name in hub.files else "RepoNotFound"
            return self.answer({"error": code}, {"X-Error-Code": code}, 404)
        etag = hashlib.sha256(content).hexdigest()
        self.answer(content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET


@contextmanager
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
