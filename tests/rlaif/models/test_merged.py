"""Adapters as models: the merged copy computes what base and adapter do, is made once per node, and odd adapters are refused."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import bombs
import pytest
import torch
from adapters import write_adapter
from peft import PeftModel
from safetensors.torch import load_file, save_file

from rlaif.errors import ConfigError
from rlaif.io.storage import locate, once
from rlaif.models import merged
from rlaif.models.adapter import merged_model
from rlaif.models.check import require_model
from rlaif.models.encode import Encoder
from rlaif.models.merged import merged_copy_path, whole_model, write_merged
from rlaif.models.model_dir import SETTINGS, ModelDir, same_model
from rlaif.models.vlm import ADAPTER, load_vlm

OPTION = "candidates.models"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Return an empty cache of this node."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rlaif" / "merged"


@pytest.fixture(scope="module")
def originals(qwen_path, tmp_path_factory) -> Path:
    """Return a folder with base/ and adapter/, as a user has them."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(qwen_path, folder / "base")
    write_adapter(folder / "adapter", str(folder / "base"))
    return folder


@pytest.fixture
def own(originals, tmp_path) -> Path:
    """Return a copy of both that a test may change; the adapter names its own base."""
    for name in ("base", "adapter"):
        shutil.copytree(originals / name, tmp_path / name)
    change(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    return tmp_path


def change(folder: Path, **settings) -> None:
    saved = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps(saved | settings))


@torch.no_grad()
def logprobs(model: torch.nn.Module) -> torch.Tensor:
    """Return the log-probs [1, 12, V] of a text."""
    return model.eval()(input_ids=torch.arange(20, 32)[None]).logits.float().log_softmax(-1)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_next_video", "llava_onevision", "internvl", "qwen3_vl"])
def test_merged_copy_equals_base_with_adapter(path_of, tmp_path, family):
    base = path_of(family)
    adapter = write_adapter(tmp_path / "adapter", base)
    require_model(OPTION, adapter, or_adapter=True)
    expected = logprobs(PeftModel.from_pretrained(load_vlm(base, "float32"), adapter))
    whole = whole_model(ModelDir(adapter), "float32")
    assert (logprobs(load_vlm(whole, "float32")) - expected).abs().max() < 1e-5
    assert (logprobs(load_vlm(base, "float32")) - expected).abs().max() > 0.1
    assert not ModelDir(whole).is_adapter
    require_model("sft.init", whole)
    own, theirs = Encoder(whole), Encoder(base)
    assert own.unexpanded("what do you see ?") == theirs.unexpanded("what do you see ?")
    assert own.processor.chat_template == theirs.processor.chat_template


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"use_dora": True}, {"rank_pattern": {"v_proj": 2}}])
def test_merged_copy_equals_peft_for_lora_variants(originals, tmp_path, options):
    adapter = write_adapter(tmp_path / "adapter", str(originals / "base"), **options)
    require_model(OPTION, adapter, or_adapter=True)
    expected = logprobs(PeftModel.from_pretrained(load_vlm(str(originals / "base"), "float32"), adapter))
    assert (logprobs(load_vlm(whole_model(ModelDir(adapter), "float32"), "float32")) - expected).abs().max() < 1e-5


def test_whole_models_are_not_copied(originals, cache):
    base = str(originals / "base")
    assert whole_model(ModelDir(base), "float32") == base == ModelDir(base).base.path and not ModelDir(base).is_adapter
    assert whole_model(ModelDir("org/model-7b"), "float32") == "org/model-7b" == ModelDir("org/model-7b").base.path
    assert not cache.exists()


def test_a_copy_is_made_once_for_each_adapter_base_and_precision(own, cache, monkeypatch):
    first = whole_model(ModelDir(str(own / "adapter")), "float32")
    assert Path(first).parent == cache and Path(first) == merged_copy_path(ModelDir(str(own / "adapter")), "bfloat16")
    shutil.copytree(own / "adapter", own / "moved")
    with monkeypatch.context() as patch:
        patch.setattr(merged, "merged_model", None)
        assert (
            whole_model(ModelDir(str(own / "adapter")), "float32")
            == first
            == whole_model(ModelDir(str(own / "moved")), "bfloat16")
        )
    load_vlm(str(own / "base"), "bfloat16").save_pretrained(own / "base")
    half = whole_model(ModelDir(str(own / "adapter")), "bfloat16")
    assert {str(tensor.dtype) for tensor in load_file(Path(half) / "model.safetensors").values()} == {"torch.bfloat16"}
    exact = whole_model(ModelDir(str(own / "adapter")), "float32")
    assert len({first, half, exact}) == 3 and load_vlm(exact, "float32").config.dtype == torch.float32
    assert not [path for path in cache.iterdir() if path.name.startswith("tmp")]


def test_concurrent_requests_merge_once(own, monkeypatch):
    calls, real = [], merged.merged_model
    monkeypatch.setattr(merged, "merged_model", lambda *args: calls.append(args) or real(*args))
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(whole_model(ModelDir(str(own / "adapter")), "float32")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and len(set(results)) == 1 and len(calls) == 1
    load_vlm(results[0], "float32")


def test_once_waits_for_another_process(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from rlaif.io.storage import once\n"
        "def make(folder): print('making', flush=True); time.sleep(1); (folder / 'x').write_text(sys.argv[2])\n"
        "once(Path(sys.argv[1]), make)"
    )
    target = tmp_path / "there" / "target"
    other = subprocess.Popen([sys.executable, "-c", code, str(target), "theirs"], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"making\n"
    assert (once(target, lambda folder: (folder / "x").write_text("mine")) / "x").read_text() == "theirs"
    assert other.wait() == 0


def test_once_removes_the_rest_of_a_killed_process(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from rlaif.io.storage import once\n"
        "def make(folder):\n    (folder / 'half').write_text('x'); os.kill(os.getpid(), 9)\n"
        "once(Path(sys.argv[1]), make)"
    )
    target = tmp_path / "cache" / "target"
    assert subprocess.run([sys.executable, "-c", program, str(target)]).returncode == -9
    assert len(list(target.parent.glob(".target.part-*/half"))) == 1 and not target.exists()
    assert once(target, lambda folder: (folder / "x").write_text("whole")).is_dir()
    assert sorted(path.name for path in target.parent.iterdir()) == [".target.lock", "target"]


def test_once_leaves_nothing_after_a_failure(tmp_path):
    def fail(folder):
        (folder / "half").write_text("")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        once(tmp_path / "cache" / "target", fail)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".target.lock"]
    assert once(tmp_path / "cache" / "target", lambda folder: None).is_dir()


def test_adapter_behind_a_uri_is_resolved(own):
    where = f"file://{own}/adapter"
    require_model(OPTION, where, or_adapter=True)
    assert same_model(where, str(own / "adapter")) and ModelDir(where).base.path == str(own / "base")
    assert whole_model(ModelDir(where), "float32") == whole_model(ModelDir(str(own / "adapter")), "float32")
    assert locate(where).local == own / "adapter"


def test_fingerprints_follow_adapter_and_base_not_paths(own):
    adapter = str(own / "adapter")
    prints = [ModelDir(adapter).fingerprint, ModelDir(str(own / "base")).fingerprint]
    for name in ("base", "adapter"):
        shutil.copytree(own / name, own / "elsewhere" / name)
    change(own / "elsewhere" / "adapter", base_model_name_or_path="../base")
    assert ModelDir(str(own / "elsewhere" / "adapter")).fingerprint == prints[0]
    change(own / "adapter", lora_alpha=2)
    prints.append(ModelDir(adapter).fingerprint)
    tensors = load_file(own / "adapter" / ADAPTER)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, own / "adapter" / ADAPTER)
    prints.append(ModelDir(adapter).fingerprint)
    weights = load_file(own / "base" / "model.safetensors")
    save_file(
        {name: 2 * tensor for name, tensor in weights.items()}, own / "base" / "model.safetensors", {"format": "pt"}
    )
    prints.append(ModelDir(adapter).fingerprint)
    assert len(set(prints)) == 5


@pytest.mark.parametrize("base", ["base", "../base"])
def test_relative_base_is_found_beside_the_adapter_or_in_the_working_directory(own, monkeypatch, base):
    change(own / "adapter", base_model_name_or_path=base)
    if base == "base":
        monkeypatch.chdir(own)
    require_model(OPTION, str(own / "adapter"), or_adapter=True)
    assert Path(ModelDir(str(own / "adapter")).base.path).resolve() == own / "base"


@pytest.mark.parametrize(
    ("path", "fix"),
    [("owner/model", "Correct the name in sft.init"), ("/nowhere/model", "run the stage that makes it")],
)
def test_a_missing_model_is_a_hub_name_or_a_folder(monkeypatch, path, fix):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="sft.init: a Hugging Face model") as raised:
        require_model("sft.init", path)
    assert fix in raised.value.fix


@pytest.mark.parametrize("option", ["sft.init", "reward.init", "ppo.policy"])
def test_options_that_need_a_whole_model_say_how_to_get_one(own, option):
    with pytest.raises(
        ConfigError, match=rf"{option}: a whole model(.|\n)*an adapter on .*base'(.|\n)*write_merged"
    ) as raised:
        require_model(option, str(own / "adapter"))
    line = raised.value.fix.split('python -c "')[1].rstrip('"`.')
    exec(line.replace("FOLDER", str(own / "whole")))
    require_model(option, str(own / "whole"))
    assert (
        logprobs(load_vlm(str(own / "whole"), "float32")) - logprobs(load_vlm(str(own / "base"), "float32"))
    ).abs().max() > 0.1


def without_weights(folder: Path) -> None:
    (folder / ADAPTER).unlink()


def with_strange_names(folder: Path) -> None:
    tensors = load_file(folder / ADAPTER)
    save_file({name.replace("layers.0", "layers.9"): tensor for name, tensor in tensors.items()}, folder / ADAPTER)


def without_some(folder: Path) -> None:
    tensors = load_file(folder / ADAPTER)
    tensors.pop(min(tensors))
    save_file(tensors, folder / ADAPTER)


BROKEN = {
    "no weights": (without_weights, r"candidates\.models: adapter_model\.safetensors(.|\n)*no weights"),
    "no base": ({"base_model_name_or_path": None}, "no base_model_name_or_path"),
    "a base that is gone": (
        {"base_model_name_or_path": "/gone/base"},
        r"models, base_model_name_or_path in .*adapter_config\.json: a Hugging Face model(.|\n)*/gone/base",
    ),
    "prompt tuning": ({"peft_type": "PROMPT_TUNING"}, "peft_type 'PROMPT_TUNING'"),
    "pissa": ({"init_lora_weights": "pissa"}, "pissa"),
    "a revision": ({"revision": "v2"}, "revision 'v2' of its base"),
    "repeated layers": ({"layer_replication": [[0, 2]]}, "layer_replication"),
    "another rank": ({"r": 8}, r"candidates\.models: an adapter that fits(.|\n)*size mismatch"),
    "other modules": ({"target_modules": ["nothing"]}, r"candidates\.models: an adapter that fits(.|\n)*nothing"),
    "strange names": (with_strange_names, r"no place for its tensor .*layers\.9"),
    "some missing": (without_some, r"no tensor .*lora_A"),
    "no settings": (lambda folder: (folder / SETTINGS).write_text("{"), r"candidates\.models: a Hugging Face model"),
    "a list of settings": (lambda folder: (folder / SETTINGS).write_text("[]"), "no JSON object"),
    "a whole model beside it": (
        lambda folder: shutil.copy(folder.parent / "base" / "model.safetensors", folder),
        "a whole model beside it, model.safetensors",
    ),
    "no safetensors": (
        lambda folder: (folder / ADAPTER).write_bytes(b"x" * 99),
        r"models: an adapter(.|\n)*safetensors",
    ),
    "a reward model": (lambda folder: (folder / "head.safetensors").write_bytes(b""), "a head that gives scores"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_unmergeable_adapter_is_refused(own, name):
    damage, expected = BROKEN[name]
    if callable(damage):
        damage(own / "adapter")
    else:
        change(own / "adapter", **damage)
    with pytest.raises(ConfigError, match=expected):
        require_model(OPTION, str(own / "adapter"), or_adapter=True)


def test_the_base_of_an_adapter_is_no_adapter(own):
    shutil.copytree(own / "adapter", own / "second")
    change(own / "second", base_model_name_or_path=str(own / "adapter"))
    with pytest.raises(ConfigError, match=r"base_model_name_or_path in (.|\n)*a whole model"):
        require_model(OPTION, str(own / "second"), or_adapter=True)


def test_a_head_that_shares_its_weights_is_refused(own, tmp_path):
    adapter = write_adapter(tmp_path / "head", str(own / "base"), target_modules=["lm_head"])
    with pytest.raises(ConfigError, match="head and embeddings share"):
        require_model(OPTION, adapter, or_adapter=True)


def test_a_base_with_pickled_weights_or_a_pickled_adapter_is_refused(own):
    canary = own / "executed"
    bombs.plant(own / "adapter", canary)
    whole_model(ModelDir(str(own / "adapter")), "float32")  # beside the safetensors they are left alone
    (own / "adapter" / ADAPTER).unlink()
    with pytest.raises(ConfigError, match=r"adapter_model\.safetensors(.|\n)*adapter_model\.bin; a pickled"):
        require_model(OPTION, str(own / "adapter"), or_adapter=True)
    with pytest.raises(Exception, match="safetensors"):
        write_merged(str(own / "adapter"), own / "whole")
    bombs.plant(own / "base", canary)
    (own / "base" / "model.safetensors").unlink()
    write_adapter_again(own)
    with pytest.raises(ConfigError, match=r"base_model_name_or_path in (.|\n)*weights in \*\.safetensors"):
        require_model(OPTION, str(own / "adapter"), or_adapter=True)
    assert not canary.exists()


def write_adapter_again(own: Path) -> None:
    save_file({"x": torch.zeros(1)}, own / "adapter" / ADAPTER)


def test_lossy_merge_warns(own, caplog):
    base, small = str(own / "base"), write_adapter(own / "small", str(own / "base"), scale=2e-3)
    with caplog.at_level(logging.WARNING):
        merged_model(ModelDir(base), ModelDir(small), "float32")
        merged_model(ModelDir(base), ModelDir(str(own / "adapter")), "bfloat16")
        assert not caplog.records
        merged_model(ModelDir(base), ModelDir(small), "bfloat16")
    assert "merged in bfloat16" in caplog.text and "% of the adapter's change" in caplog.text
