"""Connections of runs: private and joined clusters, one live run per name, runs in parallel, storage on all nodes."""

import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.session import attach_session, in_ray_job, probe_storage, refuse_temporary, start_session
from cluster.starting import not_started
from rlaif.config.cluster import Cluster as ClusterOptions
from rlaif.config.cluster import RoleResources
from rlaif.config.schema import Config
from rlaif.errors import ConfigError
from rlaif.io.rundir import RunDir
from rlaif.io.storage import locate

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_surrounding_cluster(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)


def config(storage: Path | str, name: str = "one", **cluster) -> Config:
    return Config(name=name, storage=str(storage), cluster=ClusterOptions(object_store_gib=0.1, **cluster))


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_the_address_of_the_job_server_is_refused(tmp_path, monkeypatch, address):
    """Users export RAY_ADDRESS=http://... for `ray job submit`; a run that is started by hand then fails with a fix."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match="ray job submit"), start_session(config(tmp_path)):
        pass


def test_an_address_where_nothing_listens_fails_at_once(tmp_path):
    with (
        pytest.raises(ConfigError, match="a Ray cluster at 127.0.0.1:1"),
        start_session(config(tmp_path, address="127.0.0.1:1")),
    ):
        pass


@pytest.mark.parametrize("option", ["cluster.address", "RAY_ADDRESS"])
def test_an_error_names_the_option_or_variable_of_the_address(tmp_path, monkeypatch, option):
    """The error of RAY_ADDRESS does not name `cluster.address`, which is not set, and the other way round."""
    other = {"cluster.address": "RAY_ADDRESS", "RAY_ADDRESS": "cluster.address"}[option]
    options = {"address": "127.0.0.1:1"} if option == "cluster.address" else {}
    if not options:
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match=option) as caught, start_session(config(tmp_path, **options)):
        pass
    assert other not in str(caught.value)


def test_a_temporary_folder_with_too_long_a_path_is_refused(tmp_path, monkeypatch):
    """The kernel takes 107 bytes for the path of a socket."""
    monkeypatch.setenv("TMPDIR", f"/tmp/{'x' * 50}")
    with pytest.raises(ConfigError, match="TMPDIR=/tmp/xxx.* bytes") as caught, start_session(config(tmp_path)):
        pass
    assert "cluster.address" not in str(caught.value)


def test_a_private_cluster_that_does_not_start_is_a_clear_error(tmp_path, monkeypatch):
    """The error names the cause on this machine: here the folder for temporary files is a file."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    monkeypatch.setattr("rlaif.io.writable.SOCKET_LIMIT", 500)
    with (
        pytest.raises(ConfigError, match="a private Ray cluster that starts") as caught,
        start_session(config(tmp_path)),
    ):
        pass
    assert "file is a file" in caught.value.found and "Set RAY_TMPDIR" in caught.value.fix
    assert "cluster.address" not in str(caught.value)


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (("os.getloadavg", lambda: (1000.0, 0.0, 0.0)), "Wait until the machine is less busy"),
        (("cluster.starting._free", lambda folder: 2**20), "Free or enlarge /dev/shm"),
        (("cluster.starting.why_not_writable", lambda folder: "no"), "Mount /dev/shm"),
    ],
    ids=["load", "full", "read-only"],
)
def test_not_started_names_what_keeps_ray_from_starting(monkeypatch, condition, words):
    monkeypatch.setattr(*condition)
    error = not_started("The current node timed out during startup.\n" + "log\n" * 100)
    assert words in error.fix and "timed out" in error.found and error.found.count("log") == 2


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "Free space"), (errno.EDQUOT, "Free space"), (errno.EACCES, "permissions")]
)
def test_storage_that_cannot_be_written_has_a_fix_for_its_cause(tmp_path, monkeypatch, number, words):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("cluster.session.Location.write", fail)
    with pytest.raises(ConfigError, match="can be written") as caught:
        probe_storage(locate(tmp_path), [])
    assert words in caught.value.fix


@pytest.mark.parametrize("storage", ["/proc/x", "/dev/null/x"])
def test_storage_that_cannot_be_created_fails_before_ray_starts(storage):
    with pytest.raises(ConfigError, match=f"can be written: {storage}/one"), start_session(config(storage)):
        pass
    assert not ray.is_initialized()


def test_relative_storage_is_refused_inside_a_job(monkeypatch):
    refuse_temporary("runs")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert in_ray_job()
    with pytest.raises(ConfigError, match="absolute path"):
        refuse_temporary("runs")
    refuse_temporary("/shared/runs")
    refuse_temporary("s3://bucket/runs")


JOIN = """
import sys, ray
from cluster.session import attach_session
from rlaif.io.rundir import RunDir
with attach_session(RunDir(sys.argv[1], "one")) as session:
    assert session.owned and ray.get_actor("run", session.namespace)
"""


@ray.remote(num_cpus=0)
def packages_of_a_worker() -> list[str]:
    return [importlib.util.find_spec(name).origin for name in ("cluster.session", "actors.pool", "learners.spec")]


def test_a_private_cluster_has_enough_cpus_and_can_be_joined(tmp_path, monkeypatch):
    """Its workers import our packages although the working directory, first on their path, has others of these names."""
    (tmp_path / "here").mkdir()
    for name in ("cluster", "actors", "learners"):
        (tmp_path / "here" / f"{name}.py").write_text("raise RuntimeError('not ours')")
    monkeypatch.chdir(tmp_path / "here")
    options = config(tmp_path, learner=RoleResources(actors=5, cpus=2))
    with start_session(options) as session:
        ours = [str(ROOT / file) for file in ("cluster/session.py", "actors/pool.py", "learners/spec.py")]
        assert ray.get(packages_of_a_worker.remote(), timeout=60) == ours
        assert session.owned and session.namespace == "rlaif-one"
        assert ray.cluster_resources()["CPU"] >= 12, "as many logical CPUs as the roles ask for"
        written = json.loads((tmp_path / "one/session.json").read_text())
        assert (written["address"], written["namespace"], written["pid"]) == (session.address, "rlaif-one", os.getpid())
        shell = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        joined = subprocess.run(
            [sys.executable, "-P", "-c", JOIN, str(tmp_path)], env={**shell, "PYTHONPATH": str(ROOT)}
        )
        assert joined.returncode == 0, "another shell finds the run and its actors"
    assert not ray.is_initialized()
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [".lock"]


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=4)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def connected(cluster):
    ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
    yield cluster
    ray.shutdown()


def test_a_joined_cluster_outlives_the_run(cluster, tmp_path):
    with start_session(config(tmp_path, address=cluster.address)) as session:
        assert not session.owned and session.address == cluster.address
    with start_session(config(tmp_path, address=cluster.address)):  # the name is free again at once
        assert len([node for node in ray.nodes() if node["Alive"]]) == 2


HOLD = """
import sys, time
from cluster.session import start_session
from rlaif.config.cluster import Cluster
from rlaif.config.schema import Config
with start_session(Config(name="one", storage=sys.argv[1], cluster=Cluster(address=sys.argv[2]))):
    print("alive", flush=True)
    time.sleep(600)
"""


def test_a_second_live_run_of_a_name_is_refused(connected, tmp_path):
    """It is refused with another storage too. A run of another name is accepted, and a killed run frees its name."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "a"), connected.address]
    other = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"alive\n"
        with pytest.raises(ConfigError, match=f"process {other.pid} on"), start_session(config(tmp_path / "a")):
            pass
        with (
            pytest.raises(ConfigError, match=f"process {other.pid} on .*/a/one"),
            start_session(config(tmp_path / "b")),
        ):
            pass
        with start_session(config(tmp_path / "a", name="two")) as beside:
            assert beside.namespace == "rlaif-two" and not beside.owned
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    with start_session(config(tmp_path / "a")):
        pass
    assert ray.is_initialized(), "a connection that was there before stays"


def test_attach_session_needs_a_live_run(connected, tmp_path):
    run = RunDir(tmp_path, "gone")
    with pytest.raises(ConfigError, match="no session.json"), attach_session(run):
        pass
    run.write_json("session.json", {"address": "127.0.0.1:1", "namespace": "rlaif-gone", "owned": True, "auth": None})
    with pytest.raises(ConfigError, match="one that has ended"), attach_session(run):
        pass


def test_storage_that_a_node_does_not_see_names_the_node(connected, tmp_path):
    """A path that only this process can open imitates a folder that is not mounted on the other nodes."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    probe_storage(locate(tmp_path), nodes)
    handle = os.open(tmp_path, os.O_RDONLY)
    os.dup2(handle, 700)
    try:
        with pytest.raises(ConfigError, match="on every node") as caught:
            probe_storage(locate("/proc/self/fd/700"), nodes, patience_s=0.5)
    finally:
        os.close(handle)
        os.close(700)
    address = next(node["NodeManagerAddress"] for node in ray.nodes())
    assert caught.value.found.count(f"node {address}: FileNotFoundError") == 2
    assert list(tmp_path.iterdir()) == [], "the probe is cleaned up"


def test_probe_storage_fails_if_the_storage_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can be written"):
        probe_storage(locate(tmp_path / "file/below"), [])
