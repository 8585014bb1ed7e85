"""The store of visual features: who computes, who waits, what is stored; without Ray, then as Ray runs it."""

from __future__ import annotations

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import ray
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from actors.feature_store import FeatureStore, start_feature_store
from actors.features import FeatureClient
from rlaif.models.vision import Features

KEY, OTHER = ("tower", "video"), ("tower", "another video")


def features(value: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> Features:
    """Return features of 4 visual tokens of width 8."""
    parts = (torch.full((4, 8), value, dtype=dtype),)
    output = BaseModelOutputWithPooling(pooler_output=parts)
    return Features(*KEY, "video", output)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def local(clock):
    """Return the store's body, which stores the entries themselves."""
    return FeatureStore(store_bytes=130, patience_s=10, put=lambda entry: entry, clock=clock)


def test_first_client_computes_and_others_wait_until_its_claim_expires(local, clock):
    assert local.ask(KEY) == ([], True)
    clock.now += 9
    assert local.ask(KEY) == ([], False) and local.ask(OTHER) == ([], True)
    clock.now += 2  # whoever had the claim must be gone
    assert local.ask(KEY) == ([], True)
    assert local.ask(KEY) == ([], False)
    local.release(KEY)
    assert local.ask(KEY) == ([], True)
    local.put(KEY, {"it": 1}, 64)
    local.put(KEY, {"it": 2}, 64)  # the one who was thought gone
    assert local.ask(KEY) == ([{"it": 1}], False)
    counters = local.counters()
    assert (counters["passes"], counters["keys"], counters["hits"]) == (2, 2, 1) and counters["bytes"] == 64


def test_least_recently_used_features_are_evicted_and_computed_again(local):
    for name in "abc":
        local.ask(("t", name))
        local.put(("t", name), {}, 64)
        local.ask(("t", "a"))
    assert local.counters()["bytes"] == 128
    assert local.ask(("t", "a"))[0] and local.ask(("t", "c"))[0]
    assert local.ask(("t", "b")) == ([], True)
    local.put(("t", "b"), {}, 64)
    assert local.counters()["passes_per_key"] == pytest.approx(4 / 3)
    local.lost(("t", "b"), [{}])
    assert local.ask(("t", "b")) == ([], True)


def test_passes_of_all_processes_and_the_engine_count(local):
    local.ask(KEY)
    local.put(KEY, {}, 64)
    local.seen([("policy", "video"), ("policy", "video")])
    assert local.counters()["passes_per_key"] == 1.5
    local.engine(2, ["video", "another video"])  # its tower is that of another role
    assert (local.counters()["passes"], local.counters()["keys"]) == (5, 3)
    local.ask(OTHER)
    assert local.counters()["keys"] == 3
    local.begin()
    assert local.counters()["keys"] == local.counters()["passes"] == local.counters()["hits"] == 0
    local.ask(KEY)
    assert local.counters()["passes_per_key"] == 1  # computed before, and still the only pass


@pytest.fixture(scope="module")
def cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 1024**2)
    yield
    ray.shutdown()


@pytest.fixture
def store(cluster):
    actor = start_feature_store(2**20)
    yield actor
    ray.kill(actor)


@ray.remote(num_cpus=0)
class Role:
    """Another process; it computes features filled with `value`."""

    def get(self, store, key, value, seconds=0.0, **options):
        def compute():
            time.sleep(seconds)
            return features(value)

        return FeatureClient(store, **options).get(key, compute).output["pooler_output"][0].float().numpy()

    def fail(self, store, key):
        return FeatureClient(store).get(key, lambda: 1 / 0)

    def claim_and_die(self, store, key):
        FeatureClient(store).get(key, lambda: os._exit(1))


@pytest.fixture(scope="module")
def roles(cluster):
    return [Role.remote() for _ in range(2)]


def test_one_of_two_concurrent_processes_computes(store, roles):
    one, other = ray.get([role.get.remote(store, KEY, value, 0.5) for role, value in zip(roles, (1, 2), strict=True)])
    assert np.array_equal(one, other)
    counters = ray.get(store.counters.remote())
    assert (counters["passes"], counters["keys"], counters["hits"]) == (1, 1, 1)


def test_fetched_features_are_bit_equal_and_writable(store):
    one, other = FeatureClient(store), FeatureClient(store)
    computed = features()
    computed.output["pooler_output"][0].copy_(torch.randn(4, 8))
    one.get(KEY, lambda: computed)
    fetched = other.get(KEY, lambda: pytest.fail("computed again"))
    tensor = fetched.output["pooler_output"][0]
    assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, computed.output["pooler_output"][0])
    assert type(fetched.output) is type(computed.output) and type(fetched.output["pooler_output"]) is tuple
    assert (fetched.tower, fetched.spec, fetched.kind, fetched.shape) == (*KEY, "video", (4, 8))
    tensor.zero_()
    assert torch.equal(other.get(KEY, features).output["pooler_output"][0], computed.output["pooler_output"][0])


def test_failed_or_dead_claim_does_not_block_and_stored_features_outlive_their_process(store, roles):
    one, fleeting = roles[0], Role.remote()
    with pytest.raises(ray.exceptions.RayTaskError, match="ZeroDivisionError"):
        ray.get(fleeting.fail.remote(store, KEY))
    began = time.monotonic()
    assert ray.get(fleeting.get.remote(store, KEY, 1.0))[0, 0] == 1 and time.monotonic() - began < 30
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(fleeting.claim_and_die.remote(store, OTHER))
    assert ray.get(one.get.remote(store, OTHER, 2.0, patience_s=1.0))[0, 0] == 2  # the claim is still there
    assert ray.get(one.get.remote(store, KEY, 2.0))[0, 0] == 1


def test_dead_store_costs_a_pass_but_not_the_run(cluster, caplog):
    store = start_feature_store(2**20, {"max_restarts": 0, "max_task_retries": 0})
    client = FeatureClient(store, patience_s=5)
    ray.kill(store)
    with caplog.at_level(logging.WARNING):
        assert client.get(KEY, features).shape == (4, 8)
    assert "feature store" in caplog.text


def test_without_sharing_each_process_computes_and_counts(store):
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: FeatureClient(store, share=False).get(KEY, features), range(2)))
    assert ray.get(store.counters.remote())["passes_per_key"] == 2
