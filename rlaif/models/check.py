"""Checks that a model can be trained and served, before anything expensive starts."""

from __future__ import annotations

import os
from pathlib import Path

import transformers

from rlaif.errors import ConfigError
from rlaif.models.adapter import check_fit, merge_problem
from rlaif.models.bases import RECORD, read_record
from rlaif.models.family import NEW_FAMILY, family_of
from rlaif.models.model_dir import SETTINGS, ModelDir
from rlaif.models.vlm import ADAPTER

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def require_model(option: str, path: str, served_adapter: str | None = None, or_adapter: bool = False) -> ModelDir:
    """Return the model at `path` after checking it.

    Every known family is one that transformers trains and vLLM serves with video. `served_adapter`: the option that
    asks for adapters which the rollout engine must serve, if any; not every family can have them. `or_adapter`: a LoRA
    adapter is also allowed, on a base of which the same holds (`actors.served.resolve_model` returns what an engine loads).

    Raises:
        ConfigError: names the option; there is no model configuration, or it is of an unknown family, or there are no weights
            that can be loaded without unpickling.
    """
    model = ModelDir(path)
    _require_model(option, model, served_adapter, or_adapter)
    return model


def _require_model(option: str, model: ModelDir, served_adapter: str | None = None, or_adapter: bool = False) -> None:
    try:
        _require_folder(model)
        if model.is_adapter:
            return _require_adapter(option, model, or_adapter)
        # a hub name whose files are elsewhere has no folder: transformers looks it up
        config = transformers.AutoConfig.from_pretrained(model.location)
    except (OSError, ValueError, KeyError) as error:
        raise _no_model(option, model, error) from error
    family = family_of(config)
    if served_adapter is not None and not family.adapters:
        raise ConfigError(
            f"{served_adapter} null (full weights) for a {family.model_type} policy: vLLM serves no adapters for it",
            f"an adapter in {served_adapter}",
            f"Set {served_adapter}=null, or set {option} to a model of another family.",
        )
    # last: it reads the folder, which a hub name does not have
    _require_safetensors(option, model)


def _require_folder(model: ModelDir) -> None:
    folder = model.folder
    # transformers would take the path for a hub name
    if _is_folder_path(model.path) and not folder.exists():
        hint = "; `~` is not expanded here: write the whole path" if model.path.startswith("~") else ""
        raise FileNotFoundError("no such folder" + hint)
    if folder.is_file():
        raise NotADirectoryError("a file, not the folder of a model")


def _no_model(option: str, model: ModelDir, error: Exception) -> ConfigError:
    message = str(error).strip()
    first_line = message.splitlines()[0] if message else type(error).__name__
    fix = f"Set {option} to a model, or run the stage that makes it first."
    if _may_be_hub_name(model.path):
        fix = f"Correct the name in {option} or the connection to the hub, or set {option} to a local folder."
    if "does not recognize this architecture" in message:
        fix = f"Set {option} to a model of a known family. {NEW_FAMILY}."
    return ConfigError(
        f"{option}: a Hugging Face model directory, URI or hub name", f"{model.path!r}: {first_line}", fix
    )


def _is_folder_path(path: str) -> bool:
    """Return whether a path cannot be a hub name or a URI."""
    return "://" not in path and (os.path.isabs(path) or path.startswith((".", "~")))


def _may_be_hub_name(path: str) -> bool:
    """Return whether a path has the form of a hub name, such as `owner/model`, and no folder is there."""
    return "://" not in path and not _is_folder_path(path) and path.count("/") == 1 and not Path(path).exists()


def _require_adapter(option: str, adapter: ModelDir, is_allowed: bool) -> None:
    """Check an adapter and its base."""
    path, folder = adapter.path, adapter.folder
    base = adapter.base
    if not is_allowed:
        raise ConfigError(
            f"{option}: a whole model",
            f"{path!r}, an adapter on {base.path!r}",
            f'Merge it, and set {option} to the result: `python -c "from rlaif.models.merged import write_merged; '
            f"write_merged({path!r}, 'FOLDER')\"`.",
        )
    if not (folder / ADAPTER).is_file():
        others = ", ".join(_file_names(folder, "adapter_model.*")) or "no weights"
        raise ConfigError(
            f"{option}: {ADAPTER} in the adapter's folder",
            f"{path!r} with {others}; a pickled adapter could run code",
            f"Set {option} to another adapter, or convert this one if you trust it: PeftModel.save_pretrained(...) writes safetensors.",
        )
    problem = merge_problem(adapter.settings) or _other_weights(folder)
    if problem:
        raise ConfigError(
            f"{option}: a LoRA adapter that can be added to the weights of a base that it names",
            f"{path!r} with {problem}",
            f"Set {option} to another adapter.",
        )
    # the base first: only then are there names and shapes to compare the adapter's with
    require_base(f"{option}, base_model_name_or_path in {folder / SETTINGS}", path, base)
    check_fit(option, adapter)


def require_base(option: str, export: str, base: ModelDir) -> None:
    """Raise ConfigError unless the base of an export is there, and is the model that the export was trained on.

    option: how errors name the base; base: as `find_base` returns it.
    """
    record = read_record(export)
    # said before `_require_model` would speak of hub names: the user looks for a folder that was moved or removed
    if _is_folder_path(base.path) and not Path(base.path).is_dir():
        place = f" or, from {export}, {record.relative}" if record and record.relative else ""
        raise ConfigError(
            f"{option}: a Hugging Face model directory at {base.path}{place}",
            f"no such folder; {export} was made on a base that is not there any more, or was moved without it",
            f"Put the base back, move it along with the export, or name its folder in the export's {RECORD} and "
            f"{SETTINGS} or reward.json.",
        )
    _require_model(option, base)
    if record is not None and base.fingerprint != record.fingerprint:
        raise ConfigError(
            f"{option}: the model that {export} was trained on (fingerprint {record.fingerprint})",
            f"another one at {base.path} (fingerprint {base.fingerprint})",
            f"Put the model back that was at {record.path}, or train again on this one.",
        )


def _other_weights(folder: Path) -> str | None:
    """Return what is stored beside an adapter and makes it something else.

    A whole model in the same folder, of which libraries take the one or the other; or the head of a reward model or critic.
    """
    models, heads = _file_names(folder, "model*.safetensors"), _file_names(folder, "head.safetensors")
    if models:
        return f"a whole model beside it, {models[0]}"
    if heads:
        return f"a head that gives scores beside it, {heads[0]}"
    return None


def _file_names(folder: Path, pattern: str) -> list[str]:
    return sorted(file.name for file in folder.glob(pattern))


def _require_safetensors(option: str, model: ModelDir) -> None:
    """Refuse a folder whose only weights would have to be unpickled, which can run code."""
    folder = model.folder
    others = [name for name in _file_names(folder, "*") if name.endswith(PICKLED)]
    if others and not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"{option}: weights in *.safetensors files",
            f"{model.path!r} with {', '.join(others[:3])}, which would have to be unpickled",
            f"Set {option} to another model, or convert this one if you trust it: "
            "from_pretrained(...).save_pretrained(...) writes safetensors.",
        )
