"""List the state of the PPO loop's driver by name: state that a checkpoint restores, and state that needs no restoring.

If a variable of `ppo.train`, or an attribute of any object that it refers to, is on neither list, the test that walks
them fails (tests/rlaif/stages/test_ppo.py): add the name to one of the lists, with what a resume does about it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from statewalk import leaves, same

RESTORED = {
    r"maker\.next_iteration": "the next iteration: the checkpoint's number",
    r"best\.": "the best evaluation so far",
    r"maker\.ledger\.": "what became of every sample",
    r"gate\.probes\.": "the texts of the parity gate, sampled once per run",
    r"workers\.rollouts\.fleet\.version": "published again from the restored weights",
    r"workers\.rollouts\.fleet\._weights\.(manifest\.|timeout)": "the same, with the checksum of every tensor",
}
"""State that is equal after a resume, and different from its value when the run began."""

SAME = {
    r"(config|ppo)\.|run\.(topology\.)?config\.": "the user's configuration",
    r"prompts\.|held_out\.|deck\.": "read from the dataset; what a deck leaves "
    "out, which none does here, is restored too (test_deck.py)",
    r"gate\.(prompt_id|_prompts\.|_seed)": "the first prompt that can be answered",
    r"run\.(directory\.|within$)|checkpoints\.": "paths",
    r"workers\.(learners\.timeout_s|rewards\._limits\.)": "from the configuration",
    r"workers\.(weight_sync\.)?(deadline_s|options\.)|gate\.(limit|every|timeout|sampling\.)": "from the configuration",
    r"tracker\.(run_dir\.|stage|_bar\.(desc|_stream))": "paths and names",
}
"""State that is equal in every run of one configuration, except for its length and the names of its cluster."""

CHANGED = r".*\bppo\.iterations"
"""The resumed run of the test has one iteration more."""

MADE_ANEW = {
    r"start|newest(\.|$)|first": "how this process began",
    r"iteration|done|due|batch\.|metrics\.|driver\.": "of one iteration; written to "
    "metrics.jsonl, samples/ and the checkpoint",
    r"gate\._before(\.|$)": "log-probs at the last check, to tell two causes "
    "apart in an error; the first check makes them",
    r"tracker\._(synced|bar\.|mirror)": "progress on the screen; the W&B run's id is in wandb_id.json",
    r"workers\.weight_sync\.apply_s|checkpoint_s|maker\._reward_busy_s": "durations for the next row of metrics",
    r"workers\.(learners\._joined|weight_sync\.(rerouted|_unreached))(\.|$)": "of this process's transports; "
    "every version is delivered anew",
    r"maker\._pending(\.|$)": "of batches in flight: the ledger lists them as issued, and a resume requests them again",
    r"run\.places(\.|$)": "where the rows that this process has read are",
    r"gate\._unusable(\.|$)": "prompts that the gate has tried in vain, for an error",
    r"maker\._reissued|workers\.rollouts\.(reissued|fleet\.dead(\.|$))": "of this process's actors; the "
    "ledger counts the run's reissued samples",
    r"workers\.rewards\.(_slots|replaced)(\.|$)": "this process's reward actors; a score depends on its answer alone",
    r"run\.stopper\.": "signals that this process has received",
    r"workers\.frames\.": "probed and decoded again where they are needed",
    r"run\.(topology\.)?session\.": "this process's cluster",
    r"run\.topology\._(placements|store|features|rollouts|group|rewards)(\.|$)": "this process's actors",
}
"""State that is not in a checkpoint, and why."""


def watch(patch: Any, *functions: tuple[Any, str]) -> dict[str, list[dict[str, Any]]]:
    """Return tables of all state that a caller of these functions refers to, at every call.

    Args:
        functions: (owner, name) of functions of modules, or methods of classes.
    """
    tables_by_name: dict[str, list[dict[str, Any]]] = {name: [] for _, name in functions}

    def spy(usual: Callable, tables: list) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            variables = dict(sys._getframe(1).f_locals)
            # An object that is reached twice is listed under the first path: `workers` comes first.
            variables = {"workers": variables.pop("workers"), **variables}
            tables.append(dict(leaves(variables)))
            return usual(*args, **kwargs)

        return call

    for owner, name in functions:
        patch.setattr(owner, name, spy(getattr(owner, name), tables_by_name[name]))
    return tables_by_name


def unlisted(table: Mapping[str, Any]) -> list[str]:
    """Return the paths that are on no list."""
    listed = RESTORED | SAME | MADE_ANEW
    return [path for path in table if not _on(path, listed)]


def lost(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the paths that a resume should have restored and did not."""
    paths = [path for path in before.keys() | after.keys() if _on(path, RESTORED) or _on(path, SAME)]
    paths = [path for path in paths if not _on(path, MADE_ANEW) and not re.fullmatch(CHANGED, path)]
    return sorted(p for p in paths if p not in before or p not in after or not same(before[p], after[p]))


def unmoved(began: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Return entries of RESTORED whose state has not changed since the run began: comparing it would show nothing."""
    return [pattern for pattern in RESTORED if not _moved(pattern, began, before)]


def _moved(pattern: str, began: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    paths = [path for path in began.keys() | before.keys() if re.match(pattern, path)]
    return any(p not in began or p not in before or not same(began[p], before[p]) for p in paths)


def _on(path: str, names: Mapping[str, str]) -> bool:
    return any(re.match(pattern, path) for pattern in names)
