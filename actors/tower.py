"""The rollout actor's own tower: where the engine is handed features, it computes those that nobody has yet."""

from __future__ import annotations

import torch
import transformers

from cluster.publish import Manifest
from rlaif.errors import ContractError
from rlaif.io.storage import fetch
from rlaif.models.encode import VideoFeatures
from rlaif.models.family import engine_video_of, family_of
from rlaif.models.vision import Shared, VisionCache, tower_key, tower_output
from rlaif.models.vlm import load_tower

CACHE_BYTES = 256 * 1024**2
CPU = torch.device("cpu")
"""Where the engine takes features from."""


class FrozenTower:
    """Tower and projector of a model directory, on the engine's device and in its dtype. They stay as they are."""

    def __init__(self, path: str, dtype: str, shared: Shared | None = None):
        """Raises ConfigError for a family whose features vLLM does not take."""
        self._as_engine_takes_it = engine_video_of(transformers.AutoConfig.from_pretrained(fetch(path)))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_tower(path, dtype).to(self.device)
        self.key = tower_key(self.model)
        self.cache = VisionCache(CACHE_BYTES, shared)

    def video(self, video: VideoFeatures, fresh: bool = False) -> dict:
        """A video as vLLM takes it with `enable_mm_embeds`.

        fresh: computed here and now, whatever is kept anywhere.
        Raises ContractError where shared features are another tower's, or of another video.
        """
        features = (
            tower_output(self.model, self.key, video, self.device)
            if fresh
            else self.cache.one(self.model, self.key, video, self.device, keep_on=CPU)
        )
        return self._as_engine_takes_it(features.to(CPU).output, video, self.model.config)

    def check_published(self, manifest: Manifest) -> None:
        """Full weights that are about to be published hold this very tower: a tower that trains needs pixels.

        Raises:
            ContractError: naming the first tensor that differs.
        """
        if manifest.kind != "full":
            return
        family, apart = family_of(self.model.config), []
        for here, parameter in self.model.named_parameters():
            name = family.engine_name(here)
            if name in manifest.tensors and not manifest.holds(name, parameter):
                apart.append(name)
        if apart:
            raise ContractError(
                "the published vision tower and projector to be those that the handed features come from",
                f"{apart[0]!r} differs ({len(apart)} tensors in all) in version {manifest.version}",
                "Set rollout.vision=engine if they train",
            )
