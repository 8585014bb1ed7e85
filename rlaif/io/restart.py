"""Starting a stage over without losing what it made before.

    <run>/restart-<stage>/            what the new start writes until it has a checkpoint: checkpoints/, samples/, eval/,
                                      configs/ and its rows of metrics.jsonl
         /aside/<time>-<stage>/       what the stage had made before, once it has been replaced; nothing removes it

Until the new start has a checkpoint, the earlier results stay where they are, and an interrupted start costs nothing:
`--resume` goes on with them. With its first checkpoint the new start takes their place (`promote`). That takes several
steps; `moving.json` records them, so that a process that was killed in between is completed by the next one.
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
"""In a stage's folder: the iteration that its export was made after, written when nothing is left to do."""
_JOURNAL = "moving.json"


class Restart:
    """A new start of one stage beside its earlier results."""

    def __init__(self, directory: RunDir, stage: str):
        self.directory, self.stage = directory, stage
        self.folder: Location = directory.location / directory.restart_folder(stage)

    @property
    def checkpoints(self) -> Location:
        return self.folder / "checkpoints"

    def begin(self) -> None:
        """Send what the stage writes from now on to the folder of the new start, which is emptied first."""
        self.discard()
        self.directory.restarting.add(self.stage)

    def discard(self) -> None:
        """Forget a new start that has no checkpoint."""
        self.directory.restarting.discard(self.stage)
        self.folder.remove()
        self._mirror(self.directory.restart_folder(self.stage)).remove()

    @property
    def moving(self) -> bool:
        """Whether an earlier process ended while results were being moved."""
        return (self.folder / _JOURNAL).exists()

    def promote(self) -> Location:
        """Move the earlier results aside and the new ones into their place; return where the earlier ones are now.

        Every step may be repeated: a call after a kill completes what is left.
        """
        journal = self._journal()
        aside = self.directory.location / ASIDE / journal["aside"]
        for name in self._items():
            place, new = self._place(name), self.folder / name
            if name not in journal["moved"]:
                place.move_to(aside / name)
                journal["moved"].append(name)
                self._write_journal(journal)
            new.move_to(place)
            self._refresh_mirror(name)
        self._split_metrics(aside, journal)
        if new := self.directory.read_json(f"{self.directory.restart_folder(self.stage)}/{WANDB_IDS}"):
            self.directory.write_json(WANDB_IDS, (self.directory.read_json(WANDB_IDS) or {}) | new)
        self.directory.sync()
        # While the journal is there, the steps above are repeated, and they need the new rows of metrics. So it goes
        # before the rest of the folder, whose files are deleted in no particular order.
        (self.folder / _JOURNAL).remove()
        self.discard()
        return aside

    def _items(self) -> list[str]:
        """What a stage has of its own, by its path below the stage's folder. Samples and eval belong to the main stage."""
        return ["checkpoints", "export", EXPORTED, "configs", *self.directory.own_files(self.stage)]

    def _place(self, name: str) -> Location:
        return self.directory.stage(self.stage) / name

    def _journal(self) -> dict:
        if self.moving:
            return json.loads((self.folder / _JOURNAL).read())
        name, number = f"{time.strftime('%Y%m%d-%H%M%S')}-{self.stage}", 1
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
        metrics, new = self.directory.metrics, self.folder / "metrics.jsonl"
        lines = metrics.read_bytes().splitlines(keepends=True) if metrics.exists() else []
        own = [line for line in lines if _stage_of(line) == self.stage]
        if "metrics" not in journal["moved"]:
            (aside / "metrics.jsonl").write(b"".join(own))
            journal["moved"].append("metrics")
            self._write_journal(journal)
        others = [line for line in lines if _stage_of(line) != self.stage]
        # rows of the stage that are there now are old ones, or new ones that an interrupted call has already appended
        replace_file(metrics, b"".join(others) + (new.read() if new.exists() else b""))

    def _mirror(self, relative: str) -> Location:
        """The same file or folder in this node's mirror of a bucket; on a file system it is the original."""
        return Location(str(self.directory.path)) / relative

    def _refresh_mirror(self, name: str) -> None:
        if self.directory.location.local or name not in self.directory.own_files(self.stage):
            return
        new = self._mirror(self.directory.restart_folder(self.stage)) / name
        self._mirror(name).remove()
        new.move_to(self._mirror(name))


def _stage_of(line: bytes) -> str | None:
    try:
        return json.loads(line).get("stage")
    except (ValueError, AttributeError):
        return None
