"""A model as an option names it: which folder holds it on this node, whether it is an adapter, on which base, and what identifies it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import transformers

from rlaif.io.storage import Location, fetch
from rlaif.models.bases import BaseRecord, absolute_path, base_candidates, read_record, relative_path
from rlaif.models.digest import add_weights, weights_digest
from rlaif.models.family import Family, family_of

SETTINGS = "adapter_config.json"
"""PEFT's settings of an adapter: a folder that has them counts as an adapter."""


@dataclass(frozen=True)
class ModelDir:
    """A whole model, or a LoRA adapter with the base that it names.

    Each fact is looked up at its first use and then stays as it is: the folder of a URI is listed and copied to this node
    once. A model that may have been rewritten meanwhile needs a new ModelDir.
    """

    path: str
    """The path, URI or hub name, as the option has it."""

    def __reduce__(self) -> tuple:
        """Send only the path to other processes: the folder of a URI is another one on each node."""
        return ModelDir, (self.path,)

    @cached_property
    def location(self) -> str:
        """Return what libraries open: a folder of this node, or a hub name as it is.

        Raises FileNotFoundError for a URI without files.
        """
        return fetch(self.path)

    @property
    def folder(self) -> Path:
        """Return `location` as a path; it does not exist for a hub name."""
        return Path(self.location)

    @cached_property
    def is_adapter(self) -> bool:
        """Return whether it is an adapter, not a whole model. A hub name counts as a whole model's."""
        return (self.folder / SETTINGS).is_file()

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return what PEFT saved about an adapter. Raises ValueError for a file that is not a JSON object."""
        settings = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError(f"{SETTINGS}: no JSON object")
        return settings

    @cached_property
    def base(self) -> ModelDir:
        """Return the model that has the architecture, tokenizer and processor: this one, or the base of an adapter.

        See `find_base` for the places in which a base is looked up. The path is empty if an adapter names no base.
        """
        if not self.is_adapter:
            return self
        # PEFT wrote an absolute path, which is wrong once the run directory was moved
        named = str(self.settings.get("base_model_name_or_path") or "")
        return find_base(self.path, named) if named else ModelDir("")

    @cached_property
    def config(self) -> transformers.PretrainedConfig:
        """Return the configuration of the (base) model. Raises OSError or ValueError if there is none that can be read."""
        return transformers.AutoConfig.from_pretrained(self.base.location)

    @property
    def family(self) -> Family:
        """Return the family of the (base) model. Raises ConfigError for an unknown one."""
        return family_of(self.config)

    @cached_property
    def fingerprint(self) -> str:
        """Return what tells two models apart whatever their paths: 16 hex digits over configuration and weight files.

        Of each weight file: name, size and its first and last megabyte, so that a large model takes no time. A hub name
        stands for itself; an adapter counts with its base.
        """
        if not self.is_adapter:
            return self.whole_fingerprint
        # the base counts by its contents, not by its path
        settings = self.settings | {"base_model_name_or_path": self.base.fingerprint}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        add_weights(digest, self.folder)
        return digest.hexdigest()[:16]

    @cached_property
    def whole_fingerprint(self) -> str:
        """Return the fingerprint of the whole model in this folder; a hub name stands for itself."""
        return weights_digest(self.folder) if self.folder.is_dir() else self.path

    def record_text(self, target: Location) -> str:
        """Return what RECORD holds in an export that is stored at `target` and was trained on this whole model."""
        path = absolute_path(self.path)
        record = BaseRecord(path, relative_path(path, target), self.whole_fingerprint)
        return json.dumps({"base": asdict(record)}, indent=2)


def find_base(export: str, named: str) -> ModelDir:
    """Return an export's base, which had the path `named` when the export was written.

    With a record, only a model that has its fingerprint counts. Without one, the first place that holds a model does. If
    there is none, the result is at `named`: a hub name, or a path that `require_base` refuses.
    """
    record = read_record(export)
    for path in base_candidates(export, named, record):
        candidate = ModelDir(path)
        if record is None or _has_fingerprint(candidate, record.fingerprint):
            return candidate
    return ModelDir(named)


def _has_fingerprint(model: ModelDir, fingerprint: str) -> bool:
    # a candidate may be half a model, or a bucket out of reach: then the next one is tried
    try:
        return model.whole_fingerprint == fingerprint
    except OSError:
        return False


def same_model(first: str, second: str) -> bool:
    """Return whether two paths, URIs or hub names hold the same model, however each is spelt and wherever it is stored."""
    return first == second or ModelDir(first).fingerprint == ModelDir(second).fingerprint
