"""The base of an export is found after folders were moved, copied or replaced, or the error names every place tried."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from rlaif.errors import ConfigError
from rlaif.io.storage import locate
from rlaif.models import bases
from rlaif.models.bases import RECORD
from rlaif.models.check import require_base, require_model
from rlaif.models.model_dir import ModelDir, find_base

BASES = {
    "in the run": "run/sft/export",
    "directly in the run": "run/base",
    "in another run": "other/sft/export",
    "beside the runs": "base",
}


def model(folder: Path, content: str = "weights") -> Path:
    """Write a folder with the parts of a configuration and of weights that a fingerprint reads."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    (folder / "model.safetensors").write_text(content)
    return folder


def export(folder: Path, base: Path, storage: Path, record: bool = True) -> Path:
    """Write an export on a base, with or without the record."""
    folder.mkdir(parents=True)
    if record:
        target = locate(storage) / str(folder.relative_to(storage))
        (folder / RECORD).write_text(ModelDir(str(base)).record_text(target))
    return folder


def relocate(how: str, storage: Path, elsewhere: Path) -> Path:
    """Move or copy a storage, or a run alone. Returns the reward model's export at its new place."""
    if how == "the storage moved":
        storage.rename(elsewhere)
        return elsewhere / "run" / "reward" / "export"
    if how == "the storage copied":
        shutil.copytree(storage, elsewhere)
        return elsewhere / "run" / "reward" / "export"
    elsewhere.mkdir()
    if how == "the run moved":
        (storage / "run").rename(elsewhere / "renamed")
    else:
        shutil.copytree(storage / "run", elsewhere / "renamed")
    return elsewhere / "renamed" / "reward" / "export"


@pytest.mark.parametrize("record", [True, False], ids=["record", "no record"])
@pytest.mark.parametrize("place", BASES)
@pytest.mark.parametrize("how", ["the storage moved", "the storage copied", "the run moved", "the run copied"])
def test_a_base_is_found_after_its_export_was_moved_or_copied(tmp_path, how, place, record):
    storage = tmp_path / "runs"
    base = model(storage / BASES[place])
    fingerprint = ModelDir(str(base)).whole_fingerprint
    export(storage / "run" / "reward" / "export", base, storage, record)
    (storage / "run" / "config.yaml").write_text("name: run")
    reward = relocate(how, storage, tmp_path / "moved")
    resolved = find_base(str(reward), str(base))
    assert resolved.whole_fingerprint == fingerprint
    if record or not base.is_dir():
        goes_along = "storage" in how or "in the run" in place
        assert (tmp_path / "moved" in Path(resolved.path).parents) == goes_along
    require_base("ppo.reward, its base", str(reward), resolved)


def test_the_base_beside_the_export_wins_over_the_one_at_the_old_place(tmp_path):
    storage = tmp_path / "runs"
    base = model(storage / "run" / "sft" / "export")
    export(storage / "run" / "reward" / "export", base, storage)
    shutil.copytree(storage, tmp_path / "copy")
    copied = tmp_path / "copy" / "run"
    for export_path in (str(copied / "reward" / "export"), os.path.relpath(copied / "reward" / "export")):
        assert find_base(export_path, str(base)).path == str(copied / "sft" / "export")


def test_a_link_to_an_export_leads_to_its_base(tmp_path):
    storage = tmp_path / "runs"
    base = model(storage / "run" / "sft" / "export")
    export(storage / "run" / "reward" / "export", base, storage)
    storage.rename(tmp_path / "moved")
    (tmp_path / "reward").symlink_to(tmp_path / "moved" / "run" / "reward" / "export")
    resolved = find_base(str(tmp_path / "reward"), str(base))
    assert resolved.path == str(tmp_path / "moved" / "run" / "sft" / "export")


def test_another_model_at_the_relative_place_is_skipped(tmp_path):
    """Skip a base that was trained again after the copy: it has the same place and another fingerprint."""
    storage = tmp_path / "runs"
    base = model(storage / "run" / "sft" / "export")
    export(storage / "run" / "reward" / "export", base, storage)
    shutil.copytree(storage, tmp_path / "copy")
    copied = tmp_path / "copy" / "run"
    (copied / "sft" / "export" / "model.safetensors").write_text("trained again")
    resolved = find_base(str(copied / "reward" / "export"), str(base))
    assert resolved.path == str(base)
    (base / "model.safetensors").write_text("trained again, too")
    resolved = find_base(str(copied / "reward" / "export"), str(base))
    with pytest.raises(ConfigError, match="was trained on .fingerprint(.|\n)*another one at"):
        require_base("ppo.reward, its base", str(copied / "reward" / "export"), resolved)


@pytest.mark.parametrize("path", ["/nowhere/model", "./nowhere", "~/nowhere"])
def test_a_model_folder_that_is_missing_is_not_taken_for_a_hub_name(path):
    with pytest.raises(ConfigError) as caught:
        require_model("ppo.policy", path)
    assert caught.value.found.startswith(f"{path!r}: no such folder")
    assert ("write the whole path" in caught.value.found) == path.startswith("~")


def test_a_missing_base_is_an_error_that_names_all_places(tmp_path):
    storage = tmp_path / "runs"
    base = model(storage / "run" / "sft" / "export")
    reward = export(storage / "run" / "reward" / "export", base, storage)
    shutil.rmtree(base)
    with pytest.raises(ConfigError) as caught:
        require_base("ppo.reward, its base", str(reward), find_base(str(reward), str(base)))
    assert str(base) in caught.value.expected and "../../sft/export" in caught.value.expected
    assert "no such folder" in caught.value.found and RECORD in caught.value.fix


@pytest.mark.parametrize("place", ["a folder outside", "behind a symlink", "a hub name", "a relative path"])
def test_record_holds_absolute_and_relative_path(tmp_path, monkeypatch, place):
    storage, target = tmp_path / "runs", locate(tmp_path / "runs") / "run/reward/export"
    base = model(tmp_path / "models" / "qwen" if place == "a folder outside" else storage / "run" / "base")
    named, relative, path = str(base), "../../base", str(base)
    if place == "a folder outside":
        relative = None
    elif place == "a hub name":
        named, path, relative = "org/model-7b", "org/model-7b", None
    elif place == "a relative path":
        monkeypatch.chdir(storage)
        named = "run/base"
    else:
        (tmp_path / "link").symlink_to(storage)
        named = path = str(tmp_path / "link" / "run" / "base")
    record = json.loads(ModelDir(named).record_text(target))["base"]
    assert (record["path"], record["relative"]) == (path, relative)
    assert record["fingerprint"] == ModelDir(named).whole_fingerprint


def test_base_of_a_foreign_adapter_keeps_its_name(tmp_path):
    """Adapters of others have no record; a hub name is no path."""
    model(tmp_path / "a" / "export")
    other = export(tmp_path / "a" / "adapter", tmp_path, tmp_path, record=False)
    model(tmp_path / "a" / "base")
    for named in ("org/model-7b", "/nowhere/at/all", "/old/export", "/gone/base"):
        assert find_base(str(other), named).path == named
    (other / RECORD).write_text("{broken")
    assert find_base(str(other), "org/model-7b").path == "org/model-7b"


def test_a_record_in_a_bucket_leads_to_a_base_in_the_same_bucket():
    root = "gs://bucket/runs?endpoint=x"
    target = locate(root) / "run/reward/export"
    base = str(locate(root) / "run/sft/export")
    relative = bases.relative_path(base, target)
    assert relative == "../../sft/export"
    moved = str(locate(root) / "copy/reward/export")
    assert bases.join_path(moved, relative) == str(locate(root) / "copy/sft/export")
    assert bases.relative_path("/models/qwen", target) is None


def test_file_instead_of_a_model_folder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    with pytest.raises(ConfigError, match="a file, not the folder of a model"):
        require_model("sft.init", str(tmp_path / "config.json"))
