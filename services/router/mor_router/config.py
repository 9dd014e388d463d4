"""Settings of the router."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from mor_core.proxies import ProxyAddress
from mor_core.service_addresses import ServiceAddress
from mor_core.settings import ServiceSettings, StageSettings
from mor_core.wire import Asks
from mor_core.wire.asks import DomainLabel
from pydantic import Field, SecretStr, model_validator

from mor_router.mathematics.fusion import FusionChoice, Weighted

Network = IPv4Network | IPv6Network


class RouterSettings(ServiceSettings, StageSettings):
    """Settings of a router."""

    secret_key: SecretStr = SecretStr("")
    """Fernet keys that encrypt the clients' secrets at rest, separated by commas. The first encrypts, all decrypt: put
    a new key in front, and remove the old one after ``mor-router rekey``. ``mor-router key`` prints a new one."""
    bind_secrets: bool = False
    """Bind the secrets that earlier versions stored to their clients and addresses, at the start and at
    ``mor-router rekey``. Set it for one start after the upgrade, and check the addresses before; otherwise such secrets
    are refused."""
    audit_log: Path | None = None
    """File to which enrolments, rotations, revocations and gate changes are appended as JSON lines. Without it they go
    to the log under the name ``audit``."""

    router_state_dir: Path | None = None
    """Folder for snapshots of the router's state, which all replicas share. The router writes one seconds after a
    change, and restores the newest one where the queue server comes back empty. Without it, only an export does."""
    router_state_keep: int = Field(20, ge=2)
    """Latest snapshots that are kept; older ones are deleted."""
    router_state_elsewhere: bool = False
    """Another replica has ``router_state_dir``, on a volume that only its machine mounts: begin no empty state here,
    but wait until that replica has restored it."""

    allow_loopback: bool = False
    """Permit the enrolment of endpoints on this machine's loopback; for demonstrations and tests."""
    allowed_networks: tuple[Network, ...] = ()
    """Networks (CIDR), as a JSON list, that endpoints enrolled by API may be in besides public ones. Plain ``http`` is
    accepted there and on loopback only."""
    kubernetes_networks: tuple[Network, ...] = ()
    """Networks (CIDR), as a JSON list, of endpoints found in Kubernetes: those of the cluster's pods and Services."""
    kubernetes_namespaces: tuple[str, ...] = ()
    """Namespaces, as a JSON list, whose Services with ``kubernetes_selector`` are enrolled as clients while they exist;
    empty: no discovery. Needs the extra ``kubernetes``."""
    kubernetes_selector: str = "mor.dev/reward=true"
    """Label selector of those Services."""
    kubernetes_resync_s: float = Field(30.0, ge=1)
    """Mean seconds between comparisons of the whole list with the registry, besides those after each change."""
    kubernetes_config: Path | None = None
    """Kubeconfig file for a router outside of the cluster; without it, the pod's service account is used."""
    ca_file: Path | None = None
    """PEM file of certificate authorities for clients' endpoints; without it, the system's are used."""
    client_cert_file: Path | None = None
    """PEM certificate that the router presents to clients (mutual TLS)."""
    client_key_file: Path | None = None
    """PEM private key of ``client_cert_file``."""

    client_proxy: ProxyAddress | None = None
    """Proxy for calls to clients and labellers enrolled by API, ``http://`` or ``https://``. Each call is a tunnel
    (CONNECT) to the address that the router has checked. Calls to other processes of MoR, to endpoints in Kubernetes
    and on loopback do not use it."""
    client_proxy_except: tuple[Network, ...] = ()
    """Networks (CIDR), as a JSON list, whose endpoints are reached without ``client_proxy``."""
    client_proxy_resolves: bool = False
    """Leave the lookup of names to ``client_proxy``, for a router that cannot resolve them. The proxy then has to
    refuse addresses that the router must not reach; the router checks endpoints given by address only."""

    enrolments_per_minute: int = Field(20, ge=1)
    """Most attempts in a minute to enrol with one token of scope ``enrolment``, failed ones included; more get 429."""
    enrolments_per_network: int = Field(10, ge=1)
    """Most attempts in a minute to enrol endpoints in one network (IPv4 /24, IPv6 /48), by all such tokens; one token
    has half of them."""
    clients_per_token: int = Field(100, ge=1)
    """Most clients at a time that one token of scope ``enrolment`` has enrolled."""
    enrolment_asks_domains: tuple[DomainLabel, ...] | None = None
    """Domain labels of the prompts that clients may be sent which no admin has enrolled: those of tokens of scope
    ``enrolment`` and those found in Kubernetes. As JSON: ``["charts"]``; ``[]`` sends them none. An admin sets another
    rule for a client by ``mor client asks``. Null: all prompts."""
    enrolment_asks_public_only: bool = False
    """Send clients which no admin has enrolled only prompts whose source is marked as public."""

    scorer_responses_per_minute: int = Field(60_000, ge=1)
    """Most responses that one token of scope ``scorer`` has scored in a minute, by all replicas together; more get
    429."""
    coalesced_responses: int = Field(4096, ge=1)
    """Most responses that wait at ``/v1/adapters`` until their groups have a reward, shared by the callers; more get
    429."""
    image_cache_bytes: int = Field(256 << 20, ge=0)
    """Size of the cache of pictures that callers of ``/v1/reward`` and ``/v1/route`` sent, bytes; a caller need not
    send its cached pictures again."""

    deadline_s: float = Field(30.0, gt=0)
    """Seconds that clients have to score a group, including retries."""
    client_attempts: int = Field(3, ge=1, le=10)
    """Most attempts of one call to a client; only 429, 503 and lost connections are retried."""
    client_concurrency: int = Field(4, ge=1)
    """Most requests in flight to one client; a lower limit on the client's card applies instead."""
    most_clients: int | None = Field(None, ge=1)
    """Most weighted clients that score a group: those with the most weight for its input. Without it, all do."""
    most_newcomers: int = Field(8, ge=1)
    """Most clients on probation that score a group, in shadow: drawn anew for each, from those of each enrolment token
    in turn."""
    items_per_request: int = Field(16, ge=1)
    """Most groups in one request to a client; a lower limit on the client's card applies instead."""
    circuit_calls: int = Field(20, ge=1)
    """Latest calls to a client that its circuit looks at."""
    circuit_window_s: float = Field(300.0, gt=0)
    """Seconds after which the circuit forgets a call."""
    circuit_least_calls: int = Field(5, ge=1)
    """Calls in this window without which a circuit does not open."""
    circuit_failure_share: float = Field(0.5, gt=0, le=1)
    """Mean share of failure over the window that opens a client's circuit: it is then not called for a while. A failed
    call counts 1, a call of which some items failed their share."""
    circuit_open_s: float = Field(15.0, gt=0)
    """Mean seconds that a circuit stays open at first, jittered; they double at each opening until the client has
    answered a whole window of calls."""
    circuit_longest_open_s: float = Field(600.0, gt=0)
    """Most seconds, before the jitter, that a circuit stays open."""
    circuit_trials: int = Field(3, ge=1)
    """Good calls in a row, one at a time, that close a circuit again. No group waits for a client on trial while
    another client scores it."""
    outage_wait_s: float = Field(300.0, gt=0)
    """Seconds that groups wait in vain for one client, all together, before it is put on probation as unreliable and
    the others reward the groups. A group for which calls fail while the same clients answer others is given up after
    twice as long."""
    outage_share: float = Field(0.1, gt=0, lt=1)
    """Share of all time at which ``outage_wait_s`` refills. A client that was unreliable becomes active again after
    ``outage_wait_s`` / ``outage_share`` seconds, once it answers."""
    probe_interval_s: float = Field(15.0, gt=0)
    """Mean seconds between probes of a client, jittered."""

    quorum: float = Field(0.5, ge=0, le=1)
    """Least share of a group's gate weight whose clients must answer; below it the group is retried. A client that
    answers and has no score for the group does not count."""
    quorum_attempts: int = Field(3, ge=1)
    """Attempts of a group without a reward before it goes to the dead letters. Attempts that failed because clients, or
    parts of the router, are away do not count."""
    group_retry_s: float = Field(2.0, gt=0)
    """Mean seconds before the first retry of a group, doubled at each further one, up to 4 s, and jittered."""
    batch_groups: int = Field(8, ge=1)
    """Most waiting groups that are scored together, in one request to each client."""
    batches_in_flight: int = Field(4, ge=1)
    """Most batches of one run that are scored at a time."""
    worker: bool = True
    """Score the groups of active runs in this process; false: serve the API only."""

    fusion: FusionChoice = Weighted()
    """Fusion of calibrated scores into one reward, as JSON: ``{"kind": "weighted"}``, ``uniform``, ``median``,
    ``worst``, ``{"kind": "mean_minus_variance", "penalty": 0.5}``, ``{"kind": "gdpo", "floor": 0.1}``."""
    entropy_floor: float = Field(0.1, ge=0, le=1)
    """Least entropy of a mixture, as a share of the largest possible one; applies to later fits."""

    anchor_share: float = Field(0.05, ge=0, le=0.5)
    """Share of the groups sent to clients that are honeypots, anchors sent as live groups; 0: none."""
    anchor_reserve: float = Field(0.2, ge=0, le=0.5)
    """Share of the anchors that are held out: sent as honeypots only, never at a fit. No effect where ``anchor_share``
    is 0."""
    drift_false_alarm: float = Field(0.01, gt=0, lt=1)
    """Probability with which an unchanged client is ever found to drift under one gate version, and with which a client
    that does not mislead is ever distrusted for its audits."""
    audit_share: float = Field(0.02, ge=0, le=1)
    """Share of the groups of runs that are audited: labelled, by the objective's labeller or by people, after the
    clients have scored them; 0: none. An objective can have a share of its own."""
    candidate_share: float = Field(0.02, ge=0, le=1)
    """Share of the groups of runs, beside the audited ones, that are kept with the clients' scores: the router proposes
    pairs of them for labels that improve a fit; 0: none."""
    audit_second_share: float = Field(0.1, ge=0, le=1)
    """Share of the audited groups labelled by a person that another person labels as well, where several people label
    an objective."""

    policy_url: ServiceAddress | None = None
    """Address of the rollout service whose policy is sampled for online refits (``mor-rollout serve``)."""
    policy_ca_file: Path | None = None
    """PEM file of certificate authorities for ``policy_url``; without it, the system's are used."""
    service_token: SecretStr = SecretStr("")
    """Bearer token of scope ``service`` for ``policy_url``. The training processes sign the announcements of their runs
    with it: give the router theirs, and runs that others announce take no place from these."""
    refit_interval_s: float = Field(0.0, ge=0)
    """Seconds between online refits of each fitted objective; 0: only at a request to the API."""
    refit_questions: int = Field(64, ge=8, le=1024)
    """Most anchors whose questions the policy answers for a refit."""
    refit_samples: int = Field(4, ge=2, le=16)
    """Responses to each of these questions."""
    refit_max_tokens: int = Field(256, ge=1)
    """Longest of these responses, tokens."""
    refit_timeout_s: float = Field(600.0, gt=0)
    """Seconds for sampling and labelling together; the labels that exist by then are used."""

    objective_likeness: float = Field(0.6, ge=-1, le=1)
    """Least cosine between the objective text of a group and the nearest text or paraphrase of a fitted objective.
    Below it the text belongs to no known objective, and all active clients count the same."""

    embed_text_model: str | None = None
    """Sentence encoder for questions and objectives, folder or hub name; without it, words are hashed."""
    embed_image_model: str | None = None
    """Vision encoder for pictures, folder or hub name; without it, colours and edges are used."""
    embed_cache: int = Field(8192, ge=1)
    """Embeddings kept in memory, for texts and for pictures each."""
    torch_threads: int = Field(1, ge=1)
    """Threads for embedding models and fits."""

    @property
    def enrolment_asks(self) -> Asks:
        """Rule of clients that no admin has enrolled."""
        return Asks(domains=self.enrolment_asks_domains, public_only=self.enrolment_asks_public_only)

    @model_validator(mode="after")
    def _fit_each_other(self) -> RouterSettings:
        if self.kubernetes_namespaces and not self.kubernetes_networks:
            raise ValueError(
                "MOR_KUBERNETES_NAMESPACES is set without MOR_KUBERNETES_NETWORKS; "
                "set it to the networks of the cluster's pods and Services"
            )
        if self.client_proxy is None and (self.client_proxy_resolves or self.client_proxy_except):
            raise ValueError(
                "MOR_CLIENT_PROXY_RESOLVES or MOR_CLIENT_PROXY_EXCEPT is set without MOR_CLIENT_PROXY; "
                "set that to the proxy's address, or remove them"
            )
        if (self.client_cert_file is None) != (self.client_key_file is None):
            raise ValueError("give both of MOR_CLIENT_CERT_FILE and MOR_CLIENT_KEY_FILE, or none of them")
        if self.circuit_least_calls > self.circuit_calls:
            raise ValueError(
                f"MOR_CIRCUIT_LEAST_CALLS={self.circuit_least_calls} is over MOR_CIRCUIT_CALLS={self.circuit_calls}, "
                "so that no circuit would ever open; lower the first, or raise the second"
            )
        if self.circuit_open_s > self.circuit_longest_open_s:
            raise ValueError(
                f"MOR_CIRCUIT_OPEN_S={self.circuit_open_s:g} is over MOR_CIRCUIT_LONGEST_OPEN_S="
                f"{self.circuit_longest_open_s:g}; raise the second"
            )
        if self.deadline_s >= self.attempt_timeout_s:
            raise ValueError(
                f"MOR_DEADLINE_S={self.deadline_s:g} is not below MOR_ATTEMPT_TIMEOUT_S={self.attempt_timeout_s:g}, so "
                "that slow clients would end every attempt; raise the second"
            )
        if self.refit_interval_s and self.policy_url is None:
            raise ValueError(
                "MOR_REFIT_INTERVAL_S is set without MOR_POLICY_URL, from which a refit samples; set that to the "
                "rollout service's address"
            )
        return self
