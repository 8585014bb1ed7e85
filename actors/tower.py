"""The rollout actor's own tower: it computes the features that its engine receives instead of frames."""

from __future__ import annotations

import torch

from cluster.publish import Manifest
from rlaif.errors import ContractError
from rlaif.models.family import engine_video_of, family_of
from rlaif.models.model_dir import ModelDir
from rlaif.models.video_features import VideoFeatures
from rlaif.models.vision import SharedFeatures, VisionCache, tower_key, tower_output
from rlaif.models.vlm import load_tower

CACHE_BYTES = 256 * 1024**2
CPU = torch.device("cpu")
"""The device that the engine takes features from."""


class FrozenTower:
    """Tower and projector of a model directory, on the engine's device and in its dtype. They stay as they are."""

    def __init__(self, path: str, dtype: str, shared: SharedFeatures | None = None):
        """Load the tower without its language model.

        Raises ConfigError for a family whose features vLLM does not take.
        """
        self._engine_video = engine_video_of(ModelDir(path).config)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_tower(path, dtype).to(self.device)
        # other roles compute the same key from their whole model, if their tower is the same
        self.key = tower_key(self.model)
        self.cache = VisionCache(CACHE_BYTES, shared)

    def video(self, video: VideoFeatures, fresh: bool = False) -> dict:
        """Return a video as vLLM takes it with `enable_mm_embeds`.

        fresh: compute the features here and now, whatever is stored anywhere.
        Raises ContractError if shared features are another tower's, or of another video.
        """
        if fresh:
            features = tower_output(self.model, self.key, video, self.device)
        else:
            features = self.cache.for_video(self.model, self.key, video, self.device, keep_on=CPU)
        return self._engine_video(features.to(CPU).output, video, self.model.config)

    def check_published(self, manifest: Manifest) -> None:
        """Check that full weights about to be published have this very tower: a tower that trains needs pixels.

        Raises:
            ContractError: naming the first tensor that differs.
        """
        if manifest.kind != "full":
            return  # adapters are on the language model only
        family, different = family_of(self.model.config), []
        for own_name, parameter in self.model.named_parameters():
            name = family.engine_name(own_name)
            if name in manifest.tensors and not manifest.holds(name, parameter):
                different.append(name)
        if different:
            raise ContractError(
                "the published vision tower and projector to be those that the engine's features come from",
                f"{different[0]!r} differs ({len(different)} tensors in all) in version {manifest.version}",
                "Set rollout.vision=engine if they train.",
            )
