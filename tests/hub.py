"""For tests: a stand-in for the Hugging Face hub on the loopback, with the calls that a small model needs."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading


class Hub(http.server.ThreadingHTTPServer):
    """Repositories are folders of bytes by name; every commit has a number."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}  # repo -> revision -> files
        self.tokens: set[str | None] = set()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        self.repos[repo] |= files
        revision = hashlib.sha1(repr(sorted(self.repos[repo].items())).encode()).hexdigest()
        self.commits.setdefault(repo, {})[revision] = dict(self.repos[repo])
        return revision


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status: int, body: bytes = b"{}", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/validate-yaml":
            return self.answer(200, b'{"errors": [], "warnings": []}')
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if repo in self.server.repos:
                return self.answer(409, json.dumps({"url": f"{self.server.url}/{repo}"}).encode())
            self.server.repos[repo] = {}
            self.server.commit(repo, {})
            return self.answer(200, json.dumps({"url": f"{self.server.url}/{repo}", "name": repo}).encode())
        repo, job = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main.*", self.path).groups()
        if job == "preupload":
            return self.answer(200, json.dumps({"files": [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]]}).encode())
        lines = [json.loads(line) for line in body.splitlines() if line]
        revision = self.server.commit(repo, {line["value"]["path"]: base64.b64decode(line["value"]["content"])
                                             for line in lines if line["key"] == "file"})
        self.answer(200, json.dumps({"success": True, "commitOid": revision,
                                     "commitUrl": f"{self.server.url}/{repo}/commit/{revision}"}).encode())

    def do_GET(self) -> None:
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/?]+)?(?:\?.*)?", self.path)
        if about and about[1] in self.server.repos:
            revision = list(self.server.commits[about[1]])[-1]
            return self.answer(200, json.dumps({"id": about[1], "sha": revision, "siblings": [
                {"rfilename": name} for name in self.server.repos[about[1]]]}).encode())
        asked = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if not asked or asked[1] not in self.server.repos:
            return self.answer(404, X_Error_Code="RepoNotFound")
        commits = self.server.commits[asked[1]]
        revision = list(commits)[-1] if asked[2] == "main" else asked[2]
        if revision not in commits:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if asked[3] not in commits[revision]:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=revision)
        content = commits[revision][asked[3]]
        self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=revision,
                    Accept_Ranges="bytes")

    do_HEAD = do_GET


@contextlib.contextmanager
def running():
    """A hub that answers in this block."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
