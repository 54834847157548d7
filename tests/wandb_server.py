"""A small stand-in for W&B's server, on loopback: it takes what `wandb` sends online and keeps it by run.

Answers the GraphQL operations that runs, their files and their artifacts need. Nothing of W&B's code is used.
"""

import gzip
import json
import re
import threading
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "0" * 40  # what `wandb` takes for a key
ENTITY = "someone"


@dataclass
class Run:
    """What the server knows of a run."""

    fields: dict = field(default_factory=dict)
    """Of the latest `upsertBucket`."""
    begun: int = 0
    """Times it was opened."""
    history: dict[int, dict] = field(default_factory=dict)
    """Rows by place."""
    summary: dict = field(default_factory=dict)
    exit_code: int | None = None
    files: set[str] = field(default_factory=set)

    @property
    def name(self):
        return self.fields["displayName"]


class Server:
    """Serves while it is entered."""

    def __init__(self):
        self.runs: dict[str, Run] = defaultdict(Run)
        self.committed: set[str] = set()  # artifacts, of which `uploads` holds the files
        self.uploads: dict[str, bytes] = {}
        self.unknown: list[str] = []  # operations that are not answered
        self.down = False
        self._http = _Quiet(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_": self}))
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()

    def by_name(self):
        return {run.name: run for run in self.runs.values()}

    # -- GraphQL -----------------------------------------------------------------------------------------------------

    def operation(self, name, given):
        answer = getattr(self, f"_{name}", None)
        if answer is None:
            self.unknown.append(name)
            return {}
        return answer(given)

    def _Viewer(self, given):
        return {
            "viewer": {"id": "VXNlcjox", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}
        }

    def _UpsertBucket(self, given):
        run = self.runs[given["name"]]
        run.begun += "id" in given and given["id"] is None
        run.fields |= {key: value for key, value in given.items() if value is not None}
        project = {"id": "project", "name": given["project"], "entity": {"id": "entity", "name": ENTITY}}
        bucket = {"id": given["name"], "name": given["name"], "displayName": run.name, "project": project}
        return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": run.begun == 1}}

    def _CreateRunFiles(self, given):
        files = [{"name": name, "uploadUrl": self._place(f"{given['run']}/{name}")} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _ArtifactType(self, given):
        return {"project": None}

    def _ServerFeaturesQuery(self, given):
        return {"serverInfo": {"features": []}}

    def _CreateArtifact(self, given):
        asked = given.get("input") or given
        name = asked.get("artifactCollectionName") or (asked.get("artifactCollectionNames") or ["?"])[0]
        made = {"id": name, "state": "PENDING", "artifactSequence": {"id": name, "latestArtifact": None}}
        return {"createArtifact": {"artifact": made}}

    def _CreateArtifactManifest(self, given):
        place = self._place(f"artifacts/{given['artifactID']}/manifest")
        file = {
            "id": "file",
            "name": given["name"],
            "displayName": given["name"],
            "uploadUrl": place,
            "uploadHeaders": [],
        }
        return {"createArtifactManifest": {"artifactManifest": {"id": given["artifactID"], "file": file}}}

    def _UpdateArtifactManifest(self, given):
        made = self._CreateArtifactManifest({"artifactID": given["artifactManifestID"], "name": "wandb_manifest.json"})
        return {"updateArtifactManifest": made["createArtifactManifest"]}

    def _CreateArtifactFiles(self, given):
        nodes = [
            {
                "id": "file", "name": file["name"], "displayName": file["name"], "storagePath": None, "uploadHeaders": [],
                "uploadUrl": self._place(f"artifacts/{file['artifactID']}/{file['name']}"), "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]},
            }
            for file in given["input"]["artifactFiles"]
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _CommitArtifact(self, given):
        self.committed.add(given["artifactID"])
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": ""}}}

    def _place(self, name):
        return f"{self.address}/uploads/{name}"

    def streamed(self, name, body):
        """What a file stream adds to a run."""
        run = self.runs[name]
        for kind, part in body.get("files", {}).items():
            rows = [json.loads(line) for line in part["content"]]
            if kind == "wandb-history.jsonl":
                run.history |= {part["offset"] + place: row for place, row in enumerate(rows)}
            elif kind == "wandb-summary.json":
                run.summary = rows[-1]
        if body.get("complete"):
            run.exit_code = body.get("exitcode")


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, *_):
        """A client that hangs up is none."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_: Server

    def log_message(self, *_):
        """Quiet."""

    def do_GET(self):
        self._answer({})

    def do_PUT(self):
        self.server_.uploads[self.path.removeprefix("/uploads/")] = self._body()
        self._answer({})

    def do_POST(self):
        body = self._body()
        if self.server_.down:
            return self._answer({"error": "down"}, 503)
        if self.path == "/graphql":
            asked = json.loads(body)
            name = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])[1]
            return self._answer({"data": self.server_.operation(name, asked.get("variables") or {})})
        if self.path.endswith("/file_stream"):
            self.server_.streamed(self.path.split("/")[-2], json.loads(body))
        self._answer({})

    def _body(self):
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data

    def _answer(self, content, code=200):
        data = json.dumps(content).encode()
        with suppress(ConnectionError):
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
