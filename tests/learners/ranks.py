"""Learner ranks for tests: processes that stay up, joined by gloo, in which a test runs its functions."""

from __future__ import annotations

import importlib.util
import inspect
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from cluster.env import actor_env
from rlaif.config.cluster import Cluster, RoleResources
from rlaif.config.schema import Lora, Model, Optim
from rlaif.errors import DataError
from rlaif.models.encode import Encoded, Encoder
from rlaif.records import Prompt, Sample
from rlaif.video.spec import FrameSpec

TEXT = "a red green blue circle square triangle moves left right up down and what do you see describe the video . ? : context"
WORDS = TEXT.split()
LORA = Lora(r=4, alpha=8)
PATIENCE_S = 240.0


class Ranks:
    """A group of `world` processes; `run` calls one function on all of them and returns the result of each."""

    def __init__(self, world: int):
        self.world = world
        self._processes: list = []
        self._pipes: list[Connection] = []

    def run(self, function: Callable, **kwargs: Any) -> list:
        """Run `function(**kwargs)`, of a test module, on every rank. Raises AssertionError with a rank's traceback."""
        self._start()
        for pipe in self._pipes:
            pipe.send((inspect.getfile(function), function.__name__, kwargs))
        answers = self._collect()
        failed = [text for ok, text in answers.values() if not ok]
        if failed:
            self.stop()  # the other ranks may be waiting in a collective
            raise AssertionError("\n".join(failed))
        return [answers[rank][1] for rank in range(self.world)]

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        if self._processes:
            return
        context, port = multiprocessing.get_context("spawn"), _free_port()
        for rank in range(self.world):
            mine, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, rank, self.world, port), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(mine)

    def _collect(self) -> dict[int, tuple[bool, Any]]:
        """Return answers by rank, as soon as all are there or one is a failure."""
        answers: dict[int, tuple[bool, Any]] = {}
        deadline = time.monotonic() + PATIENCE_S
        while len(answers) < self.world and all(ok for ok, _ in answers.values()):
            waiting = [pipe for rank, pipe in enumerate(self._pipes) if rank not in answers]
            ready = multiprocessing.connection.wait(waiting, max(0.0, deadline - time.monotonic()))
            if not ready:
                self.stop()
                raise AssertionError(f"no answer within {PATIENCE_S:.0f} s; answered so far: {sorted(answers)}")
            for pipe in ready:
                rank = self._pipes.index(pipe)
                try:
                    answers[rank] = pipe.recv()
                except EOFError:
                    answers[rank] = (False, f"rank {rank} died")
        return answers


def serve(pipe: Connection, rank: int, world: int, port: int) -> None:
    """Join the group, then run the functions that arrive through the pipe until it is closed."""
    settings = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in settings.items()} | actor_env())
    import torch

    from learners.worker import join_ranks

    torch.set_num_threads(1)
    join_ranks(torch.device("cpu"), timedelta(minutes=30))
    modules: dict[str, Any] = {}
    while True:
        try:
            path, name, kwargs = pipe.recv()
        except EOFError:  # the tests are over
            return
        try:
            if path not in modules:
                modules[path] = _load(path)
            pipe.send((True, getattr(modules[path], name)(**kwargs)))
        except BaseException:
            pipe.send((False, f"rank {rank}:\n{traceback.format_exc()}"))


def _load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"on_rank_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _free_port() -> int:
    from cluster.remote import free_port

    return free_port()


class NoiseFrames:
    """Videos of noise: the name decides the pixels. A name with `broken` in it cannot be decoded."""

    def spec(self, video: str) -> FrameSpec:
        if "broken" in video:
            raise DataError("a video that decodes", "garbage", "the file")
        return FrameSpec(f"{video:0>64}", tuple(range(0, 24, 3)), 56, 56, 8.0, 24)

    def get(self, video: str, spec: FrameSpec) -> np.ndarray:
        frames = np.random.default_rng([ord(letter) for letter in video]).integers(
            0, 255, (8, 56, 56, 3), dtype=np.uint8
        )
        frames.setflags(write=False)
        return frames


def model(**changes: Any) -> Model:
    return Model(**{"dtype": "float32", "device": "cpu"} | changes)


def cluster(zero_stage: int = 2) -> Cluster:
    return Cluster(zero_stage=zero_stage, learner=RoleResources(actors=2))


def shard_above(elements: int) -> None:
    """Set the size up to which ZeRO-3 keeps tensors whole on every rank: 100,000 by default, and a tiny model has no larger."""
    from learners import roles

    usual = getattr(roles._deepspeed_config, "usual", roles._deepspeed_config)

    def config(*args):
        settings = usual(*args)
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = elements
        return settings

    config.usual = usual
    roles._deepspeed_config = config


def plain_optim(**changes: Any) -> Optim:
    """Return AdamW with a large eps: a step is then about lr times the gradient, and a gradient wrong by a factor shows."""
    return Optim(**{"lr": 1.0, "eps": 1.0, "betas": (0.9, 0.95), "max_grad_norm": 1e9} | changes)


def responses(encoder: Encoder, count: int, seed: int = 0) -> list[Encoded]:
    """Return sequences about different videos, with answers of different lengths."""
    from dataclasses import replace

    rng = np.random.default_rng(seed)
    items = []
    for number in range(count):
        length = int(rng.integers(3, 12))
        ids = [*rng.integers(11, 11 + len(WORDS), length), encoder.eos_id]
        question = " ".join(rng.choice(WORDS, int(rng.integers(2, 9))))
        item = encoder.prompt_and_response(question, ids, encoder.video(f"clip{number}"))
        targets = {name: rng.normal(size=len(ids)).astype(np.float32) for name in ("returns", "values")}
        items.append(replace(item, extras=targets))
    return items


def full(parameter: Any) -> np.ndarray:
    """Return a parameter as one array, also if ZeRO-3 has sharded it. Collective."""
    import deepspeed

    if not hasattr(parameter, "ds_id"):
        return parameter.detach().float().cpu().numpy().copy()
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().float().cpu().numpy().copy()


def answer(encoder: Encoder, number: int, ids: Any, logprobs: Any, version: int = 0) -> Sample:
    """Return sample `number` of an iteration with two answers per prompt, answered by `ids`; each prompt has its own clip."""
    prompt = Prompt(f"p{number // 2}", f"clip{number // 2}", "what do you see ?")
    features = encoder.video(prompt.video)
    prompt_ids = encoder.prompt_and_response(prompt.question, [], features).ids.astype(np.int32)
    ids = np.asarray(ids, np.int32)
    return Sample(
        prompt,
        sample_index=number % 2,
        frames_hash=features.spec.hash,
        visual_tokens=features.visual_tokens,
        prompt_ids=prompt_ids,
        response_ids=ids,
        logprobs=np.asarray(logprobs, np.float32),
        response=encoder.text(ids),
        finish_reason="stop",
        policy_version=version,
    )


def weights(role: Any) -> dict[str, np.ndarray]:
    """Return a role's trained weights by name. Collective."""
    return {name: full(parameter) for name, parameter in role.trainable().items()}
