"""No file from elsewhere is unpickled: the source has no call that would, and planted pickles never run."""

from __future__ import annotations

import ast
import contextlib
import pickle
import shutil
from pathlib import Path

import bombs
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rlaif.config.schema import Lora, Model, Reward
from rlaif.errors import CheckpointError, ConfigError
from rlaif.models.check import require_model
from rlaif.models.encode import Encoder
from rlaif.models.reward import CARD, card_text, load_reward_model, read_card
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.models.tiny import build_tiny
from rlaif.models.vlm import ADAPTER, VideoLM, load_adapter, load_vlm

ROOT = Path(__file__).parents[1]
PACKAGES = ("rlaif", "actors", "learners", "cluster")

MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
CALLS = {
    "torch.load", "torch.jit.load", "torch.hub.load", "np.load", "numpy.load", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "pd.read_pickle", "eval", "exec",
}  # fmt: skip
METHODS = {"load_checkpoint", "load_peft_weights", "load_state_dict_from_url", "load_state_dict_from_zero_checkpoint"}
FLAGS = {("weights_only", False), ("allow_pickle", True), ("trust_remote_code", True), ("use_safetensors", False)}


def unpickles(source: str) -> list[str]:
    """Return every expression in a module's source that could run code from a file, as `line: expression`."""
    findings = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        findings += [f"{node.lineno}: import of {name}" for name in names if name.split(".")[0] in MODULES | METHODS]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS or called.split(".")[-1] in METHODS or called.split(".")[0] in MODULES:
                findings.append(f"{node.lineno}: {called}(")
            flags = [(k.arg, k.value.value) for k in node.keywords if isinstance(k.value, ast.Constant)]
            findings += [f"{node.lineno}: {name}={value}" for name, value in flags if (name, value) in FLAGS]
    return findings


def test_no_source_file_unpickles():
    files = []
    for package in PACKAGES:
        files += (ROOT / package).rglob("*.py")
    assert len(files) > 80
    findings = {str(file.relative_to(ROOT)): unpickles(file.read_text()) for file in files}
    assert {name: lines for name, lines in findings.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "pickle.load(open(path, 'rb'))",
        "import pickle",
        "from cloudpickle import loads",
        "from peft import load_peft_weights",
        "engine.load_checkpoint(folder)",
        "torch.load(path, weights_only=False)",
        "something.read(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path)",
        "yaml.load(text)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "eval(text)",
    ],
)
def test_each_way_of_unpickling_is_reported(line):
    assert unpickles(f"def f(path, text):\n    {line}\n")
    assert not unpickles("model.eval()\nyaml.safe_load(text)\nload_file(path)\njson.loads(text)\n")


# ---------------------------------------------------------------- files

WORDS = ["a", "red", "blue", "circle", "moves", "left", "right", "and", "what", "do", "you", "see", "?"]
LORA = Lora(r=2, alpha=4)
MODEL = Model(dtype="float32", device="cpu")


@pytest.fixture
def canary(tmp_path) -> Path:
    """Yield a path that exists as soon as a pickle runs; the test fails then."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "something was unpickled"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Return a folder with base/ (a model) and reward/ (an adapter on it, with its head), as a run writes them."""
    folder = tmp_path_factory.mktemp("models")
    build_tiny(folder / "base", WORDS, seed=0)
    module = VideoLM(load_vlm(str(folder / "base"), "float32"), ["reward"], {"reward": LORA})
    module.model.save_pretrained(folder / "saved")
    shutil.move(folder / "saved" / "reward", folder / "reward")
    save_file(module.heads["reward"].state_dict(), folder / "reward" / "head.safetensors")
    (folder / "reward" / CARD).write_text(card_text(str(folder / "base"), LORA, RewardPrompt.of(Reward())))
    return folder


@pytest.fixture
def planted(models, tmp_path, canary) -> Path:
    """Return a copy of the models with a bomb under every file name that a library unpickles."""
    folder = shutil.copytree(models, tmp_path / "planted")
    for part in ("base", "reward"):
        bombs.plant(folder / part, canary)
    return folder


def load_reward(folder: Path) -> VideoLM:
    return load_reward_model(str(folder / "reward"), read_card(str(folder / "reward")), MODEL)


def adapter_on(folder: Path) -> VideoLM:
    return VideoLM(load_vlm(str(folder / "base"), "float32"), [], {"policy": LORA})


def test_a_bomb_runs_in_each_loader_that_unpickles(tmp_path):
    loaders = [
        lambda file: pickle.loads(file.read_bytes()),
        lambda file: torch.load(file, weights_only=False),
        lambda file: np.load(file, allow_pickle=True),
    ]
    for number, load in enumerate(loaders):
        target, file = tmp_path / str(number), tmp_path / f"{number}.bin"
        file.write_bytes(bombs.bomb(target))
        with contextlib.suppress(Exception):  # what comes out of it is no tensor; it has run by then
            load(file)
        assert target.is_dir()


def test_pickles_beside_the_weights_are_ignored(planted):
    require_model("ppo.policy", str(planted / "base"))
    module = adapter_on(planted)
    load_adapter(module, "policy", planted / "reward")  # names in the file are those of any adapter
    load_reward(planted)
    Encoder(str(planted / "base"))


@pytest.mark.parametrize("how", ["instead", "disguised"])
def test_pickles_in_place_of_weights_are_refused(planted, canary, how):
    """Replace the safetensors files by pickles, under their own names or under a safetensors name."""
    for file in planted.rglob("*.safetensors"):
        file.unlink() if how == "instead" else file.write_bytes(bombs.bomb(canary))
    if how == "instead":
        with pytest.raises(ConfigError, match=r"ppo\.policy: weights in \*\.safetensors(.|\n)*adapter_model\.bin"):
            require_model("ppo.policy", str(planted / "base"))
    with pytest.raises(Exception, match="(?i)safetensors|header"):
        load_vlm(str(planted / "base"), "float32")


@pytest.mark.parametrize("file", [ADAPTER, "head.safetensors"])
@pytest.mark.parametrize("how", ["instead", "disguised"])
def test_a_pickle_in_place_of_an_adapter_or_head_is_refused(planted, canary, file, how):
    victim = planted / "reward" / file
    victim.unlink() if how == "instead" else victim.write_bytes(bombs.bomb(canary))
    with pytest.raises(CheckpointError, match=f"safetensors file at .*{file}"):
        load_reward(planted)


def test_an_adapter_of_another_shape_or_other_modules_is_refused(models):
    """Refuse the adapter although PEFT itself would skip missing weights."""
    module = VideoLM(load_vlm(str(models / "base"), "float32"), [], {"policy": LORA.model_copy(update={"r": 3})})
    with pytest.raises(CheckpointError, match=r"lora_A.*\(3, 256\)(.|\n)*\(2, 256\)"):
        load_adapter(module, "policy", models / "reward")
    fewer = VideoLM(load_vlm(str(models / "base"), "float32"), [], {"policy": Lora(r=2, targets=("q_proj",))})
    with pytest.raises(CheckpointError, match="none of them"):
        load_adapter(fewer, "policy", models / "reward")


def test_the_rollout_engine_reads_safetensors_only(models, tmp_path, canary, monkeypatch):
    from vllm.config import LoadConfig
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    from actors.engine import EngineSpec, _build_llm

    options = {}
    monkeypatch.setattr("vllm.LLM", lambda **arguments: options.update(arguments))
    _build_llm(EngineSpec(str(models / "base"), "float32"))
    bombs.plant(tmp_path, canary)
    loader = DefaultModelLoader(LoadConfig(load_format=options["load_format"]))
    with pytest.raises(RuntimeError, match="any model weights"):
        loader._prepare_weights(str(tmp_path), None, None, True, None)
