"""A run's connection to Ray: which cluster, its namespace, one process per run, and storage that every node sees."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.health import KNOCK_S, HeadWatch, answers, left_without
from cluster.layout import layout, unplaced
from cluster.placement import cluster_nodes
from cluster.starting import check_socket_path, make_run_directory, not_started, storage_error
from rlaif.config.cluster import RoleResources
from rlaif.config.schema import Config
from rlaif.errors import ConfigError, HeadLostError
from rlaif.io.rundir import RunDir
from rlaif.io.storage import Location
from rlaif.isolation import HOOK

log = logging.getLogger(__name__)

LOCK_NAME = "run"
SESSION_FILE = "session.json"
"""In the run directory while the run is alive: where `status` and `scale` find its cluster."""

_SPARE_CPUS = 2
"""Logical CPUs of a private cluster beyond the roles' own, for actors that are added and for small tasks."""
_PROBE_TIMEOUT_S = 120.0
"""How long all nodes together may take to start a task that reads a file."""
_KNOCK_TIMEOUT_S = 15.0
"""How long a joined cluster's head may take to accept the first connection."""
_HEAD_PATIENCE_S = {"private": 3.0, "joined": 20.0}
"""How long a head may be silent. A private one is never restarted; another may be, if Ray's fault tolerance is on."""

abandoned: list[str] = []
"""Addresses of clusters that could not be left because their head had gone. Ray would wait for them at exit."""


@dataclass(frozen=True)
class Session:
    """A live connection. Named actors of the run live in `namespace`, and calls should name it."""

    address: str
    namespace: str
    owned: bool
    """A private local cluster, which ends with the run and cannot grow."""

    watch: HeadWatch | None = None
    """The watch on the cluster's head, if one was requested."""

    def finished(self) -> None:
        """Declare the work done: a head that ends from here on is no failure of the run."""
        if self.watch is not None:
            self.watch.finished = True

    def alive(self) -> bool:
        """Return whether the cluster's head answers. If it does not, no call through Ray returns in time."""
        return answers(self.address, KNOCK_S)


@contextmanager
def start_session(config: Config, on_lost: Callable[[HeadLostError], None] | None = None) -> Iterator[Session]:
    """Connect, claim the run's name, and check its storage; on leaving, give everything back.

    The cluster is `cluster.address`, else that of the surrounding Ray job or of RAY_ADDRESS, else a private local one.
    A process that is already connected keeps its connection. Raises ConfigError if the same run is alive already, if no
    cluster answers, and if the storage cannot be written or a node does not see it.

    Args:
        on_lost: raises an error in the main thread when the cluster's head has gone. Without it the head is not watched.
    """
    refuse_temporary(config.storage)
    run_dir, namespace = RunDir(config.storage, config.name), f"rlaif-{config.name}"
    make_run_directory(run_dir)
    address, source = ("connected", "") if ray.is_initialized() else _address(config)
    owned = address == "local"
    options = _private(config) if owned else {}
    # The lock first: of two processes on one machine the second one ends before it starts a cluster.
    with run_dir.lock(), _connected(address, namespace, source, on_lost, **options) as watch:
        session = Session(ray.get_runtime_context().gcs_address, namespace, owned, watch)
        with _claimed(run_dir, session):
            probe_storage(run_dir.location, [] if owned else _nodes_that_may_serve(config))
            run_dir.write_json(SESSION_FILE, _identity(session))
            yield session


@contextmanager
def _claimed(run_dir: RunDir, session: Session) -> Iterator[None]:
    """Hold the run's name in the cluster, and remove the session file at the end."""
    claim = _claim(run_dir, session)
    try:
        yield
    finally:
        (run_dir.location / SESSION_FILE).remove()
        # A call through Ray would not return without the head.
        if session.alive():
            ray.kill(claim)


@contextmanager
def attach_session(run_dir: RunDir) -> Iterator[Session]:
    """Join a live run from another process of its cluster, e.g. to read its status or to scale it.

    Raises ConfigError if the run is not alive.
    """
    record = run_dir.read_json(SESSION_FILE)
    if not record:
        raise ConfigError(f"a live run at {run_dir.location}", f"no {SESSION_FILE} there", "Start or resume it first.")
    # `ray start --head` of Ray 2.60 turns on authentication by token, which every client has to use.
    if record["auth"] and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = record["auth"]
        # Ray read the variable when it was imported, so its configuration is built once more.
        ray._raylet.Config.initialize("")  # type: ignore[attr-defined]
    with _connected(record["address"], record["namespace"], SESSION_FILE):
        if _holder(record["namespace"]) is None:
            raise ConfigError(f"a live run at {run_dir.location}", "one that has ended", "Start or resume it first.")
        yield Session(record["address"], record["namespace"], record["owned"])


def in_ray_job() -> bool:
    """Return whether this process was started by `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def refuse_temporary(storage: str) -> None:
    """Raise ConfigError for a relative path inside a Ray job: the job's working directory is deleted after it."""
    if in_ray_job() and "://" not in storage and not Path(storage).expanduser().is_absolute():
        raise ConfigError(
            "`storage` to be an absolute path that every node sees, or a URI, inside a Ray job",
            f"the relative path {storage!r}, below the job's temporary working directory",
            "Set `storage=/path/on/a/shared/file/system` or `storage=s3://bucket/runs`.",
        )


def probe_storage(location: Location, node_ids: list[str], patience_s: float = 10.0) -> None:
    """Write a file here and read it on each node. Raises ConfigError that names every node that does not see it.

    Args:
        patience_s: how long a node may take to see a new file (network file systems cache what a folder contains).
    """
    # Random content: a file of the same name in another folder on a node does not pass.
    probe, content = location / f".probe-{uuid.uuid4().hex}", uuid.uuid4().hex
    try:
        probe.write(content.encode())
    except OSError as error:
        raise storage_error(location, error) from error
    try:
        problems = _problems_of_nodes(node_ids, probe, content, patience_s)
    finally:
        probe.remove()
    if problems:
        nodes = cluster_nodes()
        lines = []
        for node_id, problem in problems.items():
            name = nodes[node_id].address if node_id in nodes else node_id
            lines.append(f"node {name}: {problem}")
        raise ConfigError(
            f"{location} to be one and the same folder on every node",
            "; ".join(lines),
            "Set `storage` to a shared file system that is mounted everywhere, or to a URI such as s3://bucket/runs.",
        )


def _problems_of_nodes(node_ids: list[str], probe: Location, content: str, patience_s: float) -> dict[str, str]:
    """Read a file on each node, and return what went wrong by node id."""
    if not node_ids:
        return {}
    reads = {node_id: _read_on(node_id, probe, content, patience_s) for node_id in node_ids}
    _, late = ray.wait(list(reads.values()), num_returns=len(reads), timeout=_PROBE_TIMEOUT_S)
    problems = {}
    for node_id, read in reads.items():
        problem = "no answer" if read in late else ray.get(read, timeout=_PROBE_TIMEOUT_S)
        if problem:
            problems[node_id] = problem
    return problems


@ray.remote(num_cpus=0, max_retries=0)
def _read_probe(probe: Location, content: str, patience_s: float) -> str | None:
    """Return what went wrong, or None."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            actual = probe.read().decode()
            return None if actual == content else f"another file of that name ({actual[:40]!r})"
        except OSError as error:
            if time.monotonic() > deadline:
                return f"{type(error).__name__}: {error}"
        time.sleep(0.2)


def _read_on(node_id: str, *args: Any) -> ray.ObjectRef:
    """Start `_read_probe` on one node."""
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return _read_probe.options(scheduling_strategy=strategy).remote(*args)


def _nodes_that_may_serve(config: Config) -> list[str]:
    """Return the ids of nodes that could hold an actor of some role.

    Other nodes, such as a head without resources, need not see the storage.
    """
    single = {name: role.model_copy(update={"actors": 1}) for name, role in _roles(config).items()}
    bundles = layout(single)
    node_ids = []
    for node_id, node in cluster_nodes().items():
        if any(not unplaced([bundle], [node]) for bundle in bundles):
            node_ids.append(node_id)
    return node_ids


def _roles(config: Config) -> dict[str, RoleResources]:
    """Return the roles' resources by name."""
    return {name: getattr(config.cluster, name) for name in ("rollout", "reward", "learner")}


@contextmanager
def _connected(
    address: str,
    namespace: str,
    source: str = "",
    on_lost: Callable[[HeadLostError], None] | None = None,
    **options: Any,
) -> Iterator[HeadWatch | None]:
    """Connect to a cluster, or start a private one, and leave it at the end.

    Args:
        source: the option, variable or file that named the address.
        on_lost: see `start_session`.
    """
    if ray.is_initialized():
        yield None
        return
    _connect(address, namespace, source, **options)
    # The address of the head itself: `address` may be "local" or "auto".
    head = ray.get_runtime_context().gcs_address
    patience = _HEAD_PATIENCE_S["private" if address == "local" else "joined"]
    watch = HeadWatch(head, patience, on_lost) if on_lost else None
    try:
        yield watch
    finally:
        _leave(head, watch)


def _connect(address: str, namespace: str, source: str, **options: Any) -> None:
    """Call `ray.init`, and raise ConfigError if it fails."""
    try:
        check_socket_path(address)
        _knock(address)
        # "local" is passed on as it is: without an address Ray would join any cluster that runs on this machine.
        ray.init(
            address,
            namespace=namespace,
            logging_level=logging.WARNING,
            runtime_env={"worker_process_setup_hook": HOOK},
            **options,
        )
    except ConfigError:
        raise
    except Exception as error:  # Ray raises plain Exception, RuntimeError, TimeoutError and more when it cannot start
        ray.shutdown()
        reason = str(error.__cause__ or error) or type(error).__name__
        raise (not_started(reason) if address == "local" else _no_cluster(address, reason, source)) from error


def _leave(head: str, watch: HeadWatch | None) -> None:
    """Disconnect, unless that would wait for a head that has gone."""
    if answers(head):
        ray.shutdown()
    else:
        abandoned.append(head)
        if watch is None or watch.finished:
            log.warning("%s", left_without(head))
    if watch is not None:
        watch.stop()


def _private(config: Config) -> dict[str, Any]:
    """Return options of a private cluster. Its CPUs are logical: actors of a small machine take turns on the cores."""
    # A local run should not report its usage to Ray's developers, which Ray does by default.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cpus = sum(role.actors * role.cpus for role in _roles(config).values())
    return {
        "num_cpus": max(math.ceil(cpus) + _SPARE_CPUS, os.cpu_count() or 1),
        "object_store_memory": int(config.cluster.object_store_gib * 2**30),
        "include_dashboard": False,
        # Actors bring their own environment, so workers that Ray starts in advance would only cost time and memory.
        "_system_config": {"prestart_worker_first_driver": False},
    }


def _address(config: Config) -> tuple[str, str]:
    """Return the cluster's address, and the option or variable that named it ("" for none)."""
    variable = os.environ.get("RAY_ADDRESS")
    if config.cluster.address:
        address, source = config.cluster.address, "cluster.address"
    elif variable:
        address, source = variable, "RAY_ADDRESS"
    else:
        address, source = "auto" if in_ray_job() else "local", ""
    if address.startswith(("http://", "https://", "ray://")):
        raise ConfigError(
            f"{source} to be host:port of the cluster's head, or `auto` on one of its nodes",
            f"{address}, the address for submitting jobs",
            f"Run `ray job submit --address {address} -- python -m rlaif ...`, or unset {source}.",
        )
    return address, source


def _no_cluster(address: str, reason: str, source: str) -> ConfigError:
    """Return the error for a cluster that was named, or is that of the surrounding job, and does not answer."""
    expected = f"a Ray cluster at {address}" + (f" ({source})" if source else "")
    if "AuthToken" in reason:
        fix = "Set RAY_AUTH_MODE=token in this shell, and write the cluster's token to `~/.ray/auth_token`."
        return ConfigError(expected, "one that asks for a token", fix)
    alternative = {
        "cluster.address": "or leave cluster.address out to use a private cluster",
        "RAY_ADDRESS": "or `unset RAY_ADDRESS` to use a private cluster",
        SESSION_FILE: "or resume the run, which has ended",
    }.get(source, "or submit the job again")
    return ConfigError(expected, reason, f"Start it (`ray start --head`), {alternative}.")


def _knock(address: str) -> None:
    """Raise OSError if nothing listens, and ValueError for no address: Ray itself would try for minutes."""
    if address in ("local", "auto"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"{address!r} is not host:port")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_TIMEOUT_S).close()


@ray.remote(num_cpus=0)
class _Claim:
    """Holds a run's name in the cluster for as long as its driver lives."""

    def __init__(self, holder: dict[str, Any]):
        self._holder = holder

    def holder(self) -> dict[str, Any]:
        """Return the identity of the driver."""
        return self._holder


def _claim(run_dir: RunDir, session: Session, patience_s: float = 15.0) -> Any:
    """Take the run's name and return the actor that holds it.

    Raises ConfigError if another driver has the name; the claim of one that has just ended is waited for.
    """
    deadline = time.monotonic() + patience_s
    holder = _identity(session) | {"directory": str(run_dir.location)}
    while True:
        try:
            # An actor without `lifetime="detached"` ends with its driver, so a killed driver frees the name.
            claim_class: Any = _Claim
            return claim_class.options(name=LOCK_NAME, namespace=session.namespace).remote(holder)
        except ValueError as error:  # another actor has the name
            other = _holder(session.namespace)
            if other or time.monotonic() > deadline:
                other = other or {}
                raise ConfigError(
                    f"no live run named {run_dir.name!r} in the cluster at {session.address}",
                    f"one of process {other.get('pid')} on {other.get('host')}, in {other.get('directory')}",
                    "Wait for it or stop it, or give this run another `name`.",
                ) from error
        time.sleep(0.2)


def _holder(namespace: str) -> dict[str, Any] | None:
    """Return the identity of the driver that has the name; None if there is none, or if it is just ending."""
    try:
        claim: Any = ray.get_actor(LOCK_NAME, namespace)
        holder: Any = ray.get(claim.holder.remote(), timeout=10)
        return holder
    except (ValueError, RayActorError, ray.exceptions.GetTimeoutError):
        return None


def _identity(session: Session) -> dict[str, Any]:
    """Return what other processes need to find the run and its driver."""
    return {
        "address": session.address,
        "namespace": session.namespace,
        "owned": session.owned,
        "auth": os.environ.get("RAY_AUTH_MODE"),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.time(),
    }
