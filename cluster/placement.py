"""Reserves room for every role before any actor starts: placement groups, a deadline, and an error with suggestions."""

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
"""Seconds between warnings while placement groups wait."""
_PATIENCE_S = 10.0
"""Seconds before the first warning: a cluster with room is usually faster."""


@dataclass(frozen=True)
class _Group:
    """One placement group and its bundles."""

    handle: PlacementGroup
    bundles: tuple[Bundle, ...]


@dataclass(frozen=True)
class Placement:
    """Reserved room for the actors of one role."""

    role: RoleResources
    slots: tuple[tuple[_Group, int], ...]
    """(group, index of the bundle in it) of each actor."""

    def options(self, index: int) -> dict[str, Any]:
        """Return arguments for `Actor.options(...)` of actor `index`."""
        group, bundle = self.slots[index]
        # Ray subtracts these amounts from the bundle, which several actors may share.
        strategy = PlacementGroupSchedulingStrategy(group.handle, placement_group_bundle_index=bundle)
        return {"scheduling_strategy": strategy, "num_cpus": self.role.cpus, "num_gpus": self.role.gpus}

    def release(self, index: int) -> bool:
        """Give back one actor's room after it stopped. False if it shares its group, which stays reserved."""
        group, _ = self.slots[index]
        if len(group.bundles) > 1 or len(group.bundles[0].members) > 1:
            return False
        remove_placement_group(group.handle)
        return True


def place(requests: Requests, deadline_s: float, can_grow: bool | None = None) -> dict[str, Placement]:
    """Reserve room for all roles, or raise PlacementError and hold nothing.

    Learners and the actors that share their GPUs form one group, on as few nodes as possible. Every other bundle has a
    group of its own, so that a single rollout actor can be added or removed. If even the empty cluster is too small, the
    error is raised at once, unless the cluster may grow (an autoscaler): then the wait lasts until the deadline.

    Args:
        deadline_s: seconds to wait for room.
        can_grow: whether nodes may be added; by default `may_grow()`.
    """
    bundles = layout(requests)
    nodes = list(cluster_nodes().values())
    excess = unplaced(bundles, nodes)
    if excess:
        error = shortage(requests, excess, nodes, busy=False)
        if not (may_grow() if can_grow is None else can_grow):
            raise error
        log.warning("waiting up to %.0f s for the cluster to grow:\n%s", deadline_s, error)
    groups = [_reserve(group) for group in _groups(bundles)]
    # Also after an interrupt: what one run reserves and does not use is lost to all others.
    try:
        _wait(requests, groups, deadline_s)
    except BaseException:
        for group in groups:
            remove_placement_group(group.handle)
        raise
    slots = _slot_of_each_actor(groups)
    placements = {}
    for name, role in requests.items():
        placements[name] = Placement(role, tuple(slots[name, index] for index in range(role.actors)))
    return placements


def _slot_of_each_actor(groups: Sequence[_Group]) -> dict[tuple[str, int], tuple[_Group, int]]:
    """Return (group, index of the bundle in it) by (role, index of the actor)."""
    slots = {}
    for group in groups:
        for index, bundle in enumerate(group.bundles):
            for member in bundle.members:
                slots[member] = (group, index)
    return slots


def remove(placements: dict[str, Placement]) -> None:
    """Give back all room. Actors that still run in it are killed by Ray."""
    handles = {}
    for placement in placements.values():
        for group, _ in placement.slots:
            handles[group.handle.id] = group.handle  # actors of several roles may share a group
    for handle in handles.values():
        remove_placement_group(handle)


def cluster_nodes() -> dict[str, Node]:
    """Return the live nodes by their id."""
    # Ray's public state API needs the dashboard, which a private cluster does not start.
    free_resources = ray._private.state.available_resources_per_node()
    nodes = {}
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        free = free_resources.get(node["NodeID"], {})
        nodes[node["NodeID"]] = Node(
            address=node["NodeManagerAddress"],
            accelerator=node["Labels"].get(ACCELERATOR_LABEL),
            gpus=node["Resources"].get("GPU", 0.0),
            cpus=node["Resources"].get("CPU", 0.0),
            free_gpus=free.get("GPU", 0.0),
            free_cpus=free.get("CPU", 0.0),
        )
    return nodes


def may_grow() -> bool:
    """Return whether an autoscaler could add nodes; also true if that is not known.

    Every cluster reports the types of its nodes. If nothing scales it, Ray makes up one type per node, `node_...`.
    """
    status = _internal_kv_get("__autoscaling_status")
    if status:  # written by Ray's older autoscaler
        types = list(json.loads(status).get("autoscaler_report", {}).get("active_nodes") or {})
    else:
        report = get_cluster_status(ray.get_runtime_context().gcs_address)
        types = [node.ray_node_type_name for node in (*report.active_nodes, *report.idle_nodes)]
    return not types or any(not name.startswith("node_") for name in types)


def _groups(bundles: Sequence[Bundle]) -> list[tuple[Bundle, ...]]:
    """Put the bundles of learners into one group, and every other bundle into a group of its own."""
    lockstep: list[Bundle] = []
    singles: list[tuple[Bundle, ...]] = []
    for bundle in bundles:
        if bundle.lockstep:
            lockstep.append(bundle)
        else:
            singles.append((bundle,))
    return [tuple(lockstep), *singles] if lockstep else singles


def _reserve(bundles: tuple[Bundle, ...]) -> _Group:
    """Request a placement group; Ray creates it when there is room."""
    resources, selectors = [], []
    for bundle in bundles:
        resources.append(bundle.resources)
        selectors.append({ACCELERATOR_LABEL: bundle.accelerator} if bundle.accelerator else {})
    # PACK: collectives between ranks of one node are much faster. It spreads them if they do not fit on one.
    handle = placement_group(
        resources,
        strategy="PACK",
        bundle_label_selector=selectors if any(selectors) else None,
    )
    return _Group(handle, bundles)


def _wait(requests: Requests, groups: Sequence[_Group], deadline_s: float) -> None:
    """Wait until Ray has created all groups. Raises PlacementError after `deadline_s`."""
    start = time.monotonic()
    next_warning = start + _PATIENCE_S
    while True:
        waiting = [group for group in groups if _state(group)["state"] != "CREATED"]
        if not waiting:
            return
        now = time.monotonic()
        if now > start + deadline_s:
            raise _explain(requests, waiting, groups)
        if now > next_warning:
            error = _explain(requests, waiting, groups)
            log.warning("still waiting (%.0f of %.0f s):\n%s", now - start, deadline_s, error)
            next_warning = now + _REMIND_S
        time.sleep(_POLL_S)


def _state(group: _Group) -> dict[str, Any]:
    """Return what Ray reports about a group."""
    return placement_group_table(group.handle)


def _explain(requests: Requests, waiting: Sequence[_Group], groups: Sequence[_Group]) -> PlacementError:
    """Return the shortage as it is now; room that this request already has counts as free."""
    nodes = cluster_nodes()
    for group in groups:
        for index, node_id in _state(group)["bundles_to_node_id"].items():
            node = nodes.get(node_id)
            if node is None:
                continue
            own = group.bundles[index]
            nodes[node_id] = replace(node, free_gpus=node.free_gpus + own.gpus, free_cpus=node.free_cpus + own.cpus)
    live = list(nodes.values())
    busy = not unplaced(_bundles_of(groups), live)
    return shortage(requests, _bundles_of(waiting), live, busy)


def _bundles_of(groups: Sequence[_Group]) -> list[Bundle]:
    bundles: list[Bundle] = []
    for group in groups:
        bundles += group.bundles
    return bundles
