"""A new start of a stage that does not lose its earlier results.

    <run>/restart-<stage>/            what the new start writes until it has a checkpoint: checkpoints/, samples/, eval/,
                                      configs/ and its rows of metrics.jsonl
         /aside/<time>-<stage>/       the earlier results, after they have been replaced; nothing removes them

Until the new start has a checkpoint, the earlier results stay at their place, and an interrupted start costs nothing:
`--resume` continues with them. With its first checkpoint the new start replaces them (`promote`). That takes several
steps; `moving.json` records them, so that the next process completes what a killed one began.
"""

from __future__ import annotations

import json
import logging
import time

from rlaif.io.rundir import WANDB_IDS, RunDir
from rlaif.io.storage import Location, replace_file

log = logging.getLogger(__name__)

ASIDE = "aside"
EXPORTED = "exported.json"
"""In a stage's folder: the iteration after which its export was written. It is written when the stage is complete."""
_JOURNAL = "moving.json"


class Restart:
    """A new start of one stage beside its earlier results."""

    def __init__(self, directory: RunDir, stage: str):
        self.directory, self.stage = directory, stage
        self.folder: Location = directory.location / directory.restart_folder(stage)

    @property
    def checkpoints(self) -> Location:
        """Return the folder of the new start's checkpoints."""
        return self.folder / "checkpoints"

    def begin(self) -> None:
        """Redirect what the stage writes to the folder of the new start, which is emptied first."""
        self.discard()
        self.directory.restarting.add(self.stage)

    def discard(self) -> None:
        """Delete a new start that has no checkpoint."""
        self.directory.restarting.discard(self.stage)
        self.folder.remove()
        self._mirror(self.directory.restart_folder(self.stage)).remove()

    @property
    def moving(self) -> bool:
        """Return whether an earlier process ended while it moved results."""
        return (self.folder / _JOURNAL).exists()

    def promote(self) -> Location:
        """Move the earlier results aside and the new ones into their place; return the folder of the earlier ones.

        Every step may be repeated: after a kill, another call completes what remains.
        """
        journal = self._journal()
        aside = self.directory.location / ASIDE / journal["aside"]
        for name in self._items():
            place = self.directory.stage(self.stage) / name
            # Recorded at once: if this step were repeated, it would move the new results aside.
            if name not in journal["moved"]:
                place.move_to(aside / name)
                journal["moved"].append(name)
                self._write_journal(journal)
            (self.folder / name).move_to(place)
            self._refresh_mirror(name)
        self._split_metrics(aside, journal)
        self._take_wandb_id()
        self.directory.sync()
        # As long as the journal exists, the steps above are repeated, and they need the new rows of metrics. So it is
        # deleted before the rest of the folder, whose files are deleted in no particular order.
        (self.folder / _JOURNAL).remove()
        self.discard()
        return aside

    def _items(self) -> list[str]:
        """Return what a stage has of its own, by its path below the stage's folder.

        Samples and eval belong to the main stage.
        """
        return ["checkpoints", "export", EXPORTED, "configs", *self.directory.own_files(self.stage)]

    def _take_wandb_id(self) -> None:
        """Record the W&B run of the new start as the one of the stage."""
        restarted = self.directory.read_json(f"{self.directory.restart_folder(self.stage)}/{WANDB_IDS}")
        if restarted:
            earlier = self.directory.read_json(WANDB_IDS) or {}
            self.directory.write_json(WANDB_IDS, earlier | restarted)

    def _journal(self) -> dict:
        """Return the journal of an interrupted `promote`, or begin a new one."""
        if self.moving:
            return json.loads((self.folder / _JOURNAL).read())
        name, number = f"{time.strftime('%Y%m%d-%H%M%S')}-{self.stage}", 1
        # Two starts within a second would share a name.
        while (self.directory.location / ASIDE / name).exists():
            number += 1
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{self.stage}-{number}"
        journal = {"aside": name, "moved": []}
        self._write_journal(journal)
        return journal

    def _write_journal(self, journal: dict) -> None:
        (self.folder / _JOURNAL).write(json.dumps(journal).encode())

    def _split_metrics(self, aside: Location, journal: dict) -> None:
        """Move the stage's earlier rows aside and append the new ones to those of the other stages."""
        metrics, restarted = self.directory.metrics, self.folder / "metrics.jsonl"
        lines = metrics.read_bytes().splitlines(keepends=True) if metrics.exists() else []
        own, others = [], []
        for line in lines:
            (own if _stage_of(line) == self.stage else others).append(line)
        if "metrics" not in journal["moved"]:
            (aside / "metrics.jsonl").write(b"".join(own))
            journal["moved"].append("metrics")
            self._write_journal(journal)
        # The stage's rows in metrics.jsonl are old ones, or new ones that an interrupted call has already appended.
        rows = restarted.read() if restarted.exists() else b""
        replace_file(metrics, b"".join(others) + rows)

    def _mirror(self, relative: str) -> Location:
        """Return the same file or folder in this node's mirror of a bucket; on a file system it is the original."""
        return Location(str(self.directory.path)) / relative

    def _refresh_mirror(self, name: str) -> None:
        """Move the stage's own files in the mirror of a bucket too."""
        if self.directory.location.local or name not in self.directory.own_files(self.stage):
            return
        new = self._mirror(self.directory.restart_folder(self.stage)) / name
        self._mirror(name).remove()
        new.move_to(self._mirror(name))


def _stage_of(line: bytes) -> str | None:
    """Return the stage of a row of metrics, None for a line that is no row."""
    try:
        return json.loads(line).get("stage")
    except (ValueError, AttributeError):
        return None
