"""Judges: a model on vLLM, or a model behind a server. Both answer the same two kinds of question."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Protocol

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
"""Bytes of English text per token, about: an estimate for caption budgets, since a server's tokenizer is not known."""
SPENT = "judge/spent.json"
"""The file below the run directory that records what counts against the budgets of servers."""
SAVE_INTERVAL_S = 5.0
"""Seconds between two writes of that file: a run that is killed loses at most what it spent meanwhile."""
CACHED_VIDEOS = 4
"""Videos whose encoded frames are cached while consecutive questions are about them."""


@dataclass(frozen=True)
class Question:
    """One question to a judge. Keys are unique within a call."""

    key: str
    text: str
    video: str = ""
    """The video that is shown with the text; empty: none."""
    other: str = ""
    """A second video, which is shown after the first; only servers can see one."""


Choices = dict[str, Tokens | Masked]
"""Log-probs of words by the key of a question."""
Texts = dict[str, str | Masked]
"""Replies by the key of a question."""


class Judge(Protocol):
    """Answers questions about texts and videos."""

    name: str
    """What records call the judge: a model with its fingerprint, or a server's model."""

    def choose(self, questions: Sequence[Question], words: Sequence[str]) -> Choices:
        """Return, by key, the log-probs of each of `words` as the first word of the reply."""

    def write(self, questions: Sequence[Question]) -> Texts:
        """Return the replies by key."""

    def count(self, text: str) -> int:
        """Return the number of tokens of a text; an estimate if the judge's tokenizer is not known."""

    def replies(self) -> list[tuple[str, dict]]:
        """Return (key, record of model, prompt hash, tokens, ...) of every reply of a server since the last call."""

    def spent(self) -> dict[str, dict]:
        """Return what a server's replies cost, as `this_command` and `this_run`; empty for a model on rollout actors."""


class ModelJudge:
    """A model on the rollout actors, without any training: the policy itself, a peer, or a larger model."""

    def __init__(self, config: Config, run: Run, model: str):
        base = require_model("label.judge", model, or_adapter=True).base
        self.name = judge_name(model)
        self._config, self._run, self._model = config, run, model
        self._frames = judge_frames(config, run.topology.client())
        self._encoder = Encoder(base.location)

    def choose(self, questions: Sequence[Question], words: Sequence[str]) -> Choices:
        outcomes: Choices = {}
        pool = self._pool()
        pool.submit_choices("judge", self._prompts(questions), words)
        for answers in pool.results("judge", self._config.cluster.collective_timeout_s):
            for choice in answers.samples:
                logprobs = [float(value) for value in choice.logprobs]
                outcomes[choice.prompt.prompt_id] = list(zip(words, logprobs, strict=True))
            for failure in answers.failures:
                outcomes[failure.prompt_id] = Masked(failure.reason)
        return outcomes

    def write(self, questions: Sequence[Question]) -> Texts:
        outcomes: Texts = {}
        pool = self._pool()
        seed = derive(self._config.seed, "judge")
        # Greedy: the same answer always has the same claims.
        greedy = Sampling(temperature=0.0, max_tokens=self._config.label.split_tokens)
        pool.submit("judge", self._prompts(questions), 1, seed, greedy)
        for answers in pool.results("judge", self._config.cluster.collective_timeout_s):
            for sample in answers.samples:
                outcomes[sample.prompt.prompt_id] = _whole_list(sample, greedy.max_tokens)
            for failure in answers.failures:
                outcomes[failure.prompt_id] = Masked(failure.reason)
        return outcomes

    def count(self, text: str) -> int:
        return len(self._encoder.tokens(text))

    def replies(self) -> list[tuple[str, dict]]:
        return []

    def spent(self) -> dict[str, dict]:
        return {}

    def _prompts(self, questions: Sequence[Question]) -> list[Prompt]:
        prompts = []
        for question in questions:
            frames = self._frames(question.video)
            prompts.append(Prompt(question.key, question.video, question.text, frames=frames))
        return prompts

    def _pool(self) -> RolloutPool:
        return self._run.topology.engines(self._model)


ReadReply = Callable[[Reply], Any]
"""Takes what a question is about from a reply."""


class ServerJudge:
    """A model behind an OpenAI-compatible server. Videos are sent as their frames, in JPEG."""

    def __init__(self, config: Config, run: Run, server: Server):
        self.name = judge_name(server)
        self._server = server
        self._client = run.topology.client()
        # All parts of a study share the budget and the cached replies.
        self._directory = run.shared
        self._frames = judge_frames(config, self._client)
        self._account = f"{server.model} at {server.origin or server.address}"
        self._saved_at = 0.0
        self._replies: list[tuple[str, dict]] = []
        cache = str(self._directory.path / "judge" / "replies")
        options = EndpointOptions(server, max_tokens=config.label.split_tokens, cache=cache)
        used = Usage(**self._ledger().get(self._account, {}))
        self._endpoint = Endpoint(options, used, self._save)

    def choose(self, questions: Sequence[Question], words: Sequence[str]) -> Choices:
        return self._ask(questions, tuple(words), lambda reply: reply.first)

    def write(self, questions: Sequence[Question]) -> Texts:
        return self._ask(questions, (), lambda reply: reply.text)

    def count(self, text: str) -> int:
        return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)

    def replies(self) -> list[tuple[str, dict]]:
        replies, self._replies = self._replies, []
        return replies

    def spent(self) -> dict[str, dict]:
        used = self._endpoint.used
        this_run = {**asdict(used), "cost": cost(self._server, used)}
        return {"this_command": self._endpoint.spent(), "this_run": this_run}

    def _ask(self, questions: Sequence[Question], words: tuple[str, ...], value: ReadReply) -> dict[str, Any]:
        """Return the value of each reply by key; failures are masked.

        What the model itself declined stays masked; every other failure may be asked about again.
        """
        requests = _Requests(questions, words, self._images)
        try:
            replies = self._endpoint.ask_many(requests)
        finally:
            # What was spent counts against the budget even if asking ended with an error.
            self._save(self._endpoint.used, at_once=True)
        outcomes: dict[str, Any] = dict(requests.unreadable)
        for reply in replies:
            outcomes[reply.key] = value(reply) if isinstance(reply, Reply) else _masked(reply)
            record = reply.record()
            if record:
                self._replies.append((reply.key, record))
        return outcomes

    def _images(self, video: str) -> tuple[bytes, ...]:
        if not video:
            return ()
        frames, spec = self._frames(video), self._client.spec(video)
        pixels = self._client.get(video, spec.part(frames) if frames else spec)
        return encode_frames(pixels, jpeg_quality=90)

    def _save(self, used: Usage, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self._saved_at >= SAVE_INTERVAL_S:
            # Read again, since other judges of this run have accounts in the same file.
            ledger = self._ledger() | {self._account: asdict(used)}
            self._directory.write_json(SPENT, ledger)
            self._saved_at = time.monotonic()

    def _ledger(self) -> dict[str, dict[str, int]]:
        """Return the tokens of all commands of this run so far, by the account of the server."""
        return self._directory.read_json(SPENT) or {}


class _Requests:
    """The requests for some questions, with their frames, which are read as the requests are taken."""

    def __init__(self, questions: Sequence[Question], words: tuple[str, ...], images: Callable[[str], tuple]):
        self._questions, self._words = questions, words
        # Consecutive questions are about one video, so that a few videos are enough.
        self._images = lru_cache(CACHED_VIDEOS)(images)
        self.unreadable: dict[str, Masked] = {}
        """Questions whose video could not be read, by key; there is no request for them."""

    def __iter__(self) -> Iterator[ChatRequest]:
        for question in self._questions:
            try:
                images = self._images(question.video) + self._images(question.other)
            except DataError as error:
                self.unreadable[question.key] = Masked(str(error))
                continue
            turn = Turn(question.text, images=images)
            yield ChatRequest(question.key, (turn,), self._words)


def judge_name(judge: str | Server | Function) -> str:
    """Return the name that labels record: a model with its fingerprint, a server's model, or a function's path."""
    if isinstance(judge, Function):
        return judge.path
    if isinstance(judge, Server):
        return f"{judge.model} at {judge.origin or judge.url}"
    return f"{judge}@{ModelDir(judge).fingerprint}"


def make_judge(config: Config, run: Run, judge: str | Server) -> Judge:
    """Return the judge that `label.judge` names."""
    if isinstance(judge, Server):
        return ServerJudge(config, run, judge)
    return ModelJudge(config, run, judge)


def _whole_list(sample: Sample, limit: int) -> str | Masked:
    """Return the reply; one that was cut is masked, because its answer would be judged without the claims at the end."""
    if sample.finish_reason != "length":
        return sample.response
    length = len(sample.response_ids)
    # Shorter than its own limit: the engine's context was full.
    option = "label.split_tokens" if length >= limit else "rollout.max_model_len"
    return Masked(f"cut: the list was cut at {length} tokens, {option}")


def _masked(outcome: Unanswered) -> Masked:
    return Masked(f"{outcome.kind}: {outcome.reason}", again=outcome.kind not in SETTLED)


FrameNumbers = Callable[[str], tuple[int, ...]]
"""Takes a video; returns native numbers of frames."""


def judge_frames(config: Config, client: FrameClient | LocalFrames) -> FrameNumbers:
    """Return a function that gives the native numbers of the frames of a video that the judge sees.

    It gives none if `label.num_frames` is not set, so that the judge sees the same frames as everything else, and none
    for a video that cannot be used: the code that reads its frames reports why.
    """
    count = config.label.num_frames

    def numbers(video: str) -> tuple[int, ...]:
        if not video or not count:
            return ()
        try:
            return client.spec(video).sparse(count)
        except DataError:
            return ()

    return numbers


def frames_shown(config: Config) -> int:
    """Return how many frames of a video the judge sees."""
    return config.label.num_frames or config.video.num_frames
