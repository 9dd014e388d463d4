"""A model is pushed to a hub or a registry: whole or not at all, and continued after an interruption."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from mor_core.errors import Forbidden, Invalid, Unavailable
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from mor_trainer.results import oci_registry as registry_module
from mor_trainer.results.destination import RegistryTag, check_allowed, parse_destination
from mor_trainer.results.push import push
from pydantic import ValidationError
from redis.asyncio import Redis

from tests.ports import free_port
from tests.trainer.control import create, eventually
from tests.trainer.kit import bearer, make_spec, running
from tests.trainer.model_hub import TOKEN, ModelHub, model_hub
from tests.trainer.oci_registry import OciRegistry, oci_registry

FILES = {"README.md": b"# x\n", "config.json": b"{}", "model.safetensors": b"\0weights" * 999, "sub/a.json": b"[]"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / ".config.json.1.part").write_bytes(b"left by a killed process")
    (folder / "link.json").symlink_to("/etc/passwd")
    return folder


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OciRegistry]:
    with oci_registry() as served:
        served.log_in(tmp_path)
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
        yield served


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    with model_hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", f"http://{served.address}")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield served


def command(folder: Path, destination: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run ``mor-trainer push``; the hub's library reads its variables once, when it is loaded."""
    given = [sys.executable, "-m", "mor_trainer", "push", str(folder), destination, *options]
    return subprocess.run(given, capture_output=True, text=True, timeout=250, env={**os.environ}, check=False)


def test_a_registry_receives_the_files_and_then_the_manifest(model: Path, registry: OciRegistry) -> None:
    registry.token_lives = 4  # the token ends in the middle
    address = push(model, registry.reference)
    assert registry.pulled() == FILES
    digest = hashlib.sha256(registry.manifests["v1"]).hexdigest()
    assert address == f"{registry.address}/team/aligned@sha256:{digest}"
    sent = len(registry.uploads)
    assert push(model, registry.reference) == address and len(registry.uploads) == sent, "nothing is sent twice"


def test_docker_s_registry_takes_a_model(model: Path, tmp_path: Path) -> None:
    """The distribution project's own server, of Debian's package docker-registry."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed (Debian's package of that name)")
    port, store = free_port(), tmp_path / "store"
    (tmp_path / "registry.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {store}}}}}\n"
        f"http: {{addr: 127.0.0.1:{port}}}\n"
    )
    server = subprocess.Popen([program, "serve", str(tmp_path / "registry.yml")], stderr=subprocess.DEVNULL)
    try:
        _wait_until_it_answers(f"http://127.0.0.1:{port}/v2/")
        address = push(model, f"oci://127.0.0.1:{port}/team/aligned:v1")
        place, _, digest = address.partition("@")
        with httpx.Client(base_url=f"http://{place.replace('/', '/v2/', 1)}/", trust_env=False) as http:
            headers = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
            found = http.get("manifests/v1", headers=headers)
            assert found.headers["Docker-Content-Digest"] == digest
            pulled = {
                layer["annotations"]["org.opencontainers.image.title"]: http.get(f"blobs/{layer['digest']}").content
                for layer in found.json()["layers"]
            }
        assert pulled == FILES
    finally:
        server.terminate()
        server.wait(10)


def _wait_until_it_answers(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.get(url, trust_env=False).raise_for_status()
            return
        except httpx.HTTPError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_registry_that_wants_the_password_itself_gets_it(model: Path, registry: OciRegistry, tmp_path: Path) -> None:
    registry.basic = True
    push(model, registry.reference)
    assert registry.pulled() == FILES
    (tmp_path / "config.json").unlink()
    with pytest.raises(Invalid, match="wants a user and a password; log in to"):
        push(model, registry.reference)


def test_a_registry_that_fails_for_a_while_costs_attempts_only(model: Path, registry: OciRegistry) -> None:
    registry.failures = 2
    push(model, registry.reference)
    assert registry.pulled() == FILES


def test_a_push_that_fails_shows_nothing_and_is_continued(
    model: Path, registry: OciRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "_ATTEMPTS", 1)
    (model / "a-first.json").write_bytes(b"first")
    registry.failures = 1
    with pytest.raises(Unavailable, match="was answered with 503; push again later, what is there is not sent again"):
        push(model, registry.reference)
    assert registry.manifests == {}
    push(model, registry.reference)
    assert registry.pulled() == FILES | {"a-first.json": b"first"}


def test_a_refused_login_says_what_to_do_and_quotes_no_password(
    model: Path, registry: OciRegistry, tmp_path: Path
) -> None:
    registry.log_in(tmp_path, password="another-password")
    with pytest.raises(Invalid, match=r"gives no token for team/aligned \(401\); log in again") as refused:
        push(model, registry.reference)
    assert "another-password" not in str(refused.value)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(Invalid, match="is no file of logins"):
        push(model, registry.reference)


def test_credentials_stay_with_the_registry(model: Path, registry: OciRegistry) -> None:
    registry.elsewhere = "http://other.example"
    with pytest.raises(Invalid, match=r"sends the upload on to other\.example"):
        push(model, registry.reference)


def test_a_registry_that_redirects_to_its_storage_is_not_sent_a_file_again(model: Path, registry: OciRegistry) -> None:
    push(model, registry.reference)
    registry.storage = "https://bucket.example"
    sent = len(registry.uploads)
    push(model, registry.reference)
    assert len(registry.uploads) == sent


def test_a_token_that_no_header_can_carry_is_the_registry_s_failure(
    model: Path, registry: OciRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "_ATTEMPTS", 1)
    for token in ("caf\u00e9", "two\nlines", 70_000 * "x"):
        registry.token = token
        with pytest.raises(Unavailable, match="answered with no token") as refused:
            push(model, registry.reference)
        assert token not in str(refused.value)


def test_what_is_no_model_or_no_destination_is_named(tmp_path: Path, model: Path) -> None:
    with pytest.raises(Invalid, match="is no folder of a model"):
        push(tmp_path, "hf://owner/name")
    for wrong in ("owner/name", "hf://owner", "oci://host/name", "oci://user:secret@host/name:tag", "hf://a/../b"):
        with pytest.raises(Invalid, match="give hf://OWNER/NAME or oci://HOST/NAME:TAG"):
            push(model, wrong)
    with pytest.raises(Invalid, match="leave --public out"):
        push(model, "oci://127.0.0.1:1/name:tag", public=True)


def test_only_this_machine_is_called_without_tls() -> None:
    for host, scheme in (("localhost:5000", "http"), ("127.0.0.1", "http"), ("registry.example.org:5000", "https")):
        found = parse_destination(f"oci://{host}/a/b:c")
        assert isinstance(found, RegistryTag) and found.url == f"{scheme}://{host}"


def test_an_allowed_destination_ends_at_a_part_of_its_name() -> None:
    check_allowed("hf://team/model", ["hf://team"])
    check_allowed("oci://host/models/a:1", ["oci://host/models/"])
    check_allowed("oci://host/models/a:1", ["hf://x", "oci://host/models/a"])
    for allowed in ([], ["hf://tea"], ["oci://hos"]):
        with pytest.raises(Forbidden, match="MOR_PUSH_DESTINATIONS"):
            check_allowed("hf://team/model", allowed)
    check_allowed("oci://host:5000/a:1", ["oci://host:5000"])
    with pytest.raises(Forbidden):  # another server on the same machine
        check_allowed("oci://host:5000/a:1", ["oci://host"])


def test_a_hub_receives_one_commit_in_a_private_repository(model: Path, hub: ModelHub) -> None:
    done = command(model, "hf://team/aligned")
    assert (done.returncode, done.stdout) == (0, f"http://{hub.address}/team/aligned\n"), done.stderr
    assert hub.visibility == {"team/aligned": "private"} and hub.files["team/aligned"] == FILES
    others = {"LICENSE": b"by hand", "onnx/model.safetensors": b"of somebody", "draft/adapter_config.json": b"{}"}
    hub.files["team/aligned"] |= others | {"model-00001-of-00002.safetensors": b"of an earlier push"}
    sent = len(hub.uploads)
    assert command(model, "hf://team/aligned").returncode == 0
    assert hub.files["team/aligned"] == FILES | others and len(hub.uploads) == sent


def test_a_push_that_another_one_overtakes_mixes_no_weights(model: Path, hub: ModelHub) -> None:
    hub.visibility, hub.files = {"team/aligned": "private"}, {"team/aligned": {}}
    hub.others_push = sharded = {"model-00001-of-00002.safetensors": b"of the other push"}
    late = command(model, "hf://team/aligned")
    assert late.returncode == 2 and "try again" in late.stderr, late.stderr
    assert hub.files["team/aligned"] == sharded
    assert command(model, "hf://team/aligned").returncode == 0
    assert hub.files["team/aligned"] == FILES


def test_a_token_from_a_file_that_the_hub_quotes_is_not_shown(
    model: Path, hub: ModelHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    hub.quotes_tokens = True
    failed = command(model, "hf://team/aligned")
    assert failed.returncode == 2 and "no repositories for [hidden]" in failed.stderr, failed.stderr


def test_a_missing_token_is_named(model: Path, hub: ModelHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nobody"))
    refused = command(model, "hf://team/aligned")
    assert refused.returncode == 2 and "there is no token for http://127.0.0.1" in refused.stderr
    assert "set HF_TOKEN" in refused.stderr and hub.files == {}


def test_a_token_does_not_travel_unencrypted(model: Path, hub: ModelHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example.org")
    refused = command(model, "hf://team/aligned")
    assert refused.returncode == 2 and "unencrypted; give an https:// one" in refused.stderr, refused.stderr
    assert not hub.files


def test_a_public_repository_and_a_reader_s_token_are_refused(model: Path, hub: ModelHub) -> None:
    hub.visibility, hub.files = {"team/open": "public"}, {"team/open": {}}
    refused = command(model, "hf://team/open")
    assert refused.returncode == 2 and "is public; give --public, or another name" in refused.stderr
    hub.refuses_commits = True
    refused = command(model, "hf://team/open", "--public")
    assert refused.returncode == 2 and "token that may write to team/open" in refused.stderr, refused.stderr
    assert TOKEN not in refused.stderr and hub.files == {"team/open": {}}


@pytest.mark.parametrize("place", ["team", "hf:team", "https://registry.example.org", "oci://", "oci:// registry"])
def test_a_place_that_no_destination_begins_with_is_refused(settings: ControlSettings, place: str) -> None:
    with pytest.raises(ValidationError, match="push_destinations"):
        ControlSettings(**{**settings.model_dump(), "push_destinations": [place]})


@pytest.mark.anyio
async def test_run_control_pushes_to_allowed_destinations(
    settings: ControlSettings, redis: Redis, tiny: Path, prompts: Path, model: Path, registry: OciRegistry
) -> None:
    del redis
    allowed = settings.model_copy(update={"push_destinations": (f"oci://{registry.address}/team",)})
    async with running(create_app(allowed)) as http:
        http.headers.update(bearer("admin"))
        run = await create(http, make_spec(tiny, prompts))
        (await http.post(f"/v1/runs/{run}/stop")).raise_for_status()
        (settings.runs_dir / run).mkdir(parents=True, exist_ok=True)
        model.rename(settings.runs_dir / run / "final")  # noqa: ASYNC240
        place = (await http.post(f"/v1/runs/{run}/exports")).headers["Location"]
        await eventually(http, place, lambda found: found["state"] == "ready")
        assert (await http.get(f"{place}/push")).status_code == 404
        refused = await http.post(f"{place}/push", json={"destination": "hf://team/aligned"})
        assert refused.status_code == 403 and "MOR_PUSH_DESTINATIONS allows oci://" in refused.json()["detail"]
        assert (await http.post(f"{place}/push", json={"destination": "team"})).status_code == 422
        begun = await http.post(f"{place}/push", json={"destination": registry.reference})
        other = await http.post(f"{place}/push", json={"destination": registry.reference, "public": True})
        assert other.status_code == 409 and "as private; wait" in other.json()["detail"]
        assert (begun.status_code, begun.json()["state"]) == (202, "pushing")
        pushed = await eventually(http, begun.headers["Location"], lambda found: found["state"] != "pushing", 250)
        assert pushed["state"] == "done", pushed
        assert pushed["address"].startswith(f"{registry.address}/team/aligned@sha256:")
        assert registry.pulled().keys() == FILES.keys()
        elsewhere = settings.runs_dir / "another"
        (settings.runs_dir / run / "final").rename(elsewhere)
        (settings.runs_dir / run / "final").symlink_to(elsewhere)
        linked = await http.post(f"{place}/push", json={"destination": registry.reference})
        assert linked.status_code == 404 and "a link is in its place" in linked.json()["detail"]
