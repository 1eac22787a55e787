"""What a capture keeps, and where: the same numbers from less memory, through whole models."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_attn_lime._capture import capture, record
from captum_attn_lime._capture.keeping import Keep
from captum_attn_lime._capture.recorder import KEEP_SCORES
from captum_attn_lime.attention import DenseMap, HeadFusedMap, OffloadedMap, ScoreMap, WindowedMap
from captum_attn_lime.errors import InputError, SelectionError
from captum_attn_lime.methods import Rollout
from tests.models.language import gpt2

IDS = torch.tensor([[2, 17, 33, 8, 51, 64, 3], [2, 9, 5, 41, 3, 0, 0]])
MASK = (IDS != 0).long()


def _bert(attention: str) -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=70, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    model = BertModel(config, add_pooling_layer=False)
    model.set_attn_implementation(attention)
    return model.eval()


def _swin() -> nn.Module:
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[2], num_heads=[2], window_size=4, num_channels=1
    )
    return SwinModel(config, add_pooling_layer=False).eval()


def _run(name: str, keep: Keep = KEEP_SCORES) -> tuple[list[Any], Tensor]:
    torch.manual_seed(4)
    if name == "swin":
        model, inputs = _swin(), {"pixel_values": torch.randn(2, 1, 16, 16)}
    elif name == "gpt2":
        model, inputs = gpt2().transformer.eval(), {"input_ids": IDS, "attention_mask": MASK}
    else:
        model, inputs = _bert(name.removeprefix("bert_")), {"input_ids": IDS, "attention_mask": MASK}
    with torch.no_grad():
        plain = model(**inputs).last_hidden_state
        with record(model, keep=keep) as recorder:
            output = model(**inputs).last_hidden_state
    assert torch.equal(output, plain)
    return recorder.maps, output


MODELS = ["bert_eager", "bert_sdpa", "gpt2", "swin"]
models = pytest.mark.parametrize("name", MODELS)


@models
@pytest.mark.parametrize(
    "kept_is",
    [
        {"values": True},
        {"head_fusion": "mean"},
        {"head_fusion": "max", "heads": [0, -1]},
        {"offload": "cpu"},
        {"offload": "folder"},
        {"values": True, "offload": "cpu"},
        {"head_fusion": "min", "offload": "folder"},
    ],
    ids=["values", "mean", "max", "cpu", "folder", "values_cpu", "min_folder"],
)
def test_rollout_is_the_same_whatever_is_kept(name, kept_is, tmp_path):
    keep = Keep(**{key: tmp_path if value == "folder" else value for key, value in kept_is.items()})
    options = {"head_fusion": keep.head_fusion or "mean", "heads": keep.heads}
    plain, _ = _run(name)
    kept, _ = _run(name, keep)
    r = torch.rand(plain[0].shape[0], plain[0].shape[2])
    assert [(m.shape, m.name, m.kind, m.index, m.follows) for m in kept] == [
        (m.shape, m.name, m.kind, m.index, m.follows) for m in plain
    ]
    assert torch.allclose(Rollout(**options)(kept, r), Rollout(**options)(plain, r), atol=1e-6)
    assert [m.value is not None for m in kept] == [keep.values] * len(kept)
    eager = name in ("bert_eager", "swin") and keep.head_fusion is not None
    for attention in kept:
        held = attention.inner if isinstance(attention, WindowedMap) else attention
        assert isinstance(held, HeadFusedMap) == (eager and isinstance(held, (HeadFusedMap, DenseMap)))
        if keep.offload is not None and not isinstance(attention, WindowedMap):
            assert isinstance(attention, OffloadedMap) != eager
    del kept, attention, held
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_eager_weights_are_fused_and_refuse_what_was_not_kept():
    maps, _ = _run("bert_eager", Keep(head_fusion="mean"))
    whole, _ = _run("bert_eager")
    for kept, attention in zip(maps, whole, strict=True):
        assert isinstance(kept, HeadFusedMap)
        assert torch.allclose(kept.fused, attention.dense().mean(1), atol=1e-7)
        assert torch.equal(kept.reads_itself(), attention.reads_itself())
        assert kept.reads_itself().tolist() == MASK.bool().tolist()
        with pytest.raises(SelectionError, match=r"encoder\.layer\..*captured with"):
            kept.vecmat(torch.ones(2, 7), head_fusion="max")


def test_values_are_those_that_the_weights_are_multiplied_with():
    for name in ("bert_eager", "bert_sdpa", "gpt2"):
        outputs: list[Tensor] = []
        for keep in (Keep(values=True), Keep(values=True, offload="cpu")):
            maps, _ = _run(name, keep)
            outputs.append(maps[-1].dense() @ maps[-1].value)
        eager, _ = _run(name)
        assert outputs[0].shape == (*eager[-1].shape[:3], 8)
        assert torch.allclose(outputs[0], outputs[1])


class _Joint(nn.Module):
    """One projection for query, key and value, large enough that copies are worth it; it may write into them."""

    def __init__(self, writes: bool = False) -> None:
        super().__init__()
        self.project, self.writes = nn.Linear(64, 192), writes
        self.joint: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        joint = self.project(x)
        self.joint.append(joint)
        query, key, value = (t.unflatten(-1, (4, 16)).transpose(1, 2) for t in joint.split(64, dim=-1))
        output = F.scaled_dot_product_attention(query, key, value)
        if self.writes:
            joint.zero_()
        return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_joint_projection_is_let_go(dtype):
    model, x = _Joint().to(dtype), torch.randn(2, 2048, 64).to(dtype)
    with torch.no_grad(), capture(model) as maps:
        model(x)
    (attention,) = maps
    joint = model.joint.pop()
    whole = ScoreMap(*(t.unflatten(-1, (4, 16)).transpose(1, 2) for t in joint.split(64, dim=-1)[:2]))
    for own, part in ((attention.query, whole.query), (attention.key, whole.key)):
        assert torch.equal(own, part)
        assert own.untyped_storage().data_ptr() != joint.untyped_storage().data_ptr()
        assert own.untyped_storage().nbytes() == part.nbytes
    some = torch.tensor([0, 5, -1])
    assert torch.allclose(attention.rows(some), whole.rows(some), atol=1e-6)
    r = torch.rand(2, 2048)
    assert torch.allclose(attention.vecmat(r), whole.vecmat(r), rtol=1e-3)
    # Already its own, it is not copied again.
    before = attention.query.data_ptr()
    attention.compact()
    assert attention.query.data_ptr() == before


@pytest.mark.parametrize("tokens", [16, 2048])
def test_tensors_that_are_little_or_wholly_needed_are_not_copied(tokens):
    query, key = torch.randn(2, 1, 4, tokens, 16)
    joint = torch.randn(1, 16, 4, 48)
    for q, k in (
        (query, key),  # halves of one storage, both needed
        (query.clone(), key.clone()),
        (query[:, :1].expand(-1, 4, -1, -1), key),
        tuple(joint.transpose(1, 2).chunk(3, dim=-1)[:2]),
    ):
        attention = ScoreMap(q, k)
        attention.compact()
        assert (attention.query.data_ptr(), attention.key.data_ptr()) == (q.data_ptr(), k.data_ptr())


def test_what_the_model_writes_later_does_not_reach_a_copy():
    x = torch.randn(1, 4096, 64)
    torch.manual_seed(1)
    model = _Joint(writes=True)
    joint = F.linear(x, model.project.weight, model.project.bias)
    whole = ScoreMap(*(t.unflatten(-1, (4, 16)).transpose(1, 2) for t in joint.split(64, dim=-1)[:2]))
    with torch.no_grad(), capture(model) as maps:
        model(x)
    assert torch.count_nonzero(model.joint[0]) == 0
    assert torch.allclose(maps[0].rows([0, 77]), whole.rows([0, 77]), atol=1e-6)


def test_values_come_with_gradients_of_nothing_and_no_graph():
    x, model = torch.randn(1, 8, 64, requires_grad=True), _Joint()
    with capture(model, values=True) as maps:
        model(x)
    assert not maps[0].value.requires_grad
    assert not maps[0].query.requires_grad


def test_files_are_removed_when_the_model_fails(tmp_path):
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            F.scaled_dot_product_attention(x, x, x)
            assert len(list(tmp_path.iterdir())) == 1
            raise ArithmeticError("broken")

    def run() -> None:
        model = Failing()
        with capture(model, offload=tmp_path):
            model(torch.randn(1, 2, 5, 4))

    try:
        run()
    except ArithmeticError as error:
        error.__traceback__ = None
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_options_that_mean_nothing_are_refused(tmp_path):
    with pytest.raises(InputError, match="mean, max, min"):
        Keep(head_fusion="median")
    file = tmp_path / "file"
    file.touch()
    for place in (tmp_path / "missing", str(file), "gpu"):
        with pytest.raises(InputError, match="is not a folder"):
            Keep(offload=place)
        with pytest.raises(InputError, match="is not a folder"), capture(_Joint(), offload=place):
            pass
    assert Keep(offload=Path(tmp_path)).offload == tmp_path
