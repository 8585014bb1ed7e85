"""The layout of actors on GPUs, whether a cluster has room for it, and the error if it has not. No Ray here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rlaif.config.cluster import RoleResources
from rlaif.errors import ConfigError, PlacementError

Requests = Mapping[str, RoleResources]
"""The resources of each role, by its name under `cluster` in the configuration."""

LOCKSTEP = frozenset({"learner"})
"""Roles whose actors meet in collectives: placed as one group, and never two on one GPU (NCCL refuses that)."""

_UNIT = 10_000
"""Ray counts GPUs in ten-thousandths. In whole numbers of them, three thirds do not add up to more than one GPU."""
_SMALLEST_CPU = 0.001
"""CPUs of a bundle without any: Ray refuses a bundle without resources."""
_NODES_SHOWN = 12
"""Nodes that an error lists; a cluster may have thousands."""
_NEXT_LINE = "\n           "
"""Starts another line of an error's `found`, below its first one."""


@dataclass(frozen=True)
class Bundle:
    """Resources that are reserved together on one node: those of one actor, or of several that share a GPU."""

    members: tuple[tuple[str, int], ...]
    """(role, index of the actor) of each."""
    gpus: float
    cpus: float
    accelerator: str | None

    @property
    def resources(self) -> dict[str, float]:
        """Return the resources by Ray's names."""
        resources = {"CPU": self.cpus or _SMALLEST_CPU}
        if self.gpus:
            resources["GPU"] = self.gpus
        return resources

    @property
    def lockstep(self) -> bool:
        """Return whether a member meets others in collectives."""
        return any(role in LOCKSTEP for role, _ in self.members)


@dataclass(frozen=True)
class Node:
    """The resources of one machine of the cluster, and the part of them that is free now."""

    address: str
    accelerator: str | None
    gpus: float
    cpus: float
    free_gpus: float
    free_cpus: float

    def now(self) -> Node:
        """Return a node that has only what is free now."""
        return replace(self, gpus=self.free_gpus, cpus=self.free_cpus)


def layout(requests: Requests) -> list[Bundle]:
    """Return one bundle per actor, except that actors with fractions of a GPU share as few GPUs as they need.

    Actors of *different* roles meet on a GPU before two of the same role do (a rollout and a learner that take turns),
    and a learner never meets another learner. Raises ConfigError for a fraction above one.
    """
    bundles: list[Bundle] = []
    fractions: dict[str | None, dict[str, RoleResources]] = {}
    for name, role in requests.items():
        if role.gpus > 1 and role.gpus != int(role.gpus):
            raise ConfigError(
                f"cluster.{name}.gpus to be at most 1 or a whole number",
                f"{role.gpus:g}",
                f"Set `cluster.{name}.gpus={math.ceil(role.gpus)}`.",
            )
        if 0 < role.gpus < 1:
            fractions.setdefault(role.accelerator, {})[name] = role
            continue
        for index in range(role.actors):
            bundles.append(Bundle(((name, index),), role.gpus, role.cpus, role.accelerator))
    for accelerator, roles in fractions.items():
        bundles += _share(roles, accelerator)
    return bundles


def _share(roles: dict[str, RoleResources], accelerator: str | None) -> list[Bundle]:
    """Put actors with fractions of a GPU together on as few GPUs of one type as they need."""
    # A GPU per learner, even if fewer GPUs would hold all fractions together.
    ranks = max((role.actors for name, role in roles.items() if name in LOCKSTEP), default=0)
    total = sum(_units(role) * role.actors for role in roles.values())
    gpus = [_SharedGpu() for _ in range(max(math.ceil(total / _UNIT), ranks))]
    # Learners first, since each needs a GPU without another one; then the largest fractions, which fit least easily.
    order = sorted(roles, key=lambda name: (name not in LOCKSTEP, -_units(roles[name])))
    for name in order:
        for index in range(roles[name].actors):
            fitting = [gpu for gpu in gpus if gpu.fits(name, roles[name])]
            if not fitting:
                fitting = [_SharedGpu()]
                gpus += fitting
            emptiest = min(fitting, key=lambda gpu: gpu.actors[name])
            emptiest.add(name, index, roles[name])
    return [gpu.bundle(accelerator, several_learners=ranks > 1) for gpu in gpus if gpu.members]


def _units(role: RoleResources) -> int:
    """Return the fraction of a GPU that an actor needs, in units."""
    return round(role.gpus * _UNIT)


class _SharedGpu:
    """A GPU on which actors with fractions are put."""

    def __init__(self) -> None:
        self.members: list[tuple[str, int]] = []
        self.actors: Counter[str] = Counter()
        """Actors on this GPU by role."""
        self._units = 0
        self._gpus = self._cpus = 0.0

    def fits(self, name: str, role: RoleResources) -> bool:
        """Check whether one more actor of a role fits."""
        if name in LOCKSTEP and self.actors[name]:
            return False
        return self._units + _units(role) <= _UNIT

    def add(self, name: str, index: int, role: RoleResources) -> None:
        """Put an actor on this GPU."""
        self.members.append((name, index))
        self.actors[name] += 1
        self._units += _units(role)
        self._gpus += role.gpus
        self._cpus += role.cpus

    def bundle(self, accelerator: str | None, several_learners: bool) -> Bundle:
        """Return the bundle of the actors on this GPU.

        A GPU with one of several learners is reserved whole: Ray might put the fractions of two bundles on one GPU.
        """
        bundle = Bundle(tuple(self.members), round(self._gpus, 4), self._cpus, accelerator)
        return replace(bundle, gpus=1.0) if several_learners and bundle.lockstep else bundle


def unplaced(bundles: Iterable[Bundle], nodes: Sequence[Node]) -> list[Bundle]:
    """Return the bundles that do not fit on nodes that have nothing else, by the better of two greedy packings.

    One puts each bundle on the fullest node that has room (best fit), the other on the emptiest (worst fit).
    """
    # Greedy packing works best with the demanding bundles first.
    ordered = sorted(bundles, key=lambda bundle: (bundle.accelerator is None, -bundle.gpus, -bundle.cpus))
    best_fit, worst_fit = _greedy(ordered, nodes, sign=1), _greedy(ordered, nodes, sign=-1)
    return min(best_fit, worst_fit, key=len)


def _greedy(bundles: Sequence[Bundle], nodes: Sequence[Node], sign: int) -> list[Bundle]:
    """Put each bundle on the fullest (`sign` 1) or emptiest (-1) node with room, and return those without a place."""
    slots, cpus = [], []
    for node in nodes:
        slots.append(_slots(node.gpus))
        cpus.append(node.cpus)
    unplaced_bundles = []
    for bundle in bundles:
        remaining: dict[int, list[int]] = {}
        for index, node in enumerate(nodes):
            if bundle.accelerator not in (None, node.accelerator) or cpus[index] < bundle.cpus:
                continue
            rest = _take(slots[index], bundle.gpus)
            if rest is not None:
                remaining[index] = rest
        if not remaining:
            unplaced_bundles.append(bundle)
            continue
        best = min(remaining, key=lambda index: (sign * sum(slots[index]), sign * cpus[index]))
        cpus[best] -= bundle.cpus
        slots[best] = remaining[best]
    return unplaced_bundles


def _slots(gpus: float) -> list[int]:
    """Return the free units on each GPU of a node.

    Ray does not say on which GPUs the units in use are: the best case, as few as possible, is assumed.
    """
    whole, rest = divmod(round(gpus * _UNIT), _UNIT)
    slots = [_UNIT] * whole
    if rest:
        slots.append(rest)
    return slots


def _take(slots: list[int], gpus: float) -> list[int] | None:
    """Return the slots without `gpus` whole GPUs, or without one fraction of the fullest GPU that has it.

    None if there is no room.
    """
    if gpus >= 1:
        whole = slots.count(_UNIT)
        if whole < gpus:
            return None
        used = [slot for slot in slots if slot != _UNIT]
        return used + [_UNIT] * (whole - int(gpus))
    units = round(gpus * _UNIT)
    if not units:
        return slots
    fitting = [slot for slot in slots if slot >= units]
    if not fitting:
        return None
    fullest = min(fitting)
    rest = list(slots)
    rest.remove(fullest)
    return [*rest, fullest - units]


def shortage(requests: Requests, waiting: Sequence[Bundle], nodes: Sequence[Node], busy: bool) -> PlacementError:
    """Return the error that says which role waits for what, what the cluster has, and the smallest changes that fit.

    Args:
        busy: the cluster has enough room for all of it, but others use a part of the cluster now.
    """
    needs = [f"{name}: {role.actors} x ({_needs(role)})" for name, role in requests.items()]
    counts = _actors_of(waiting)
    waits = [f"{name} ({count} of {requests[name].actors} actors)" for name, count in counts.items()]
    reason = "others use a part of the cluster" if busy else "the whole cluster is too small"
    lines = [f"no room for {', '.join(waits)}: {reason}", *map(_describe, nodes[:_NODES_SHOWN])]
    if len(nodes) > _NODES_SHOWN:
        lines.append(f"and {len(nodes) - _NODES_SHOWN} more nodes")
    usable = [node.now() for node in nodes] if busy else nodes
    changes = list(_changes(requests, counts, usable))
    rest = "wait for other jobs and raise cluster.deadline_s" if busy else f"add {_missing(waiting)}"
    if changes:
        fix = f"Set {', or '.join([*changes, rest])}."
    elif busy:
        fix = "Wait for other jobs and raise cluster.deadline_s."
    else:
        fix = f"Add {_missing(waiting)}."
    return PlacementError(f"room for {'; '.join(needs)}", _NEXT_LINE.join(lines), fix)


def _actors_of(bundles: Iterable[Bundle]) -> Counter[str]:
    """Count the actors of each role in bundles."""
    counts: Counter[str] = Counter()
    for bundle in bundles:
        for role, _ in bundle.members:
            counts[role] += 1
    return counts


def _needs(role: RoleResources) -> str:
    """Describe what one actor of a role needs."""
    cpus = f"{role.cpus:g} CPU"
    if role.gpus:
        gpus = f"{role.gpus:g} GPU {role.accelerator or ''}".strip()
        return f"{gpus}, {cpus}"
    return f"{cpus} on a node with {role.accelerator}" if role.accelerator else cpus


def _describe(node: Node) -> str:
    """Describe a node and what of it is free."""
    return (
        f"node {node.address} ({node.accelerator or 'no accelerator'}): {node.gpus:g} GPU ({node.free_gpus:g} free), "
        f"{node.cpus:g} CPU ({node.free_cpus:g} free)"
    )


def _missing(waiting: Sequence[Bundle]) -> str:
    """Describe the room that waiting bundles need."""
    counts = Counter((bundle.gpus, bundle.cpus, bundle.accelerator) for bundle in waiting)
    kinds = []
    for (gpus, cpus, accelerator), count in counts.items():
        needs = _needs(RoleResources(gpus=gpus, cpus=cpus, accelerator=accelerator))
        kinds.append(f"{count} x ({needs})")
    return f"room for {', '.join(kinds)}"


def _changes(requests: Requests, waiting: Iterable[str], nodes: Sequence[Node]) -> Iterator[str]:
    """Yield overrides that make everything fit, one of each kind per waiting role; every one has been tried."""
    accelerators = sorted({node.accelerator for node in nodes if node.accelerator})
    for name in waiting:
        role = requests[name]
        for kind in _alternatives(role, accelerators):
            for fields in kind:
                if not unplaced(layout({**requests, name: role.model_copy(update=fields)}), nodes):
                    yield _overrides(name, fields)
                    break
    yield from _sharing(requests, nodes)


def _overrides(name: str, fields: Mapping[str, object]) -> str:
    """Write changes to one role as overrides of the command line."""
    words = []
    for key, value in fields.items():
        words.append(f"cluster.{name}.{key}={'null' if value is None else value}")
    return " ".join(words)


def _sharing(requests: Requests, nodes: Sequence[Node]) -> Iterator[str]:
    """Yield the largest fraction of a GPU with which all roles that use GPUs fit, if there are several such roles."""
    users = {name: role for name, role in requests.items() if role.gpus >= 1}
    if len(users) < 2:
        return
    for share in (0.5, 0.33, 0.25):
        smaller = {name: role.model_copy(update={"gpus": share}) for name, role in users.items()}
        if not unplaced(layout({**requests, **smaller}), nodes):
            yield " ".join(f"cluster.{name}.gpus={share}" for name in users)
            return


def _alternatives(role: RoleResources, accelerators: list[str]) -> Iterator[Iterator[dict]]:
    """Yield kinds of change to one role, each from the smallest change on."""
    fewer_actors = range(role.actors - 1, 0, -1)
    yield ({"actors": count} for count in fewer_actors)
    if role.accelerator:
        others = [other for other in [*accelerators, None] if other != role.accelerator]
        yield ({"accelerator": other} for other in others)
    fewer_cpus = range(math.ceil(role.cpus) - 1, 0, -1)
    yield ({"cpus": float(count)} for count in fewer_cpus)
