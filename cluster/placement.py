"""Reserving room for every role before any actor starts: placement groups, a deadline, and a message that helps."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.layout import Bundle, Node, Requests, layout, shortage, unplaced
from rlaif.config.cluster import RoleResources
from rlaif.errors import PlacementError

log = logging.getLogger(__name__)

ACCELERATOR_LABEL = "ray.io/accelerator-type"
"""Ray sets it on every GPU node (A100, H100, L4, ...); on others it can be given with `ray start --labels`."""

_POLL_S = 0.2
_REMIND_S = 60.0
_PATIENCE_S = 10.0


@dataclass(frozen=True)
class _Group:
    """One placement group and what it holds."""

    handle: PlacementGroup
    bundles: tuple[Bundle, ...]


@dataclass(frozen=True)
class Placement:
    """Reserved room for the actors of one role."""

    role: RoleResources
    slots: tuple[tuple[_Group, int], ...]
    """(group, index of the bundle in it) of each actor."""

    def options(self, index: int) -> dict[str, Any]:
        """Arguments for `Actor.options(...)` of actor `index`."""
        group, bundle = self.slots[index]
        strategy = PlacementGroupSchedulingStrategy(group.handle, placement_group_bundle_index=bundle)
        return {"scheduling_strategy": strategy, "num_cpus": self.role.cpus, "num_gpus": self.role.gpus}

    def release(self, index: int) -> bool:
        """Give back one actor's room after it stopped. False where it shares its group, which stays reserved."""
        group, _ = self.slots[index]
        if len(group.bundles) > 1 or len(group.bundles[0].members) > 1:
            return False
        remove_placement_group(group.handle)
        return True


def place(requests: Requests, deadline_s: float, can_grow: bool | None = None) -> dict[str, Placement]:
    """Reserve room for all roles, or raise PlacementError and hold nothing.

    Learners and whatever shares their GPUs form one group, on as few nodes as possible; every other bundle has a group
    of its own, so that a rollout actor can be added or given back alone. Where even the empty cluster is too small the
    error comes at once, unless the cluster may grow (an autoscaler): then the wait goes on to the deadline.

    Args:
        deadline_s: seconds to wait for room.
        can_grow: whether nodes may be added; by default the cluster is asked.
    """
    bundles = layout(requests)
    nodes = list(cluster_nodes().values())
    if too_many := unplaced(bundles, nodes):
        error = shortage(requests, too_many, nodes, busy=False)
        if not (may_grow() if can_grow is None else can_grow):
            raise error
        log.warning("waiting up to %.0f s for the cluster to grow:\n%s", deadline_s, error)
    groups = [_reserve(group) for group in _groups(bundles)]
    try:
        _wait(requests, groups, deadline_s)
    except BaseException:
        for group in groups:
            remove_placement_group(group.handle)
        raise
    slots = {key: (g, i) for g in groups for i, bundle in enumerate(g.bundles) for key in bundle.members}
    return {
        name: Placement(role, tuple(slots[name, index] for index in range(role.actors)))
        for name, role in requests.items()
    }


def remove(placements: dict[str, Placement]) -> None:
    """Give back all room. Actors that still run in it are killed by Ray."""
    groups = {group.handle.id: group for placement in placements.values() for group, _ in placement.slots}
    for group in groups.values():
        remove_placement_group(group.handle)


def cluster_nodes() -> dict[str, Node]:
    """The live nodes by their id."""
    free = ray._private.state.available_resources_per_node()  # the public state API needs the dashboard
    return {
        node["NodeID"]: Node(
            address=node["NodeManagerAddress"],
            accelerator=node["Labels"].get(ACCELERATOR_LABEL),
            gpus=node["Resources"].get("GPU", 0.0),
            cpus=node["Resources"].get("CPU", 0.0),
            free_gpus=free.get(node["NodeID"], {}).get("GPU", 0.0),
            free_cpus=free.get(node["NodeID"], {}).get("CPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    }


def may_grow() -> bool:
    """Whether an autoscaler could add nodes; also true where that cannot be told.

    Every cluster reports the types of its nodes; where nothing scales it, Ray makes up one type per node.
    """
    if status := _internal_kv_get("__autoscaling_status"):  # the older autoscaler
        types = list(json.loads(status).get("autoscaler_report", {}).get("active_nodes") or {})
    else:
        report = get_cluster_status(ray.get_runtime_context().gcs_address)
        types = [node.ray_node_type_name for node in (*report.active_nodes, *report.idle_nodes)]
    return not types or any(not name.startswith("node_") for name in types)


def _groups(bundles: Sequence[Bundle]) -> list[tuple[Bundle, ...]]:
    together = tuple(bundle for bundle in bundles if bundle.lockstep)
    return ([together] if together else []) + [(bundle,) for bundle in bundles if not bundle.lockstep]


def _reserve(bundles: tuple[Bundle, ...]) -> _Group:
    selectors = [{ACCELERATOR_LABEL: bundle.accelerator} if bundle.accelerator else {} for bundle in bundles]
    handle = placement_group(
        [bundle.resources for bundle in bundles],
        strategy="PACK",
        bundle_label_selector=selectors if any(selectors) else None,
    )
    return _Group(handle, bundles)


def _wait(requests: Requests, groups: Sequence[_Group], deadline_s: float) -> None:
    start = time.monotonic()
    remind = start + _PATIENCE_S
    while waiting := [group for group in groups if _state(group)["state"] != "CREATED"]:
        now = time.monotonic()
        if now > start + deadline_s:
            raise _explain(requests, waiting, groups)
        if now > remind:
            log.warning(
                "still waiting (%.0f of %.0f s):\n%s", now - start, deadline_s, _explain(requests, waiting, groups)
            )
            remind = now + _REMIND_S
        time.sleep(_POLL_S)


def _state(group: _Group) -> dict[str, Any]:
    return placement_group_table(group.handle)


def _explain(requests: Requests, waiting: Sequence[_Group], groups: Sequence[_Group]) -> PlacementError:
    """The shortage as it is now; room that this request already holds counts as free."""
    nodes = cluster_nodes()
    for group in groups:
        for index, node_id in _state(group)["bundles_to_node_id"].items():
            if node := nodes.get(node_id):
                held = group.bundles[index]
                nodes[node_id] = replace(
                    node, free_gpus=node.free_gpus + held.gpus, free_cpus=node.free_cpus + held.cpus
                )
    left = list(nodes.values())
    busy = not unplaced([bundle for group in groups for bundle in group.bundles], left)
    return shortage(requests, [bundle for group in waiting for bundle in group.bundles], left, busy)
