"""Maps of every kind are copied and pickled, before and after they were used, and know what was written into."""

from __future__ import annotations

import copy
import gc
import pickle
from pathlib import Path

import pytest
import torch

from captum_attn_lime import capture
from captum_attn_lime._capture import Keep, record
from captum_attn_lime.attention import DenseMap, ScoreMap, offloaded
from captum_attn_lime.attention._modified import ModifiedScoreMap
from captum_attn_lime.errors import UnreadableAttentionError
from tests.families import FAMILIES, bert, build
from tests.families.facts import over

COPIES = {"pickle": lambda m: pickle.loads(pickle.dumps(m)), "deepcopy": copy.deepcopy, "copy": copy.copy}


def _assert_same(found, attention):
    assert repr(found).split("(", 1)[1] == repr(attention).split("(", 1)[1]
    assert (found.index, found.follows, found.mixed) == (attention.index, attention.follows, attention.mixed)
    r = torch.rand(attention.shape[0], attention.shape[2])
    torch.testing.assert_close(found.vecmat(r), attention.vecmat(r), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.rows(0), attention.rows(0), atol=1e-6, rtol=1e-5)


@over(FAMILIES, sample=1)
def test_maps_of_every_family(make):
    family = build(make)
    with torch.no_grad(), capture(family.model, values=True) as maps:
        family.run()
    for _ in range(2):  # before and after use
        for copied in COPIES.values():
            for found, attention in zip(copied(maps), maps, strict=True):
                _assert_same(found, attention)
                assert torch.equal(found.value, attention.value)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("keep", [{"offload": "cpu"}, {"offload": "folder"}, {"head_fusion": "mean"}], ids=str)
def test_maps_that_are_kept_otherwise(keep, implementation, tmp_path):
    family = build(bert)
    family.model.set_attn_implementation(implementation)
    keep = Keep(**{name: tmp_path if value == "folder" else value for name, value in keep.items()})
    with torch.no_grad(), record(family.model, keep=keep) as recorder:
        family.run()
    maps = recorder.maps
    r = torch.rand(2, 7)
    for _ in range(2):
        expected = maps[1].vecmat(r)
        for copied in COPIES.values():
            found = copied(maps[1])
            assert torch.equal(found.vecmat(r), expected)
    kept = [copied(maps[1]) for copied in COPIES.values()]
    del maps, recorder
    for found in kept:  # the files of a folder are still there for those that need them
        assert torch.equal(found.vecmat(r), expected)
    del kept, found
    gc.collect()  # a capture holds itself
    assert not list(Path(tmp_path).iterdir())


def test_maps_with_functions_of_the_position():
    q = torch.randn(1, 2, 5, 4)
    inner = 2
    attention = ModifiedScoreMap(q, q, mask_mod=lambda b, h, i, j: i + inner >= j, kind="self")
    for copied in COPIES.values():
        _assert_same(copied(attention), attention)
    assert type(copy.deepcopy(attention)) is ModifiedScoreMap
    _assert_same(
        pickle.loads(pickle.dumps(ModifiedScoreMap(q, q, mask_mod=causal))), ModifiedScoreMap(q, q, mask_mod=causal)
    )


def causal(b, h, i, j):
    return i >= j


def test_what_was_written_into_is_known_to_copies_too():
    q, k = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    for attention, tensor in (
        (ScoreMap(q, k), q),
        (DenseMap(q.softmax(-1)), None),
        (offloaded(ScoreMap(q, k), "cpu"), None),
    ):
        fresh = {name: copied(attention) for name, copied in COPIES.items()}
        if tensor is not None:
            tensor.add_(1.0)
            for copied in COPIES.values():
                with pytest.raises(UnreadableAttentionError, match="wrote into"):
                    copied(attention).rows(0)
        for name in ("pickle", "deepcopy"):
            fresh[name].rows(0)
