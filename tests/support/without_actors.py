"""Stand-ins for a run's actors in this process, to test the logic of stages without a cluster."""

from __future__ import annotations

from actors.frames import LocalFrames
from rlaif.functions import FunctionScorer
from rlaif.models.reward import ModelScorer


class Rewards:
    """A reward pool in this process; it scores at once."""

    def __init__(self, config, reward, frames, tokens, weights):
        self.calls = 0
        self.scorer = (
            ModelScorer(reward, frames, config.model, tokens, 2**20, weights=weights)
            if isinstance(reward, str)
            else FunctionScorer(reward.path)
        )

    def wait_ready(self):
        pass

    def score(self, answers):
        self.calls += 1
        return self.scorer(answers)

    def collect(self, batches):
        outcomes = {}
        for batch in batches:
            outcomes |= batch
        return outcomes


class NoActors:
    def __init__(self, config):
        self.config, self.pool = config, None

    def client(self):
        return LocalFrames(self.config.data.root, self.config.video.num_frames)

    def rewards(self, reward, tokens, weights=None, *, timeout_s):
        self.pool = Rewards(self.config, reward, self.client(), tokens, weights)
        return self.pool

    def stop_rewards(self):
        pass


class NoTopology:
    """Fails on any use but probing videos: a fault found earlier must not have started an actor with a model."""

    def __init__(self, config):
        self.client = lambda: LocalFrames(config.data.root, config.video.num_frames)

    def __getattr__(self, name):
        raise AssertionError(f"an actor was asked for ({name}) before the input was checked")
