"""Hugging Face hub as far as a push needs it: repositories, large files by Git LFS, commits."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

from tests.trainer.loopback import Handler, serving

TOKEN = "hf_token-of-the-pusher"


class ModelHub:
    """Content of a hub, and faults that a test sets."""

    def __init__(self) -> None:
        self.address = ""
        self.visibility: dict[str, str] = {}
        """Repository -> ``private`` or ``public``."""
        self.files: dict[str, dict[str, bytes]] = {}
        """Repository -> its files after the last commit."""
        self.large: dict[str, bytes] = {}
        """Large files by SHA-256, committed or not."""
        self.uploads: list[str] = []
        self.refuses_commits = False
        self.others_push: dict[str, bytes] = {}
        """Files that somebody commits right before the next commit."""
        self.commits: dict[str, int] = {}
        """Repository -> number of its commits."""
        self.quotes_tokens = False
        """Quote the token in a refusal."""

    def head(self, name: str) -> str:
        """Return the id of a repository's last commit."""
        return f"{self.commits.get(name, 0):040x}"


@contextmanager
def model_hub() -> Iterator[ModelHub]:
    hub = ModelHub()

    class Answers(Handler):
        def answer(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/lfs/"):  # a signed address, without the token
                assert "Authorization" not in self.headers
                sha256 = path.removeprefix("/lfs/")
                assert hashlib.sha256(self.body).hexdigest() == sha256
                hub.uploads.append(sha256)
                hub.large[sha256] = self.body
                return self.reply(200)
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.reply(401, {"error": "Invalid username or password."})
            if hub.quotes_tokens:
                return self.reply(500, {"error": f"no repositories for {TOKEN}"})
            body = json.loads(self.body) if self.headers.get("Content-Type") == "application/json" else {}
            if path == "/api/repos/create":
                name = f"{body['organization']}/{body['name']}"
                hub.visibility[name], hub.files[name] = body["visibility"], {}
                return self.reply(200, {"url": f"http://{hub.address}/{name}"})
            if path == "/api/validate-yaml":
                return self.reply(200, {"warnings": [], "errors": []})
            return self._repository(path, body)

        def _repository(self, path: str, body: dict[str, object]) -> None:
            name = "/".join(path.removeprefix("/api/models").split("/")[1:3]).removesuffix(".git")
            if name not in hub.files:
                return self.reply(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            what = path.partition(name)[2]
            files = hub.files[name]
            if what == "":
                private = hub.visibility[name] == "private"
                return self.reply(200, {"id": name, "private": private, "sha": hub.head(name)})
            if what == "/tree/main":
                listed = [{"type": "file", "path": one, "size": len(files[one]), "oid": 40 * "0"} for one in files]
                return self.reply(200, listed)
            if what == "/preupload/main":
                modes = [
                    {"path": one["path"], "shouldIgnore": False,
                     "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular"}
                    for one in body["files"]  # type: ignore[attr-defined]
                ]  # fmt: skip
                return self.reply(200, {"files": modes})
            if what == ".git/info/lfs/objects/batch":
                return self._batch()
            assert what == "/commit/main", path
            if hub.refuses_commits:
                return self.reply(403, {"error": "You have read-only access."})
            return self._commit(name)

        def _batch(self) -> None:
            wanted = json.loads(self.body)["objects"]
            for one in wanted:
                if one["oid"] not in hub.large:
                    one["actions"] = {"upload": {"href": f"http://{hub.address}/lfs/{one['oid']}"}}
            self.reply(200, {"transfer": "basic", "objects": wanted}, Content_Type="application/vnd.git-lfs+json")

        def _commit(self, name: str) -> None:
            if hub.others_push:
                hub.files[name] |= hub.others_push
                hub.commits[name] = hub.commits.get(name, 0) + 1
                hub.others_push = {}
            files = dict(hub.files[name])
            for line in self.body.splitlines():
                operation = json.loads(line)
                value = operation["value"]
                if operation["key"] == "header" and value.get("parentCommit", hub.head(name)) != hub.head(name):
                    return self.reply(412, {"error": "A commit has happened since. Please refresh and try again."})
                if operation["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif operation["key"] == "lfsFile":
                    files[value["path"]] = hub.large[value["oid"]]
                elif operation["key"] == "deletedFile":
                    del files[value["path"]]
            hub.files[name] = files
            hub.commits[name] = hub.commits.get(name, 0) + 1
            return self.reply(200, {"commitUrl": f"http://{hub.address}/{name}/commit/1", "commitOid": 40 * "1"})

    with serving(Answers) as hub.address:
        yield hub
