"""Who is asked for feedback: a model on vLLM, or one behind a server. Both answer the same two kinds of question."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Protocol

from actors.frames import FrameClient, LocalFrames
from actors.pool import RolloutPool
from rlaif.config.schema import Config, Sampling
from rlaif.config.section import Function
from rlaif.config.server import Server
from rlaif.errors import DataError
from rlaif.feedback.budget import cost
from rlaif.feedback.chat_request import ChatRequest, EndpointOptions, Turn, encode_frames
from rlaif.feedback.chat_response import SETTLED, Reply, Unanswered, Usage
from rlaif.feedback.endpoint import Endpoint
from rlaif.feedback.tokens import Tokens
from rlaif.models.check import require_model
from rlaif.models.encode import Encoder
from rlaif.models.model_dir import ModelDir
from rlaif.records import Masked, Prompt, Sample
from rlaif.seeds import derive
from rlaif.stages.run.run import Run

BYTES_PER_TOKEN = 4
"""Of English, about: for the budget of captions in front of a server, whose tokenizer is not known."""
SPENT = "judge/spent.json"
"""What counts against the budgets of servers, below the run directory."""
KEEP_S = 5.0
"""Seconds between two writes of it: what a killed run took meanwhile is not known to the next one."""
VIDEOS_HELD = 4
"""Videos whose frames are kept as they are sent, while questions about them follow each other."""


@dataclass(frozen=True)
class Question:
    """What a judge is asked. Keys are unique within a call."""

    key: str
    text: str
    video: str = ""
    """Shown with it; empty: none."""
    other: str = ""
    """A second video, shown after it: to a server only."""


class Judge(Protocol):
    name: str
    """What records call it: a model with its fingerprint, or a server's model."""

    def choose(self, questions: Sequence[Question], words: Sequence[str]) -> dict[str, Tokens | Masked]:
        """By key: log-probs of the words as the first of the reply."""

    def write(self, questions: Sequence[Question]) -> dict[str, str | Masked]:
        """By key: the reply."""

    def count(self, text: str) -> int:
        """Tokens of a text, or an estimate where the judge's tokenizer is not known."""

    def replies(self) -> list[tuple[str, dict]]:
        """(key of the question, model, prompt hash, tokens, ...) of all that a server said since this was last called."""

    def spent(self) -> dict[str, dict]:
        """What asking a server has taken, `this_command` and `this_run`; nothing for a model on the rollout actors."""


class ModelJudge:
    """A model on the rollout actors, as it stands: the policy itself, a peer, or a larger one."""

    def __init__(self, config: Config, run: Run, model: str):
        base = require_model("label.judge", model, or_adapter=True).base
        self.name = name_of(model)
        self._config, self._run, self._model = config, run, model
        self._frames = frames_of(config, run.topology.client())
        self._encoder = Encoder(base.location)

    def choose(self, questions: Sequence[Question], words: Sequence[str]) -> dict[str, Tokens | Masked]:
        found: dict[str, Tokens | Masked] = {}
        pool = self._pool()
        pool.submit_choices("judge", self._prompts(questions), words)
        for answers in pool.results("judge", self._config.cluster.collective_timeout_s):
            for choice in answers.samples:
                logprobs = [float(value) for value in choice.logprobs]
                found[choice.prompt.prompt_id] = list(zip(words, logprobs, strict=True))
            found |= {failure.prompt_id: Masked(failure.reason) for failure in answers.failures}
        return found

    def write(self, questions: Sequence[Question]) -> dict[str, str | Masked]:
        found: dict[str, str | Masked] = {}
        pool, seed = self._pool(), derive(self._config.seed, "judge")
        whole = Sampling(temperature=0.0, max_tokens=self._config.label.split_tokens)
        pool.submit("judge", self._prompts(questions), 1, seed, whole)
        for answers in pool.results("judge", self._config.cluster.collective_timeout_s):
            found |= {sample.prompt.prompt_id: _whole(sample, whole.max_tokens) for sample in answers.samples}
            found |= {failure.prompt_id: Masked(failure.reason) for failure in answers.failures}
        return found

    def count(self, text: str) -> int:
        return len(self._encoder.tokens(text))

    def replies(self) -> list[tuple[str, dict]]:
        return []

    def spent(self) -> dict[str, dict]:
        return {}

    def _prompts(self, questions: Sequence[Question]) -> list[Prompt]:
        return [Prompt(one.key, one.video, one.text, frames=self._frames(one.video)) for one in questions]

    def _pool(self) -> RolloutPool:
        return self._run.topology.engines(self._model)


class ServerJudge:
    """A model behind an OpenAI-compatible server. Videos go as their frames, JPEG."""

    def __init__(self, config: Config, run: Run, server: Server):
        cache = str(run.shared.path / "judge" / "replies")
        self.name, self._client, self._directory = name_of(server), run.topology.client(), run.shared
        self._frames = frames_of(config, self._client)
        options = EndpointOptions(server, max_tokens=config.label.split_tokens, cache=cache)
        self._server, self._account, self._kept = server, f"{server.model} at {server.origin or server.address}", 0.0
        self._endpoint = Endpoint(options, Usage(**self._ledger().get(self._account, {})), self._keep)
        self._replies: list[tuple[str, dict]] = []

    def choose(self, questions: Sequence[Question], words: Sequence[str]) -> dict[str, Tokens | Masked]:
        return self._asked(questions, tuple(words), lambda reply: reply.first)

    def write(self, questions: Sequence[Question]) -> dict[str, str | Masked]:
        return self._asked(questions, (), lambda reply: reply.text)

    def count(self, text: str) -> int:
        return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)

    def replies(self) -> list[tuple[str, dict]]:
        told, self._replies = self._replies, []
        return told

    def spent(self) -> dict[str, dict]:
        used = self._endpoint.used
        so_far = {**asdict(used), "cost": cost(self._server, used)}
        return {"this_command": self._endpoint.spent(), "this_run": so_far}

    def _asked(self, questions: Sequence[Question], words: tuple[str, ...], read: Callable) -> dict:
        """What the model itself declined stays masked; everything else that went wrong may be asked again."""
        found: dict = {}
        try:
            outcomes = self._endpoint.ask_many(self._asks(questions, words, found))
        finally:
            self._keep(self._endpoint.used, at_once=True)
        for outcome in outcomes:
            found[outcome.key] = read(outcome) if isinstance(outcome, Reply) else _masked(outcome)
            if record := outcome.record():
                self._replies.append((outcome.key, record))
        return found

    def _asks(self, questions: Sequence[Question], words: tuple[str, ...], found: dict) -> Iterator[ChatRequest]:
        """With their frames, read as they are taken; a question whose video cannot be read goes to `found`."""
        images = lru_cache(VIDEOS_HELD)(self._images)  # neighbours are about one video
        for question in questions:
            try:
                shown = images(question.video) + images(question.other)
            except DataError as error:
                found[question.key] = Masked(str(error))
                continue
            yield ChatRequest(question.key, (Turn(question.text, images=shown),), words)

    def _images(self, video: str) -> tuple[bytes, ...]:
        if not video:
            return ()
        frames, spec = self._frames(video), self._client.spec(video)
        return encode_frames(self._client.get(video, spec.part(frames) if frames else spec), jpeg_quality=90)

    def _keep(self, used: Usage, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self._kept >= KEEP_S:
            self._directory.write_json(SPENT, self._ledger() | {self._account: asdict(used)})
            self._kept = time.monotonic()

    def _ledger(self) -> dict[str, dict[str, int]]:
        """Tokens by the name of who was asked, in all commands of this run so far."""
        return self._directory.read_json(SPENT) or {}


def name_of(judge: str | Server | Function) -> str:
    """What labels are known by: a model with its weights, a server's model, or a function."""
    if isinstance(judge, Function):
        return judge.path
    return (
        f"{judge.model} at {judge.origin or judge.url}"
        if isinstance(judge, Server)
        else f"{judge}@{ModelDir(judge).fingerprint}"
    )


def make_judge(config: Config, run: Run, judge: str | Server) -> Judge:
    return ServerJudge(config, run, judge) if isinstance(judge, Server) else ModelJudge(config, run, judge)


def _whole(sample: Sample, limit: int) -> str | Masked:
    """A list that was cut would be judged without its end."""
    if sample.finish_reason != "length":
        return sample.response
    length = len(sample.response_ids)
    option = "label.split_tokens" if length >= limit else "rollout.max_model_len"
    return Masked(f"cut: the list was cut at {length} tokens, {option}")


def _masked(outcome: Unanswered) -> Masked:
    return Masked(f"{outcome.kind}: {outcome.reason}", again=outcome.kind not in SETTLED)


def frames_of(config: Config, client: FrameClient | LocalFrames) -> Callable[[str], tuple[int, ...]]:
    """Native numbers of the frames of a video that the judge sees; none where `label.num_frames` asks for no others than
    everybody's, or the video cannot be used (whoever shows it says why)."""
    count = config.label.num_frames

    def chosen(video: str) -> tuple[int, ...]:
        try:
            return client.spec(video).sparse(count) if video and count else ()
        except DataError:
            return ()

    return chosen


def frames_shown(config: Config) -> int:
    """How many frames of a video the judge sees."""
    return config.label.num_frames or config.video.num_frames
