"""A run directory that was moved to another path resumes, evaluates and serves as a reward, with the same bits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from rlaif.config.schema import Config
from rlaif.io.rundir import RunDir
from rlaif.models.bases import RECORD
from rlaif.models.model_dir import ModelDir
from rlaif.models.reward import read_card
from rlaif.stages.run.run import Run, open_run
from rlaif.stages.train import evaluate, ppo, reward

OPTIONS = ["deterministic=true", "reward.init={run}/base", "ppo.policy={run}/base", "ppo.reward={run}/reward/export"]
OPTIONS += ["ppo.prompts_per_iteration=2", "ppo.minibatch_size=4", "ppo.parity.every=1", "reward.context=none"]


class Storage:
    """Runs below one folder, on one cluster, each in a directory of its own."""

    def __init__(self, make_config, folder: Path, shared: Run):
        self._make_config, self.folder, self._shared = make_config, folder, shared

    def run(self, name: str, *overrides: str) -> tuple[Config, Run]:
        config = self._make_config(self.folder, f"name={name}", *OPTIONS, *overrides)
        directory = RunDir(config.storage, name)
        directory.prepare()
        topology = self._shared.topology
        topology.config = config
        return config, Run(config, directory, self._shared.session, topology)

    def path(self, name: str) -> Path:
        return self.folder / "runs" / name


def tensors(folder: Path) -> dict[str, bytes]:
    """Every tensor below a folder, by file and name."""
    found = {}
    for file in sorted(folder.rglob("*.safetensors")):
        found |= {f"{file.name}/{name}": array.tobytes() for name, array in load_file(file).items()}
    return found


@pytest.mark.slow
def test_a_run_that_was_moved_resumes_evaluates_and_is_a_reward_with_the_same_bits(
    make_config, world, tmp_path, samples_of
):
    """One iteration, then a copy under another name. The original does the second iteration and is gone after that; the
    copy does it too, is evaluated, and is the reward model of another run."""
    with open_run(make_config(tmp_path, *OPTIONS)) as shared:
        runs = Storage(make_config, tmp_path, shared)
        shutil.copytree(world / "base", runs.path("first") / "base")
        reward.train(*runs.run("first"))
        ppo.train(*runs.run("first", "ppo.iterations=1"))
        shutil.copytree(runs.path("first"), runs.path("second"))
        ppo.train(*runs.run("first", "ppo.iterations=2"), "resume")
        expected, samples = tensors(runs.path("first") / "checkpoints" / "000002"), samples_of(runs.path("first"), 2)
        evaluated = evaluate.evaluate(*runs.run("first", "ppo.iterations=2"))
        runs.path("first").rename(tmp_path / "gone")
        shutil.rmtree(tmp_path / "gone")

        second = runs.path("second")
        assert read_card(str(second / "reward" / "export"))["base"] == str(second / "base")
        assert ModelDir(str(second / "export")).base.path == str(second / "base")
        assert (second / "export" / RECORD).is_file()
        ppo.train(*runs.run("second", "ppo.iterations=2"), "resume")
        found = tensors(second / "checkpoints" / "000002")
        assert found.keys() == expected.keys() and len([name for name in found if "exp_avg" in name]) > 10
        assert [name for name in found if found[name] != expected[name]] == []
        assert samples_of(second, 2) == samples
        assert evaluate.evaluate(*runs.run("second", "ppo.iterations=2")) == evaluated

        another = [f"ppo.policy={second}/base", f"ppo.reward={second}/reward/export", "ppo.iterations=1"]
        ppo.train(*runs.run("third", *another))
        assert samples_of(runs.path("third"), 1) == samples_of(second, 1)
