"""Generated secrets over rotation, upgrade, rollback, uninstall and reinstall, with the real helm."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from mor_core.auth import TokenFile, hash_token
from mor_core.errors import Invalid
from mor_router.clients.secret_store import SecretOwner, SecretStore
from pydantic import SecretStr

from tests.helm import charts
from tests.helm.charts import Document
from tests.helm.secret_jobs import JobServer

Run = Callable[..., str]

MOR = str(charts.CHARTS / "mor")
REWARD = str(charts.CHARTS / "mor-reward")
VALUES = f"--values={charts.TINY}"
FUNCTION = f"--values={charts.CHARTS / 'mor-reward' / 'ci' / 'function-values.yaml'}"
OWNER = SecretOwner("client", "clinic", "https://clinic.example", "api", "f" * 64, 7)


@pytest.fixture
def server() -> Iterator[JobServer]:
    started = JobServer()
    yield started
    started.stop()


@pytest.fixture(params=["helm3", "helm4"])
def run(request: pytest.FixtureRequest, server: JobServer, tmp_path: Path) -> Run:
    (tmp_path / "kubeconfig").write_text(server.kubeconfig())

    def execute(*arguments: str) -> str:
        binary, kubeconfig = charts.TOOLS / request.param, str(tmp_path / "kubeconfig")
        output = charts.helm(*arguments, "--namespace=mor", binary=binary, home=tmp_path, KUBECONFIG=kubeconfig)
        server.wait()
        return output

    return execute


@pytest.fixture
def scope_of(tmp_path: Path, server: JobServer) -> Callable[[str], str | None]:
    """Scope of a token for a service with the tokens file of the Secret."""

    def find(token: str) -> str | None:
        (tmp_path / "tokens.json").write_text(server.secret("mor", "m-mor-auth")["tokens.json"])
        found = TokenFile(tmp_path / "tokens.json").holder(hash_token(token))
        return None if found is None else found.scope.value

    return find


def store(server: JobServer) -> SecretStore:
    """Store of a router with the key ring of the Secret."""
    return SecretStore(SecretStr(server.secret("mor", "m-mor-auth")["secret-key"]))


def test_a_rotation_survives_upgrade_rollback_uninstall_and_reinstall(
    run: Run, server: JobServer, scope_of: Callable[[str], str | None]
) -> None:
    run("install", "m", MOR, "--create-namespace", VALUES)
    leaked = server.secret("mor", "m-mor-auth")
    queue = server.secret("mor", "m-mor-valkey")
    before = store(server).encrypt(SecretStr("of a client"), OWNER)
    server.start("mor", "m-mor-rotate")
    rotated = server.secret("mor", "m-mor-auth")
    after = store(server).encrypt(SecretStr("of a client"), OWNER)
    with pytest.raises(Invalid):
        SecretStore(SecretStr(leaked["secret-key"])).decrypt(after, OWNER)

    def check() -> None:
        now = server.secret("mor", "m-mor-auth")
        assert {key: now[key] for key in ("admin-token", "service-token", "secret-key")} == {
            key: rotated[key] for key in ("admin-token", "service-token", "secret-key")
        }
        assert scope_of(rotated["admin-token"]) == "admin"
        assert scope_of(leaked["admin-token"]) is None
        assert scope_of(leaked["service-token"]) == "service", "running processes have it until it is retired"
        assert {store(server).decrypt(sealed, OWNER).get_secret_value() for sealed in (before, after)} == {
            "of a client"
        }
        passwords = server.secret("mor", "m-mor-valkey")
        assert passwords["router-password-previous"] == queue["router-password"] != passwords["router-password"]

    check()
    run("upgrade", "m", MOR, VALUES, "--set=router.replicas=3")
    check()
    run("rollback", "m", "1")
    check()
    assert "kind: Secret" not in run("get", "manifest", "m")
    assert not [text for text in (*leaked.values(), *rotated.values()) if text in run("get", "all", "m")]
    run("uninstall", "m")
    check()
    run("install", "m", MOR, VALUES)
    check()
    for secrets in (leaked, rotated, queue):
        values = [value for key, value in secrets.items() if not key.endswith(".json")]
        assert not [value for value in values if value in "\n".join(server.logs)]

    server.start("mor", "m-mor-retire")
    assert scope_of(leaked["service-token"]) is None and scope_of(rotated["service-token"]) == "service"
    assert "router-password-previous" not in server.secret("mor", "m-mor-valkey")
    assert store(server).decrypt(before, OWNER).get_secret_value() == "of a client", "keys are retired by name only"
    server.start("mor", "m-mor-retire", "secret-key")
    assert server.secret("mor", "m-mor-auth")["secret-key"] == rotated["secret-key"].partition(",")[0]


@pytest.mark.parametrize("run", ["helm4"], indirect=True)
def test_one_token_is_rotated_alone_by_the_documented_command(
    run: Run, server: JobServer, scope_of: Callable[[str], str | None], tmp_path: Path
) -> None:
    run("install", "m", MOR, "--create-namespace", VALUES)
    before = server.secret("mor", "m-mor-auth")
    guide = (charts.ROOT / "docs" / "operator-guide.md").read_text()
    command = guide[guide.index("kubectl -n mor create job rotate-2") :].partition("```")[0]
    command = command.replace("cronjob/mor-rotate", "cronjob/m-mor-rotate").replace("admin-token", "dashboard-token")
    environment = {"KUBECONFIG": str(tmp_path / "kubeconfig"), "HOME": str(tmp_path)}
    environment["PATH"] = f"{charts.TOOLS}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", "-ec", command], env=environment, check=True, timeout=120)
    server.wait()
    after = server.secret("mor", "m-mor-auth")
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"dashboard-token", "tokens.json", "ledger.json"}
    assert scope_of(before["dashboard-token"]) is None and scope_of(after["dashboard-token"]) == "viewer"
    with pytest.raises(Invalid, match="got wall-token; name some of admin-token, "):
        server.start("mor", "m-mor-rotate", "wall-token")


@pytest.mark.parametrize("run", ["helm4"], indirect=True)
def test_a_name_that_is_removed_and_added_again_gets_another_token(
    run: Run, server: JobServer, scope_of: Callable[[str], str | None]
) -> None:
    wall = '--set-json=auth.tokens=[{"name":"wall","scope":"viewer"}]'
    run("install", "m", MOR, "--create-namespace", VALUES, wall)
    first = server.secret("mor", "m-mor-auth")["wall-token"]
    run("upgrade", "m", MOR, VALUES, "--set-json=auth.tokens=[]")
    assert "wall-token" not in server.secret("mor", "m-mor-auth") and scope_of(first) is None
    run("rollback", "m", "1")
    second = server.secret("mor", "m-mor-auth")["wall-token"]
    assert scope_of(first) is None and scope_of(second) == "viewer"

    def made_elsewhere(token: str) -> str:
        return f'--set-json=auth.tokens=[{{"name":"wall","scope":"viewer","sha256":"{hash_token(token)}"}}]'

    run("upgrade", "m", MOR, VALUES, made_elsewhere("leaked"))
    run("upgrade", "m", MOR, VALUES, made_elsewhere("next"))
    assert (scope_of("leaked"), scope_of("next"), scope_of(second)) == (None, "viewer", None)
    run("rollback", "m", "4")
    assert scope_of("leaked") is None, "the values of that release name a revoked token"


FORMER = """
apiVersion: v1
kind: Secret
metadata:
  name: {name}
  namespace: mor
  labels: {{app.kubernetes.io/managed-by: Helm}}
  annotations: {{{annotation}}}
stringData:
"""


def former_chart(folder: Path, name: str, data: dict[str, str], *, keep: bool) -> str:
    """Write a chart whose manifest has the Secret, as those of version 0.1.0 did."""
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("{apiVersion: v2, name: mor, version: 0.0.1}")
    head = FORMER.format(name=name, annotation="helm.sh/resource-policy: keep" if keep else "")
    lines = "".join(f"  {key}: {json.dumps(value)}\n" for key, value in data.items())
    (folder / "templates" / "secret.yaml").write_text(head + lines)
    return str(folder)


def former_data(name: str, scope: str, key: str, **others: str) -> dict[str, str]:
    rows = [{"name": name, "scope": scope, "sha256": hash_token(f"former {key}")}]
    return {key: f"former {key}", "tokens.json": json.dumps(rows), **others}


def test_secrets_of_a_former_chart_are_taken_over_and_no_rollback_deletes_them(
    run: Run, server: JobServer, scope_of: Callable[[str], str | None], tmp_path: Path
) -> None:
    key = "Y2Nj" * 10 + "Y2M="
    data = former_data("operator", "admin", "admin-token", **{"secret-key": key, "old-token": "former old"})
    former = former_chart(tmp_path / "former", "m-mor-auth", data, keep=True)
    run("install", "m", former, "--create-namespace")
    run("upgrade", "m", MOR, VALUES)
    taken = server.secret("mor", "m-mor-auth")
    assert (taken["admin-token"], taken["secret-key"]) == ("former admin-token", key)
    assert "old-token" not in taken
    sealed = store(server).encrypt(SecretStr("of a client"), OWNER)
    server.start("mor", "m-mor-rotate")
    rotated = server.secret("mor", "m-mor-auth")
    run("upgrade", "m", MOR, VALUES)
    assert server.secret("mor", "m-mor-auth") == rotated
    assert "former admin-token" not in run("get", "manifest", "m")

    run("rollback", "m", "1")  # its manifest writes the former values: the former chart works as it did
    assert server.secret("mor", "m-mor-auth")["admin-token"] == "former admin-token"
    run("upgrade", "m", MOR, VALUES)
    restored = server.secret("mor", "m-mor-auth")
    assert scope_of("former admin-token") is None and scope_of(restored["admin-token"]) == "admin"
    assert restored["secret-key"] == rotated["secret-key"]
    assert store(server).decrypt(sealed, OWNER).get_secret_value() == "of a client"
    run("uninstall", "m")
    assert server.secret("mor", "m-mor-auth") == restored


def test_a_client_keeps_the_secret_of_a_former_chart_and_rotates_it(
    run: Run, server: JobServer, scope_of: Callable[[str], str | None], tmp_path: Path
) -> None:
    """The former chart did not tell helm to keep it."""
    data = former_data("router", "service", "token", **{"page-token": "former page"})
    former = former_chart(tmp_path / "former", "m-mor-reward", data, keep=False)
    run("install", "m", former, "--create-namespace")
    run("upgrade", "m", REWARD, FUNCTION)
    taken = server.secret("mor", "m-mor-reward")
    assert (taken["token"], taken["page-token"]) == ("former token", "former page")

    server.start("mor", "m-mor-reward-rotate")
    rotated = server.secret("mor", "m-mor-reward")
    assert rotated["page-token"] == "former page", "the router has its hash, so it is rotated by name only"
    assert [row["sha256"] for row in json.loads(rotated["tokens.json"])] == [
        hash_token(rotated["token"]),
        hash_token("former token"),
    ]
    run("upgrade", "m", REWARD, FUNCTION, "--set=replicas=2")
    run("rollback", "m", "2")
    assert server.secret("mor", "m-mor-reward") == rotated
    server.start("mor", "m-mor-reward-retire")
    server.start("mor", "m-mor-reward-rotate", "page-token")
    last = server.secret("mor", "m-mor-reward")
    assert [row["sha256"] for row in json.loads(last["tokens.json"])] == [hash_token(rotated["token"])]
    assert last["page-token"] != "former page"


def test_rendered_manifests_hold_no_secret_and_never_differ(server: JobServer, tmp_path: Path) -> None:
    """As for Argo CD and `helm template`: no manifest changes by itself, and applying it again changes no secret."""
    documents = charts.render(charts.CHARTS / "mor", VALUES)
    assert documents == charts.render(charts.CHARTS / "mor", VALUES)
    assert not charts.of(documents, "Secret")
    (tmp_path / "kubeconfig").write_text(server.kubeconfig())
    server.put("v1", "namespaces", {"metadata": {"name": "mor"}})
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(documents))
    command = [str(charts.TOOLS / "kubectl"), "apply", "--namespace=mor", f"--filename={tmp_path / 'all.yaml'}"]
    environment = {"KUBECONFIG": str(tmp_path / "kubeconfig"), "HOME": str(tmp_path)}
    found = []
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        server.wait()
        found.append(server.secret("mor", "m-mor-auth"))
        for name in server.of("Job", "mor"):
            server.delete("batch/v1", "jobs", "mor", name)
    assert found[0] == found[1]


def jobs(documents: list[Document]) -> dict[str, Document]:
    cronjobs = charts.of(documents, "CronJob")
    return charts.of(documents, "Job") | {name: job["spec"]["jobTemplate"] for name, job in cronjobs.items()}


@pytest.mark.parametrize("chart", [MOR, REWARD])
def test_the_jobs_may_change_their_secrets_only_and_reach_the_api_server_only(chart: str) -> None:
    values = VALUES if chart == MOR else FUNCTION
    documents = charts.render(Path(chart), values, '--set-json=networkPolicy.apiServerCIDRs=["10.0.0.1/32"]')
    name = "m-mor" if chart == MOR else "m-mor-reward"
    secrets = ["m-mor-auth", "m-mor-valkey"] if chart == MOR else ["m-mor-reward"]
    roles = charts.of(documents, "Role")
    assert roles[f"{name}-secrets"]["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": secrets, "verbs": ["get", "patch"]},
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
    ]
    policies = charts.of(documents, "NetworkPolicy")
    (rule,) = policies[f"{name}-secrets"]["spec"]["egress"]
    assert rule["to"] == [{"ipBlock": {"cidr": "10.0.0.1/32"}}]
    found = jobs(documents)
    (settling,) = (job for job in found if job.startswith(f"{name}-secrets-"))
    for job in (settling, f"{name}-rotate", f"{name}-retire"):
        pod = found[job]["spec"]["template"]
        labels = policies[f"{name}-secrets"]["spec"]["podSelector"]["matchLabels"].items()
        assert labels <= pod["metadata"]["labels"].items()
        assert "volumes" not in pod["spec"], "it needs no secret but the one that it reads from the API"
    first = found[settling]["spec"]
    assert "activeDeadlineSeconds" not in first, "pods wait for it, however long its image takes"
    assert (first["template"]["spec"]["restartPolicy"], first["backoffLimit"]) == ("OnFailure", 1000)
    cronjobs = charts.of(documents, "CronJob").values()
    assert [cronjob["spec"]["suspend"] for cronjob in cronjobs] == [True, True], "they start by hand"


def test_a_chart_whose_secrets_exist_has_no_job_that_may_read_secrets() -> None:
    existing = ("--set=auth.existingSecret=x", "--set=valkey.existingSecret=y")
    for documents in (
        charts.render(charts.CHARTS / "mor", VALUES, *existing),
        charts.render(charts.CHARTS / "mor-reward", FUNCTION, existing[0]),
    ):
        assert not charts.of(documents, "Role") and not charts.of(documents, "CronJob")
        assert not [name for name in jobs(documents) if "-secrets-" in name]
