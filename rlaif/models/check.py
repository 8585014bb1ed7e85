"""Whether a model can be trained and served, asked before anything expensive starts."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import transformers

from rlaif.errors import ConfigError
from rlaif.io.storage import fetch
from rlaif.models.adapter import SETTINGS, base_of, check_fit, is_adapter, problem_of, settings_of
from rlaif.models.bases import RECORD, read_record
from rlaif.models.digest import add_weights, whole_fingerprint
from rlaif.models.family import NEW_FAMILY, family_of
from rlaif.models.vlm import ADAPTER

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def require_model(option: str, path: str, served_adapter: str | None = None, or_adapter: bool = False) -> None:
    """Raises ConfigError naming the option when `path` holds no model configuration, one of an unknown family, or no
    weights that can be loaded without unpickling.

    Every known family is one that transformers trains and vLLM serves with video. `served_adapter`: the option that
    asks for adapters which the rollout engine must serve, if any; not every family can have them. `or_adapter`: a LoRA
    adapter will do, on a base of which the same holds (`actors.served.local` makes of the two what an engine loads).
    """
    try:
        folder = Path(fetch(path))
        if _reads_like_a_folder(path) and not folder.exists():  # transformers would take the path for a hub name
            tilde = "; `~` is not expanded here: write the whole path" if path.startswith("~") else ""
            raise FileNotFoundError("no such folder" + tilde)
        if folder.is_file():
            raise NotADirectoryError("a file, not the folder of a model")
        if is_adapter(path):
            return _require_adapter(option, path, folder, or_adapter)
        config = transformers.AutoConfig.from_pretrained(str(folder) if folder.is_dir() else path)
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"{option}: a Hugging Face model directory, URI or hub name",
            f"{path!r}: {first_line}",
            f"Set {option} to a model, or run the stage that makes it first; {NEW_FAMILY}"
            if "does not recognize this architecture" in str(error)
            else f"Set {option} to a model, or run the stage that makes it first",
        ) from error
    family = family_of(config)
    if served_adapter is not None and not family.adapters:
        raise ConfigError(
            f"{served_adapter} null (full weights) for a {family.model_type} policy: vLLM serves no adapters for it",
            f"an adapter in {served_adapter}",
            f"Set {served_adapter}=null, or set {option} to a model of another family",
        )
    _require_safetensors(option, path, folder)


def _reads_like_a_folder(path: str) -> bool:
    """Say whether a path cannot be a hub name or a URI."""
    return "://" not in path and (os.path.isabs(path) or path.startswith((".", "~")))


def _require_adapter(option: str, path: str, folder: Path, allowed: bool) -> None:
    """An adapter with its base; `allowed`: where one will do."""
    base = base_of(path)
    if not allowed:
        raise ConfigError(
            f"{option}: a whole model",
            f"{path!r}, an adapter on {base!r}",
            f'Merge it, and set {option} to the result: python -c "from rlaif.models.merged import write_merged; '
            f"write_merged({path!r}, 'FOLDER')\"",
        )
    if not (folder / ADAPTER).is_file():
        others = ", ".join(sorted(file.name for file in folder.glob("adapter_model.*"))) or "no weights"
        raise ConfigError(
            f"{option}: {ADAPTER} in the adapter's folder",
            f"{path!r} with {others}; a pickled adapter could run code",
            f"Set {option} to another adapter, or convert this one where you trust it: PeftModel.save_pretrained(...) writes safetensors",
        )
    if problem := problem_of(settings_of(path)) or _beside(folder):
        expected = f"{option}: a LoRA adapter that can be added to the weights of a base that it names"
        raise ConfigError(expected, f"{path!r} with {problem}", f"Set {option} to another adapter")
    require_base(f"{option}, base_model_name_or_path in {folder / SETTINGS}", path, base)
    check_fit(option, path, base)


def require_base(option: str, export: str, base: str) -> None:
    """Raise ConfigError unless the base of an export is there, and is the model that the export was trained on.

    option: how errors call the base; `base`: where `find_base` found it.
    """
    record = read_record(export)
    if _reads_like_a_folder(base) and not Path(base).is_dir():
        place = f" or, from {export}, {record.relative}" if record and record.relative else ""
        raise ConfigError(
            f"{option}: a Hugging Face model directory at {base}{place}",
            f"no such folder; {export} was made on a base that is not there any more, or was moved without it",
            f"Put the base back, move it along with the export, or name its folder in the export's {RECORD} and "
            f"{SETTINGS} or reward.json",
        )
    require_model(option, base)
    if record is not None and (there := fingerprint(base)) != record.fingerprint:
        raise ConfigError(
            f"{option}: the model that {export} was trained on (fingerprint {record.fingerprint})",
            f"another one at {base} (fingerprint {there})",
            f"Put the model back that was at {record.path}, or train again on this one",
        )


def _beside(folder: Path) -> str | None:
    """What makes an adapter something else: a whole model in the same folder, of which libraries take the one or the other,
    or the head of a reward model or critic."""
    for pattern, what in (("model*.safetensors", "a whole model"), ("head.safetensors", "a head that gives scores")):
        if found := sorted(file.name for file in folder.glob(pattern)):
            return f"{what} beside it, {found[0]}"
    return None


def _require_safetensors(option: str, path: str, folder: Path) -> None:
    """Loading anything else would unpickle it, which can run code."""
    others = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLED)
    if others and not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"{option}: weights in *.safetensors files",
            f"{path!r} with {', '.join(others[:3])}, which would have to be unpickled",
            f"Set {option} to another model, or convert this one where you trust it: "
            "from_pretrained(...).save_pretrained(...) writes safetensors",
        )


def fingerprint(path: str) -> str:
    """What tells two models apart whatever their paths: 16 hex digits over configuration and weight files.

    Of each weight file: name, size and its first and last megabyte, so that a large model takes no time. A hub name
    stands for itself; an adapter counts with its base.
    """
    if not is_adapter(path):
        return whole_fingerprint(path)
    digest = hashlib.sha256(_adapter_and_base(path))
    add_weights(digest, Path(fetch(path)))
    return digest.hexdigest()[:16]


def same_model(first: str, second: str) -> bool:
    """Return whether two paths, URIs or hub names hold the same model, however each is spelt and wherever it is stored."""
    return first == second or fingerprint(first) == fingerprint(second)


def _adapter_and_base(path: str) -> bytes:
    """What an adapter's settings say, the base by what it is instead of where."""
    told = settings_of(path) | {"base_model_name_or_path": fingerprint(base_of(path))}
    return json.dumps(told, sort_keys=True).encode()
