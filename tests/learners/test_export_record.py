"""The record beside an export, by which its base is found again after a move."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest

from learners import worker
from learners.worker import LearnerWorker
from rlaif.io.storage import locate
from rlaif.models.bases import RECORD
from rlaif.models.model_dir import SETTINGS, ModelDir


def exporter(base: str) -> LearnerWorker:
    """Return rank 0 of a group with one role on that base."""
    rank = object.__new__(LearnerWorker)
    rank.rank, rank.learner = 0, SimpleNamespace(roles={"policy": SimpleNamespace(spec=SimpleNamespace(base=base))})
    return rank


@pytest.fixture
def write(monkeypatch):
    """Make `export_role` write an adapter's settings, or a whole model's, by `write(kind)`."""

    def choose(kind: str) -> None:
        def export_role(learner, role, folder, merge):
            text = json.dumps({"base_model_name_or_path": learner.roles[role].spec.base})
            (folder / (SETTINGS if kind == "adapter" else "config.json")).write_text(text)

        monkeypatch.setattr(worker, "export_role", export_role)

    return choose


@pytest.mark.parametrize(
    ("kind", "card", "recorded"),
    [
        ("adapter", {}, True),
        ("adapter", {"reward.json": "{}"}, True),
        ("whole", {"reward.json": "{}"}, True),
        ("whole", {}, False),
    ],
)
def test_an_export_that_needs_its_base_has_a_record_of_it(tmp_path, tiny, write, kind, card, recorded):
    base, target = tmp_path / "runs" / "run" / "base", locate(tmp_path / "runs") / "run/reward/export"
    shutil.copytree(tiny, base)
    write(kind)
    exporter(str(base)).export("policy", target, False, card)
    record = target.local / RECORD
    assert record.is_file() == recorded and all((target.local / name).is_file() for name in card)
    if recorded:
        expected = {"path": str(base), "relative": "../../base", "fingerprint": ModelDir(str(base)).fingerprint}
        assert json.loads(record.read_text()) == {"base": expected}
    if kind == "adapter":
        (tmp_path / "runs" / "run").rename(tmp_path / "moved")
        assert ModelDir(str(tmp_path / "moved" / "reward" / "export")).base.path == str(tmp_path / "moved" / "base")
