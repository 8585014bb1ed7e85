"""Stages that start over lose no results, even if the new start ends at any step."""

from __future__ import annotations

import itertools
import json
import uuid
from pathlib import Path

import pytest

from cluster.checkpoint import Checkpoints
from rlaif.config.schema import Config
from rlaif.errors import ConfigError
from rlaif.io.rundir import RunDir
from rlaif.io.storage import Location
from rlaif.stages.run.run import Run, advice
from rlaif.stages.run.tracker import _run_id


class KilledError(BaseException):
    """Marks the end of the process: none of its code runs afterwards."""


class Process:
    """Makes the calls of a stage in one process, without actors."""

    def __init__(self, storage: str, stage: str, start: str = "new"):
        self.config, self.stage = Config(name="run", storage=storage), stage
        self.directory = RunDir(storage, "run")
        self.directory.prepare()
        self.run = Run(self.config, self.directory, None, None)
        self.checkpoints = self.run.checkpoints(stage, 2)
        self.newest = self.run.starting_point(stage, self.checkpoints, start, {"stage": stage})

    @property
    def number(self) -> int | None:
        """Return the content of the checkpoint from which it continues."""
        return self.newest and json.loads((self.checkpoints.load(self.newest) / "state").read_text())

    def iterate(self, first: int, last: int, number: int, save: bool = True) -> None:
        """Write rows and samples of iterations, marked by `number`, and a checkpoint after the last one."""
        self.directory.cut_back(self.stage, first - 1)
        for iteration in range(first, last + 1):
            self.directory.append_metrics({"stage": self.stage, "iteration": iteration, "loss/a": number})
            if self.stage == "ppo":
                self.directory.write_samples(iteration, [{"prompt_id": "p", "number": number}])
                self.directory.write_eval("ppo", {"rows": [number]})
        if save:
            self.save(last, number)

    def save(self, iteration: int, number: int) -> None:
        """Save a checkpoint with a number in it."""
        self.directory.sync()
        meta = {"identity": {"stage": self.stage}, **self.run.record()}
        self.checkpoints.save(iteration, lambda folder: (folder / "state").write_text(str(number)), meta)
        self.run.saved(self.stage, self.checkpoints)

    def export(self, number: int) -> None:
        """Write an export with a number in it."""
        (self.directory.export(self.stage) / "weights").write(str(number).encode())


@pytest.fixture(params=["folder", "bucket"])
def storage(request, tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return str(tmp_path / "runs") if request.param == "folder" else f"fsspec+memory:///{uuid.uuid4().hex}"


def finished(storage: str, stage: str) -> None:
    """Create a run whose stage has completed three iterations with the number 1, beside rows of another stage."""
    process = Process(storage, stage)
    process.directory.append_metrics({"stage": "label", "iteration": 1, "loss/a": 0})
    process.iterate(1, 3, 1)
    process.export(1)


def numbers(folder: Location, stage: str) -> dict:
    """Return the numbers that mark a stage's results in a folder."""
    metrics = folder / "metrics.jsonl"
    lines = metrics.read().splitlines() if metrics.exists() else []
    rows = [json.loads(line) for line in lines]
    samples = []
    for name in (folder / "samples").children():
        row = json.loads((folder / "samples" / name).read())
        samples.append(row["number"])
    own = folder / stage if (folder / stage).exists() else folder
    newest = Checkpoints(own / "checkpoints").latest()
    state = newest and json.loads((newest.location / "state").read())
    export = own / "export" / "weights"
    evaluation = folder / "eval" / "ppo.json"
    return {
        "rows": [row["loss/a"] for row in rows if row["stage"] == stage],
        "samples": samples,
        "checkpoint": state,
        "export": json.loads(export.read()) if export.exists() else None,
        "eval": json.loads(evaluation.read())["rows"] if evaluation.exists() else None,
    }


def asides(storage: str) -> list[Location]:
    """Return the folders of results that have been set aside."""
    folder = RunDir(storage, "run").location / "aside"
    return [folder / name for name in folder.children()]


def marked(stage: str, number: int, count: int, export: bool = True) -> dict:
    """Return the result of `numbers` for `count` iterations with one number."""
    main = stage == "ppo"
    return {
        "rows": [number] * count,
        "samples": [number] * count * main,
        "checkpoint": number,
        "export": number if export else None,
        "eval": [number] if main else None,
    }


@pytest.mark.parametrize("stage", ["ppo", "reward"])
def test_the_first_new_checkpoint_moves_earlier_results_aside(storage, stage, caplog):
    finished(storage, stage)
    process = Process(storage, stage, "fresh")
    place = process.directory.location
    assert process.newest is None and "starts over" in caplog.text
    process.iterate(1, 2, 2, save=False)
    assert numbers(place, stage) == marked(stage, 1, 3), "the earlier results are untouched until then"
    process.save(2, 2)
    (aside,) = asides(storage)
    assert str(aside) in caplog.text and aside.name.endswith(f"-{stage}")
    assert numbers(aside, stage) == marked(stage, 1, 3)
    assert numbers(place, stage) == marked(stage, 2, 2, export=False)
    process.iterate(3, 4, 2)
    process.iterate(5, 6, 2)
    assert numbers(aside, stage) == marked(stage, 1, 3)  # no later save removes it
    process.directory.sync()
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read().splitlines()]
    assert [row["stage"] for row in rows] == ["label", *[stage] * 6]
    assert [name for name in place.children() if name.startswith("restart")] == []


def test_a_new_start_takes_the_wandb_id_with_its_first_checkpoint(storage):
    finished(storage, "ppo")
    directory = Process(storage, "ppo", "resume").directory
    directory.write_json("wandb_id.json", {"ppo": "old", "sft": "other"})
    assert _run_id(directory, "ppo") == "old"
    process = Process(storage, "ppo", "fresh")
    new = _run_id(process.directory, "ppo")
    assert new != "old" and directory.read_json("wandb_id.json") == {"ppo": "old", "sft": "other"}
    process.iterate(1, 1, 2)
    assert directory.read_json("wandb_id.json") == {"ppo": new, "sft": "other"}
    assert _run_id(Process(storage, "ppo", "resume").directory, "ppo") == new


def test_two_new_starts_have_two_folders_aside(storage):
    finished(storage, "ppo")
    for number in (2, 3):
        process = Process(storage, "ppo", "fresh")
        process.iterate(1, 3, number)
        process.export(number)
    assert [numbers(aside, "ppo")["checkpoint"] for aside in asides(storage)] == [1, 2]


def test_a_new_start_without_a_checkpoint_leaves_earlier_results(storage, caplog):
    finished(storage, "ppo")
    process = Process(storage, "ppo", "fresh")
    process.iterate(1, 2, 2, save=False)
    text = advice(process.config, "ppo")
    assert "nothing of the new start was saved" in text and "--resume continues them from iteration 3" in text
    resumed = Process(storage, "ppo", "resume")
    assert (resumed.newest.iteration, resumed.number) == (3, 1) and "forgetting a new start" in caplog.text
    resumed.iterate(4, 4, 1)
    assert numbers(resumed.directory.location, "ppo") == marked("ppo", 1, 4)
    assert asides(storage) == []


def test_a_new_start_replaces_results_without_a_checkpoint(storage):
    process = Process(storage, "ppo")
    assert "nothing was saved yet" in advice(process.config, "ppo")
    process.iterate(1, 1, 1, save=False)
    again = Process(storage, "ppo", "fresh")
    again.iterate(1, 2, 2)
    assert numbers(again.directory.location, "ppo") == marked("ppo", 2, 2, export=False) and asides(storage) == []


def killed_while_moving(process: Process, step: int, monkeypatch) -> bool:
    """Save the first checkpoint of a new start, and die at one step of the move; False if it has no such step."""
    remaining = [step]

    def dying(usual):
        def call(*args, **kwargs):
            remaining[0] -= 1
            if remaining[0] < 0:
                raise KilledError
            return usual(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        commit = process.checkpoints.commit

        def commit_then_die(*args):
            commit(*args)
            for name in ("move_to", "remove", "write"):
                patch.setattr(Location, name, dying(getattr(Location, name)))

        patch.setattr(process.checkpoints, "commit", commit_then_die)
        try:
            process.save(2, 2)
        except KilledError:
            return True
    return False


def check_completed(storage: str) -> None:
    """Assert that the earlier results are aside and the new ones in their place."""
    (aside,) = asides(storage)
    assert numbers(aside, "ppo") == marked("ppo", 1, 3)
    assert numbers(RunDir(storage, "run").location, "ppo") == marked("ppo", 2, 2, export=False)


def test_a_resume_completes_a_move_that_was_killed_at_any_step(storage, monkeypatch):
    for step in itertools.count():
        run = f"{storage}/{step}"
        finished(run, "ppo")
        process = Process(run, "ppo", "fresh")
        process.iterate(1, 2, 2, save=False)
        if not killed_while_moving(process, step, monkeypatch):
            break
        assert Process(run, "ppo", "resume").number == 2
        check_completed(run)
    assert step > 10


def test_a_deletion_that_was_killed_loses_no_rows(storage, monkeypatch):
    """A folder is deleted file by file: the rows of metrics may be deleted before the journal that needs them."""
    finished(storage, "ppo")
    process = Process(storage, "ppo", "fresh")
    process.iterate(1, 2, 2, save=False)
    usual = Location.remove

    def partly(location):
        if location.name == "restart-ppo":
            usual(location / "metrics.jsonl")
            raise KilledError
        usual(location)

    with monkeypatch.context() as patch:
        patch.setattr(Location, "remove", partly)
        with pytest.raises(KilledError):
            process.save(2, 2)
    assert Process(storage, "ppo", "resume").number == 2
    check_completed(storage)


@pytest.mark.parametrize("start", ["fresh", "new"])
def test_any_next_process_completes_a_move_that_was_killed(tmp_path, monkeypatch, start):
    storage = str(tmp_path)
    finished(storage, "ppo")
    process = Process(storage, "ppo", "fresh")
    process.iterate(1, 2, 2, save=False)
    assert killed_while_moving(process, 5, monkeypatch)
    if start == "new":
        with pytest.raises(ConfigError, match="one that has done 2 iterations"):
            Process(storage, "ppo", start)
    else:
        assert Process(storage, "ppo", start).newest is None
    check_completed(storage)


def test_the_configurations_of_a_stage_are_kept_by_iteration(tmp_path):
    storage = str(tmp_path)
    Process(storage, "ppo").iterate(1, 2, 1)
    Process(storage, "ppo", "resume").iterate(3, 4, 1)
    folder = Path(tmp_path / "run" / "configs")
    assert sorted(file.name for file in folder.iterdir()) == ["000000.yaml", "000002.yaml"]
    Process(storage, "ppo", "resume")
    assert sorted(file.name for file in folder.iterdir()) == ["000000.yaml", "000002.yaml", "000004.yaml"]
