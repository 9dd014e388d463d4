"""OCI registry that speaks the distribution specification's push protocol, with a server of tokens."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.trainer.loopback import Handler, serving

LOGIN = ("pusher", "password-of-the-pusher")


class OciRegistry:
    """Content of a registry, and faults that a test sets."""

    def __init__(self) -> None:
        self.address = ""
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.uploads: list[str] = []
        """Digests of the blobs that were sent, in order."""
        self.tokens: set[str] = set()
        self.token_lives = 1000
        """Requests for which a token is valid."""
        self.failures = 0
        """Uploads that are answered with 503 from now on."""
        self.basic = False
        """Take the password itself, and no token."""
        self.elsewhere = ""
        """Address that uploads are sent on to."""
        self.storage = ""
        """Address that readers of blobs are redirected to."""
        self.token = ""
        """Token that is given instead of a valid one."""

    def log_in(self, folder: Path, user: str = LOGIN[0], password: str = LOGIN[1]) -> None:
        """Write the file of logins that ``docker login`` would write into ``folder``."""
        encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
        (folder / "config.json").write_text(json.dumps({"auths": {self.address: {"auth": encoded}}}))

    def pulled(self) -> dict[str, bytes]:
        """Return the files that ``oras pull`` would write: layers by their titles."""
        layers = json.loads(self.manifests["v1"])["layers"]
        return {one["annotations"]["org.opencontainers.image.title"]: self.blobs[one["digest"]] for one in layers}

    @property
    def reference(self) -> str:
        return f"oci://{self.address}/team/aligned:v1"


@contextmanager
def oci_registry(port: int = 0) -> Iterator[OciRegistry]:
    registry = OciRegistry()

    class Answers(Handler):
        def answer(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            if parts.path == "/token":
                return self._token(query)
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if registry.basic:
                if token != f"Basic {base64.b64encode(':'.join(LOGIN).encode()).decode()}":
                    return self.reply(401, WWW_Authenticate='Basic realm="registry"')
            elif token not in registry.tokens:
                realm = f'Bearer realm="http://{registry.address}/token",service="registry",scope="repository:x:pull"'
                return self.reply(401, {"errors": [{"code": "UNAUTHORIZED"}]}, WWW_Authenticate=realm)
            registry.token_lives -= 1
            if registry.token_lives == 0:
                registry.tokens.clear()
            assert parts.path.startswith("/v2/team/aligned/"), parts.path
            return self._repository(parts.path.removeprefix("/v2/team/aligned/"), query)

        def _token(self, query: dict[str, str]) -> None:
            wanted = base64.b64encode(":".join(LOGIN).encode()).decode()
            if self.headers.get("Authorization") != f"Basic {wanted}":
                return self.reply(401, {"details": "incorrect username or password"})
            assert query == {"service": "registry", "scope": "repository:team/aligned:pull,push"}
            token = hashlib.sha256(str(len(registry.uploads)).encode()).hexdigest()
            registry.tokens.add(token)
            return self.reply(200, {"token": registry.token or token})

        def _repository(self, path: str, query: dict[str, str]) -> None:
            kind, _, name = path.partition("/")
            if (self.command, kind) == ("HEAD", "blobs"):
                if registry.storage and name in registry.blobs:
                    return self.reply(307, Location=f"{registry.storage}/{name}")
                return self.reply(200 if name in registry.blobs else 404)
            if (self.command, path) == ("POST", "blobs/uploads/"):
                return self.reply(202, Location=f"{registry.elsewhere}/v2/team/aligned/blobs/uploads/7?state=a%2Fb")
            if (self.command, path) == ("PUT", "blobs/uploads/7"):
                assert query["state"] == "a/b"
                registry.uploads.append(query["digest"])
                if registry.failures:
                    registry.failures -= 1
                    return self.reply(503)
                if f"sha256:{hashlib.sha256(self.body).hexdigest()}" != query["digest"]:
                    return self.reply(400, {"errors": [{"code": "DIGEST_INVALID"}]})
                registry.blobs[query["digest"]] = self.body
                return self.reply(201)
            assert (self.command, kind) == ("PUT", "manifests"), (self.command, path)
            assert self.headers["Content-Type"] == "application/vnd.oci.image.manifest.v1+json"
            manifest = json.loads(self.body)
            for part in (manifest["config"], *manifest["layers"]):
                if len(registry.blobs.get(part["digest"], b"")) != part["size"]:
                    return self.reply(404, {"errors": [{"code": "MANIFEST_BLOB_UNKNOWN"}]})
            registry.manifests[name] = self.body
            return self.reply(201)

    with serving(Answers, port) as registry.address:
        yield registry
