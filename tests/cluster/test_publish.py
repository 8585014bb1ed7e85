"""Weights arrive bit by bit; the error for a damaged transfer names the tensor."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.publish import (
    Manifest,
    TensorInfo,
    checksum,
    from_wire,
    pack_weights,
    unpack_weights,
    verify_tensors,
    word_sum,
)
from rlaif.errors import ContractError


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "embed": torch.randn(50, 8),
        "proj": torch.randn(16, 16, dtype=torch.bfloat16),
        "half": torch.randn(4, dtype=torch.float16),
        "strided": torch.randn(6, 10).t(),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
    }


def test_every_dtype_and_layout_arrives_bit_by_bit():
    tensors = weights()
    manifest, buckets = pack_weights(tensors.items(), 1 << 20, version=3)
    manifest, buckets = pickle.loads(pickle.dumps((manifest, buckets)))
    arrays = unpack_weights(manifest, buckets)
    assert list(arrays) == list(tensors) and manifest.version == 3
    assert manifest.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    for name, tensor in tensors.items():
        back = from_wire(arrays[name], manifest.tensors[name].dtype)
        assert back.dtype == tensor.dtype and torch.equal(back, tensor)


def test_full_buckets_are_put_before_the_next_is_filled():
    names_put, counts = [], []

    def tensors():
        for index in range(5):
            counts.append(len(names_put))
            yield f"t{index}", torch.zeros(100)

    def put(bucket):
        names_put.append(list(bucket))
        return len(names_put)

    manifest, buckets = pack_weights(tensors(), 900, version=1, put=put)
    assert names_put == [["t0", "t1"], ["t2", "t3"], ["t4"]] and buckets == [1, 2, 3]
    assert counts == [0, 0, 0, 1, 1], "the next bucket is filled after the last one has been put"
    assert list(manifest.tensors) == ["t0", "t1", "t2", "t3", "t4"]


def test_packed_weights_do_not_change_with_the_tensors():
    tensor = torch.zeros(4)
    manifest, buckets = pack_weights([("w", tensor)], 1 << 20, version=1)
    tensor += 1
    assert unpack_weights(manifest, buckets)["w"].sum() == 0


def test_read_only_arrays_make_tensors_without_a_warning(recwarn):
    array = np.ones(3, np.float32)
    array.flags.writeable = False
    assert from_wire(array, "float32").sum() == 3
    assert not recwarn.list


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda bucket: bucket["proj"].__setitem__((0, 0), bucket["proj"][0, 0] ^ 1), "'proj' with checksum"),
        (lambda bucket: bucket.pop("half"), "'half' missing"),
        (lambda bucket: bucket.update(more=np.zeros(2)), "'more' unexpected"),
        (lambda bucket: bucket.update(embed=bucket["embed"][:-1]), "'embed' as float32"),
        (lambda bucket: bucket.update(embed=bucket["embed"].view(np.int32)), "'embed' as int32"),
    ],
)
def test_unpack_names_the_damaged_tensor(damage, named):
    manifest, (bucket,) = pack_weights(weights().items(), 1 << 20, version=7)
    damage(bucket)
    with pytest.raises(ContractError, match=named) as error:
        unpack_weights(manifest, [bucket])
    assert "version 7" in str(error.value)


def test_unpack_refuses_swapped_tensors():
    same = {"q": torch.ones(3, 3), "k": torch.ones(3, 3)}
    manifest, (bucket,) = pack_weights(same.items(), 1 << 20, version=1)
    assert manifest.tensors["q"].checksum != manifest.tensors["k"].checksum
    swapped = replace(manifest, tensors={"q": manifest.tensors["k"], "k": manifest.tensors["q"]})
    with pytest.raises(ContractError, match="checksum"):
        unpack_weights(swapped, [bucket])


def test_the_checksum_covers_shape_and_dtype():
    array = np.zeros(6, np.uint16)
    sums = {
        checksum("w", "bfloat16", array),
        checksum("w", "uint16", array),
        checksum("w", "bfloat16", array.reshape(2, 3)),
    }
    assert len(sums) == 3


def test_pack_refuses_a_name_that_occurs_twice():
    with pytest.raises(ContractError, match="twice"):
        pack_weights([("w", torch.zeros(2)), ("w", torch.zeros(2))], 1 << 20, version=1)


def described(tensors: dict[str, torch.Tensor]) -> Manifest:
    """Return the manifest of tensors that go from device to device."""
    infos = {}
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        infos[name] = TensorInfo(tuple(tensor.shape), dtype, int(word_sum(tensor)))
    return Manifest(7, "full", infos)


def test_word_sum_is_the_documented_sum_in_any_number_of_parts(monkeypatch):
    golden = 0x9E3779B97F4A7C15
    words = [3, -5, 2**31 - 1, 0, -(2**31)]
    expected = 0
    for index, word in enumerate(words):
        weight = (index * golden % 2**64) | 1
        expected += word * weight
    tensor = torch.tensor(words, dtype=torch.int32).view(torch.float32)
    assert int(word_sum(tensor)) % 2**64 == expected % 2**64
    monkeypatch.setattr("cluster.publish._WORDS_AT_ONCE", 2)
    assert int(word_sum(tensor)) % 2**64 == expected % 2**64
    assert int(word_sum(torch.zeros(0))) == 0


@pytest.mark.parametrize("name", ["embed", "proj", "half", "strided"])
def test_word_sum_depends_on_every_bit_and_its_position(name):
    tensor = weights()[name].contiguous()
    before = int(word_sum(tensor))
    bits = tensor.view(torch.uint8).flatten()
    for place in (0, len(bits) // 2 + 1, len(bits) - 1):
        for bit in range(8):
            bits[place] ^= 1 << bit
            assert int(word_sum(tensor)) != before
            bits[place] ^= 1 << bit
    flat = tensor.flatten()
    assert int(word_sum(flat.flip(0))) != before and int(word_sum(flat.roll(1))) != before
    assert int(word_sum(tensor)) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("half"), "'half' missing"),
        (lambda t: t.update(more=torch.zeros(2)), "'more' unexpected"),
        (lambda t: t.update(embed=t["embed"].half()), "'embed' as float16"),
        (lambda t: t.update(embed=t["embed"].reshape(8, 50)), r"'embed' as float32 \(8, 50\)"),
        (lambda t: t.update(scalar=torch.tensor(3.25)), "'scalar' with checksum"),
        (lambda t: t.update(proj=t["proj"].t()), "'proj' with checksum"),
    ],
)
def test_verify_tensors_names_the_damaged_tensor(change, named):
    tensors = weights()
    manifest = described(tensors)
    verify_tensors(manifest, tensors)
    change(tensors)
    with pytest.raises(ContractError, match=named):
        verify_tensors(manifest, tensors)
