"""A model's folder: each property is read once, and only the path is pickled for other processes."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
from adapters import write_adapter

from rlaif.models import model_dir
from rlaif.models.merged import merge_dtype, merged_copy_path
from rlaif.models.model_dir import SETTINGS, ModelDir, same_model


@pytest.fixture
def stored(qwen_path, tmp_path, monkeypatch):
    """Return a URI with base/ and an adapter on it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(qwen_path, tmp_path / "base")
    write_adapter(tmp_path / "adapter", str(tmp_path / "base"))
    file = tmp_path / "adapter" / SETTINGS
    settings = json.loads(file.read_text()) | {"base_model_name_or_path": f"file://{tmp_path}/base"}
    file.write_text(json.dumps(settings))
    return f"file://{tmp_path}"


def test_model_dir_fetches_each_uri_once(stored, monkeypatch):
    fetched = []
    fetch = model_dir.fetch
    monkeypatch.setattr(model_dir, "fetch", lambda path: fetched.append(path) or fetch(path))
    model = ModelDir(f"{stored}/adapter")
    assert model.is_adapter
    assert model.settings["r"] == 4
    assert model.family.adapters
    assert len(model.fingerprint) == 16
    assert merge_dtype(model, "bfloat16") == "float32"
    assert merged_copy_path(model, "float32").name
    assert sorted(fetched) == [f"{stored}/adapter", f"{stored}/base"]


def test_model_dir_pickles_only_its_path(stored):
    model = ModelDir(f"{stored}/base")
    assert model.location != model.path
    copy = pickle.loads(pickle.dumps(model))
    assert copy == model
    assert vars(copy) == {"path": model.path}


def test_same_model_compares_contents(stored, qwen_path):
    assert same_model(f"{stored}/base", qwen_path)
    assert same_model("org/model-7b", "org/model-7b")
    assert not same_model(f"{stored}/adapter", f"{stored}/base")
    assert not same_model("org/model-7b", qwen_path)
