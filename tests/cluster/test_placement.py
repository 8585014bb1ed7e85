"""Layouts and errors of a shortage, without Ray, and real placement groups on pretended GPUs."""

import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group

from cluster.layout import Bundle, Node, layout, shortage, unplaced
from cluster.placement import cluster_nodes, may_grow, place, remove
from rlaif.config.cluster import RoleResources
from rlaif.errors import ConfigError, PlacementError


def machine(gpus: float, cpus: float = 64, accelerator: str | None = "A100", free_gpus: float | None = None) -> Node:
    return Node("10.0.0.1", accelerator, gpus, cpus, gpus if free_gpus is None else free_gpus, cpus)


def on_gpus(requests: dict[str, RoleResources]) -> list[Counter]:
    """Count the actors of each role on each GPU bundle."""
    return [Counter(role for role, _ in bundle.members) for bundle in layout(requests) if bundle.gpus]


def test_actors_with_whole_gpus_or_none_have_a_bundle_each():
    bundles = layout(
        {
            "rollout": RoleResources(actors=2, gpus=2, cpus=3),
            "reward": RoleResources(),
            "learner": RoleResources(actors=2),
        }
    )
    assert Counter((b.gpus, b.cpus, len(b.members)) for b in bundles) == {(2, 3, 1): 2, (0, 1, 1): 3}


def test_half_gpus_pair_a_rollout_with_a_learner():
    """Eight of each on a node of eight GPUs, and not four GPUs with two rollouts and four with two learners."""
    requests = {"rollout": RoleResources(actors=8, gpus=0.5), "learner": RoleResources(actors=8, gpus=0.5)}
    assert on_gpus(requests) == [{"rollout": 1, "learner": 1}] * 8
    assert not unplaced(layout(requests), [machine(8)])


def test_three_roles_with_fractions_use_as_few_gpus_as_possible():
    requests = {
        "rollout": RoleResources(actors=2, gpus=0.5),
        "reward": RoleResources(actors=2, gpus=0.5),
        "learner": RoleResources(actors=4, gpus=0.5),
    }
    gpus = on_gpus(requests)
    assert len(gpus) == 4 and all(gpu["learner"] == 1 for gpu in gpus)


def test_fractions_of_one_role_share_a_gpu():
    assert on_gpus({"reward": RoleResources(actors=8, gpus=0.25)}) == [{"reward": 4}] * 2
    halves = RoleResources(actors=2, gpus=0.5)
    assert on_gpus({"rollout": halves, "reward": halves}) == [{"rollout": 1, "reward": 1}] * 2
    assert on_gpus({"reward": RoleResources(actors=3, gpus=0.3333)}) == [{"reward": 3}]


def test_learners_never_share_a_gpu():
    """Each needs only a half of a GPU, but their GPUs are reserved whole."""
    bundles = layout({"learner": RoleResources(actors=2, gpus=0.5)})
    assert [bundle.gpus for bundle in bundles] == [1.0, 1.0]
    (shared,) = layout({"learner": RoleResources(gpus=0.5), "rollout": RoleResources(gpus=0.25)})
    assert shared.gpus == 0.75


def test_types_of_gpus_are_not_mixed():
    requests = {
        "rollout": RoleResources(gpus=0.5, accelerator="L4"),
        "learner": RoleResources(gpus=0.5, accelerator="A100"),
    }
    assert sorted(bundle.accelerator for bundle in layout(requests)) == ["A100", "L4"]


def test_fractions_above_one_are_refused():
    with pytest.raises(ConfigError, match="cluster.rollout.gpus=2"):
        layout({"rollout": RoleResources(gpus=1.5)})


def test_unplaced_keeps_cpu_actors_off_gpu_nodes_and_a_fraction_on_one_gpu():
    requests = {"rollout": RoleResources(actors=4, gpus=1, cpus=4), "reward": RoleResources(actors=4, cpus=4)}
    assert not unplaced(layout(requests), [machine(4, cpus=16), machine(0, cpus=16, accelerator=None)])
    threes_quarters = [Bundle((("reward", i),), 0.75, 1, None) for i in range(2)]
    assert not unplaced(threes_quarters, [machine(2)])
    assert len(unplaced([*threes_quarters, Bundle((("rollout", 0),), 0.5, 1, None)], [machine(2)])) == 1


def test_shortage_names_roles_nodes_and_changes_that_fit():
    requests = {
        "rollout": RoleResources(actors=6, gpus=1, accelerator="H100"),
        "learner": RoleResources(actors=4, gpus=1, accelerator="A100"),
    }
    nodes = [machine(8, accelerator="A100", free_gpus=5), machine(2, accelerator="L4")]
    error = shortage(requests, unplaced(layout(requests), nodes), nodes, busy=False)
    assert "rollout: 6 x (1 GPU H100, 1 CPU)" in error.expected and "learner: 4 x (1 GPU A100, 1 CPU)" in error.expected
    assert "no room for rollout (6 of 6 actors)" in error.found
    assert "node 10.0.0.1 (A100): 8 GPU (5 free), 64 CPU (64 free)" in error.found and "(L4): 2 GPU" in error.found
    assert "cluster.rollout.accelerator=null" in error.fix, "6 of the 8 + 2 - 4 others"
    assert "add room for 6 x (1 GPU H100, 1 CPU)" in error.fix
    assert "accelerator=A100" not in error.fix, "only 4 are left of those"


@pytest.mark.parametrize(
    ("requests", "change"),
    [
        (
            {"rollout": RoleResources(actors=8, gpus=1), "learner": RoleResources(actors=2, gpus=1)},
            "cluster.rollout.actors=2",
        ),
        (
            {"rollout": RoleResources(actors=2, gpus=1, cpus=99), "learner": RoleResources(actors=2)},
            "cluster.rollout.cpus=31.0",
        ),
        (
            {"rollout": RoleResources(actors=4, gpus=1), "learner": RoleResources(actors=4, gpus=1)},
            "cluster.rollout.gpus=0.5 cluster.learner.gpus=0.5",
        ),
    ],
)
def test_suggested_changes_fit(requests, change):
    nodes = [machine(4)]
    error = shortage(requests, unplaced(layout(requests), nodes), nodes, busy=False)
    assert change in error.fix.removeprefix("Set ").split(", or ")
    changed = dict(requests)
    for override in change.split():
        path, value = override.split("=")
        _, role, field = path.split(".")
        changed[role] = changed[role].model_copy(update={field: float(value) if field != "actors" else int(value)})
    assert not unplaced(layout(changed), nodes)


def test_a_shortage_lists_a_part_of_a_big_cluster():
    requests = {"rollout": RoleResources(gpus=2)}
    error = shortage(requests, layout(requests), [machine(1)] * 40, busy=False)
    assert "and 28 more nodes" in error.found


@pytest.fixture(scope="module")
def mixed():
    """Start a head without GPUs, a node with four A100 and one with two L4."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    cluster.add_node(num_cpus=6, num_gpus=4, labels={"ray.io/accelerator-type": "A100"})
    cluster.add_node(num_cpus=2, num_gpus=2, labels={"ray.io/accelerator-type": "L4"})
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@ray.remote
class Where:
    """Reports its node's accelerator and its GPUs."""

    def look(self) -> tuple[str | None, str]:
        labels = {node["NodeID"]: node["Labels"] for node in ray.nodes()}
        here = labels[ray.get_runtime_context().get_node_id()]
        return here.get("ray.io/accelerator-type"), os.environ.get("CUDA_VISIBLE_DEVICES", "")


def look(placement) -> list[tuple[str | None, str]]:
    """Start the actors of a role, and return the accelerator and the GPUs of each."""
    actors = [Where.options(**placement.options(index)).remote() for index in range(len(placement.slots))]
    places = ray.get([actor.look.remote() for actor in actors], timeout=120)
    for actor in actors:
        ray.kill(actor)
    return places


def all_free() -> bool:
    """Check that nothing is reserved on any node."""
    return all((node.free_gpus, node.free_cpus) == (node.gpus, node.cpus) for node in cluster_nodes().values())


def wait_until(condition, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_roles_are_placed_on_their_accelerators_and_share_gpus(mixed):
    requests = {
        "learner": RoleResources(actors=2, gpus=0.5, accelerator="A100"),
        "rollout": RoleResources(actors=2, gpus=0.5, accelerator="A100"),
        "reward": RoleResources(actors=1, gpus=1, accelerator="L4"),
    }
    placements = place(requests, deadline_s=30)
    learners, rollouts = look(placements["learner"]), look(placements["rollout"])
    assert [kind for kind, _ in learners + rollouts] == ["A100"] * 4
    assert learners == rollouts, "the same two GPUs"
    assert learners[0][1] != learners[1][1], "one learner on each"
    [(kind, gpu)] = look(placements["reward"])
    assert kind == "L4" and len(gpu) == 1
    remove(placements)
    wait_until(all_free)


def test_release_gives_back_the_room_of_one_actor(mixed):
    placements = place(
        {"rollout": RoleResources(actors=2, gpus=1, accelerator="L4"), "learner": RoleResources(actors=2)},
        deadline_s=30,
    )
    assert placements["rollout"].release(1) and not placements["learner"].release(0)
    again = place({"rollout": RoleResources(gpus=1, accelerator="L4")}, deadline_s=30)
    remove(placements)
    remove(again)
    wait_until(all_free)


def test_a_request_that_can_never_fit_fails_at_once(mixed):
    began = time.monotonic()
    with pytest.raises(PlacementError) as caught:
        place(
            {"rollout": RoleResources(actors=6, gpus=1, accelerator="A100"), "learner": RoleResources()}, deadline_s=600
        )
    assert time.monotonic() - began < 30
    assert "rollout (2 of 6 actors)" in caught.value.found and "cluster.rollout.actors=4" in caught.value.fix
    assert all_free()


def test_place_waits_for_a_busy_cluster_until_the_deadline(mixed):
    other = placement_group([{"GPU": 3, "CPU": 1}], bundle_label_selector=[{"ray.io/accelerator-type": "A100"}])
    assert other.wait(30)
    requests = {"rollout": RoleResources(actors=2, gpus=1, accelerator="A100"), "learner": RoleResources()}
    with pytest.raises(PlacementError) as caught:
        place(requests, deadline_s=1.5)
    assert "others use a part" in caught.value.found and "rollout (1 of 2 actors)" in caught.value.found
    assert "(A100): 4 GPU (1 free)" in caught.value.found, "the room of this request itself counts as free"
    assert "cluster.rollout.actors=1" in caught.value.fix and "cluster.deadline_s" in caught.value.fix
    releaser = threading.Timer(1.0, remove_placement_group, [other])
    releaser.start()
    remove(place(requests, deadline_s=60))
    releaser.join()
    wait_until(all_free)


def test_place_waits_for_a_growing_cluster(mixed, caplog):
    assert not may_grow()
    with ThreadPoolExecutor(1) as pool:
        placing = pool.submit(
            place, {"rollout": RoleResources(gpus=1, accelerator="H100")}, deadline_s=90, can_grow=True
        )
        node = mixed.add_node(num_cpus=1, num_gpus=1, labels={"ray.io/accelerator-type": "H100"})
        remove(placing.result())
    assert "for the cluster to grow" in caplog.text
    mixed.remove_node(node)
