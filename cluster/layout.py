"""Which actors share which GPU, whether a cluster holds them, and what to say when it does not. No Ray in here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rlaif.config.cluster import RoleResources
from rlaif.errors import ConfigError, PlacementError

Requests = Mapping[str, RoleResources]
"""What each role asks for, by its name under `cluster` in the configuration."""

LOCKSTEP = frozenset({"learner"})
"""Roles whose actors meet in collectives: placed as one group, and never two on one GPU (NCCL refuses that)."""

_UNIT = 10_000
"""Ray counts GPUs in ten-thousandths; whole numbers keep thirds from adding up to more than one."""
_SMALLEST_CPU = 0.001
_NODES_SHOWN = 12


@dataclass(frozen=True)
class Bundle:
    """Resources reserved together on one node: of one actor, or of several that share a GPU."""

    members: tuple[tuple[str, int], ...]
    """(role, index of the actor)."""
    gpus: float
    cpus: float
    accelerator: str | None

    @property
    def resources(self) -> dict[str, float]:
        return {"CPU": self.cpus or _SMALLEST_CPU} | ({"GPU": self.gpus} if self.gpus else {})

    @property
    def lockstep(self) -> bool:
        return any(role in LOCKSTEP for role, _ in self.members)


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster has, and what of it is not reserved now."""

    address: str
    accelerator: str | None
    gpus: float
    cpus: float
    free_gpus: float
    free_cpus: float

    def now(self) -> Node:
        """A node that has only what is free."""
        return replace(self, gpus=self.free_gpus, cpus=self.free_cpus)


def layout(requests: Requests) -> list[Bundle]:
    """One bundle per actor, except that actors with fractions of a GPU are put together on as few GPUs as they need.

    Actors of *different* roles meet on a GPU before two of the same role do (a rollout and a learner that take turns),
    and a learner never meets another learner.
    """
    bundles: list[Bundle] = []
    shared: dict[str | None, dict[str, RoleResources]] = {}
    for name, role in requests.items():
        if role.gpus > 1 and role.gpus != int(role.gpus):
            raise ConfigError(
                f"cluster.{name}.gpus to be at most 1 or a whole number",
                f"{role.gpus:g}",
                f"Set cluster.{name}.gpus={math.ceil(role.gpus)}",
            )
        if 0 < role.gpus < 1:
            shared.setdefault(role.accelerator, {})[name] = role
        else:
            single = [Bundle(((name, i),), role.gpus, role.cpus, role.accelerator) for i in range(role.actors)]
            bundles += single
    return bundles + [bundle for accelerator, roles in shared.items() for bundle in _share(roles, accelerator)]


def _share(roles: dict[str, RoleResources], accelerator: str | None) -> list[Bundle]:
    units = {name: round(role.gpus * _UNIT) for name, role in roles.items()}
    ranks = max((roles[name].actors for name in roles if name in LOCKSTEP), default=0)
    needed = math.ceil(sum(units[name] * role.actors for name, role in roles.items()) / _UNIT)
    gpus: list[list[tuple[str, int]]] = [[] for _ in range(max(needed, ranks))]
    for name in sorted(roles, key=lambda name: (name not in LOCKSTEP, -units[name])):
        for index in range(roles[name].actors):
            fitting = [gpu for gpu in gpus if _fits(gpu, name, units)]
            if not fitting:
                fitting = [[]]
                gpus += fitting
            min(fitting, key=lambda gpu: _count(gpu, name)).append((name, index))
    return [_shared_bundle(gpu, roles, accelerator, whole=ranks > 1) for gpu in gpus if gpu]


def _count(gpu: list[tuple[str, int]], name: str) -> int:
    return sum(member == name for member, _ in gpu)


def _fits(gpu: list[tuple[str, int]], name: str, units: dict[str, int]) -> bool:
    used = sum(units[member] for member, _ in gpu)
    return used + units[name] <= _UNIT and not (name in LOCKSTEP and _count(gpu, name))


def _shared_bundle(
    members: list[tuple[str, int]], roles: dict[str, RoleResources], accelerator: str | None, whole: bool
) -> Bundle:
    """A GPU with one of several learners is reserved whole: Ray might put two fractions on the same one."""
    gpus = round(sum(roles[name].gpus for name, _ in members), 4)
    bundle = Bundle(tuple(members), gpus, sum(roles[name].cpus for name, _ in members), accelerator)
    return replace(bundle, gpus=1.0) if whole and bundle.lockstep else bundle


def unplaced(bundles: Iterable[Bundle], nodes: Sequence[Node]) -> list[Bundle]:
    """Bundles that find no room on nodes of which all is theirs; the better of two greedy packings (best and worst fit)."""
    ordered = sorted(bundles, key=lambda b: (b.accelerator is None, -b.gpus, -b.cpus))
    return min((_greedy(ordered, nodes, sign) for sign in (1, -1)), key=len)


def _greedy(bundles: Sequence[Bundle], nodes: Sequence[Node], sign: int) -> list[Bundle]:
    slots = [_slots(node.gpus) for node in nodes]
    cpus = [node.cpus for node in nodes]
    left = []
    for bundle in bundles:
        fitting = [
            i for i, node in enumerate(nodes) if bundle.accelerator in (None, node.accelerator)
            and cpus[i] >= bundle.cpus and _take(slots[i], bundle.gpus) is not None
        ]  # fmt: skip
        if not fitting:
            left.append(bundle)
            continue
        best = min(fitting, key=lambda i: (sign * sum(slots[i]), sign * cpus[i]))
        cpus[best] -= bundle.cpus
        slots[best] = _take(slots[best], bundle.gpus)
    return left


def _slots(gpus: float) -> list[int]:
    """Units left on each GPU of a node (of a node in use it is not known which; the best case is assumed)."""
    whole, rest = divmod(round(gpus * _UNIT), _UNIT)
    return [_UNIT] * whole + ([rest] if rest else [])


def _take(slots: list[int], gpus: float) -> list[int] | None:
    """What is left after `gpus` whole GPUs, or one fraction of the fullest that has it; None where there is no room."""
    if gpus >= 1:
        free = [slot for slot in slots if slot == _UNIT]
        used = [slot for slot in slots if slot != _UNIT]
        return used + free[int(gpus) :] if len(free) >= gpus else None
    units = round(gpus * _UNIT)
    if not units:
        return slots
    fitting = [slot for slot in slots if slot >= units]
    if not fitting:
        return None
    rest = list(slots)
    rest.remove(min(fitting))
    return [*rest, min(fitting) - units]


def shortage(requests: Requests, waiting: Sequence[Bundle], nodes: Sequence[Node], busy: bool) -> PlacementError:
    """Says which role waits for what, what the cluster has, and the smallest changes that would fit.

    Args:
        busy: the cluster could hold it all, but others hold a part of it now.
    """
    counts = Counter(role for bundle in waiting for role, _ in bundle.members)
    waits = [f"{name} ({count} of {requests[name].actors} actors)" for name, count in counts.items()]
    shown = [_describe(node) for node in nodes[:_NODES_SHOWN]]
    if len(nodes) > _NODES_SHOWN:
        shown.append(f"and {len(nodes) - _NODES_SHOWN} more nodes")
    why = "others use a part of the cluster" if busy else "the whole cluster is too small"
    changes = list(_changes(requests, counts, [node.now() for node in nodes] if busy else nodes))
    last = "wait for other jobs and raise cluster.deadline_s" if busy else f"add {_missing(waiting)}"
    return PlacementError(
        "room for " + "; ".join(f"{name}: {role.actors} x ({_needs(role)})" for name, role in requests.items()),
        "\n           ".join([f"no room for {', '.join(waits)}: {why}", *shown]),
        ("Set " if changes else "") + ", or ".join([*changes, last]),
    )


def _needs(role: RoleResources) -> str:
    gpu = f"{role.gpus:g} GPU {role.accelerator or ''}".strip() + ", " if role.gpus else ""
    return f"{gpu}{role.cpus:g} CPU" + (
        f" on a node with {role.accelerator}" if role.accelerator and not role.gpus else ""
    )


def _describe(node: Node) -> str:
    return (
        f"node {node.address} ({node.accelerator or 'no accelerator'}): {node.gpus:g} GPU ({node.free_gpus:g} free), "
        f"{node.cpus:g} CPU ({node.free_cpus:g} free)"
    )


def _missing(waiting: Sequence[Bundle]) -> str:
    kinds = Counter((bundle.gpus, bundle.cpus, bundle.accelerator) for bundle in waiting)
    return "room for " + ", ".join(
        f"{count} x ({_needs(RoleResources(gpus=gpus, cpus=cpus, accelerator=accelerator))})"
        for (gpus, cpus, accelerator), count in kinds.items()
    )


def _changes(requests: Requests, waiting: Iterable[str], nodes: Sequence[Node]) -> Iterator[str]:
    """Overrides that make everything fit, one kind of each per waiting role; every one was tried."""
    for name in waiting:
        role = requests[name]
        for options in _alternatives(role, sorted({node.accelerator for node in nodes if node.accelerator})):
            for fields in options:
                if not unplaced(layout({**requests, name: role.model_copy(update=fields)}), nodes):
                    yield " ".join(f"cluster.{name}.{key}={'null' if v is None else v}" for key, v in fields.items())
                    break
    for share in (0.5, 0.33, 0.25):
        users = {name: role for name, role in requests.items() if role.gpus >= 1}
        shared = {name: role.model_copy(update={"gpus": share}) for name, role in users.items()}
        if len(users) > 1 and not unplaced(layout({**requests, **shared}), nodes):
            yield " ".join(f"cluster.{name}.gpus={share}" for name in users)
            return


def _alternatives(role: RoleResources, accelerators: list[str]) -> Iterator[Iterator[dict]]:
    """Kinds of change to one role, each from the smallest change on."""
    yield ({"actors": count} for count in range(role.actors - 1, 0, -1))
    if role.accelerator:
        yield ({"accelerator": other} for other in [*accelerators, None] if other != role.accelerator)
    yield ({"cpus": float(count)} for count in range(math.ceil(role.cpus) - 1, 0, -1))
