"""The fused seam returns what `scaled_dot_product_attention` does, to the bit, and keeps the kernel's log-sums."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_attn_lime._capture import Recorder, capture
from captum_attn_lime._capture.seams.sdpa import attend
from captum_attn_lime.attention import ScoreMap
from tests.attention.cases import FUSIONS, error, product


class _Layer(nn.Module):
    """One call with the arguments it is given."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return F.scaled_dot_product_attention(*args, **kwargs)


def _captured(*args: Any, **kwargs: Any) -> tuple[Tensor, ScoreMap]:
    layer = _Layer()
    with capture(layer) as maps:
        output = layer(*args, **kwargs)
    (attention,) = maps
    assert isinstance(attention, ScoreMap)
    return output, attention


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same to the bit, in the same layout; torch's own NaN is NaN."""
    return (
        a.dtype == b.dtype
        and a.stride() == b.stride()
        and torch.equal(a.isnan(), b.isnan())
        and (torch.equal(a.nan_to_num(), b.nan_to_num()))
    )


def _scores(attention: ScoreMap) -> Tensor:
    """scale · QKᵀ with masks and causality, float64 (B, H, Q, K)."""
    groups = attention.shape[1] // attention.key.shape[1]
    key = attention.key.double().repeat_interleave(groups, dim=1)
    scores = attention.query.double() @ key.transpose(-1, -2) * attention.scale
    for mask in attention.masks:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.double()
    if attention.is_causal:
        scores = scores.masked_fill(torch.ones(attention.shape[2:], dtype=torch.bool).triu(1), -math.inf)
    return scores


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@st.composite
def calls(draw: Any) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    dtype = draw(st.sampled_from(DTYPES))
    b, key_heads, q, k, d = (draw(st.integers(1, n)) for n in (3, 3, 9, 9, 9))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(dtype)

    heads = key_heads * groups
    query, key, value = randn(b, heads, q, d), randn(b, key_heads, k, d), randn(b, key_heads, k, d)
    layout = draw(st.sampled_from(["plain", "by_token", "by_feature", "joint"]))
    if layout == "by_token":  # (B, N, H, d) seen as (B, H, N, d), as projections give it
        query, key, value = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value))
    elif layout == "by_feature":
        query, key, value = (x.transpose(2, 3).contiguous().transpose(2, 3) for x in (query, key, value))
    elif layout == "joint":
        key, value = torch.stack([key, value], dim=3).unbind(3)
    options: dict[str, Any] = {"scale": draw(st.sampled_from([None, 0.5]))}
    if groups > 1:
        options["enable_gqa"] = True
    mask = draw(st.sampled_from(["none", "causal", "bool", "float", "keys", "2d", "3d"]))
    if mask == "causal":
        options["is_causal"] = True
    elif mask != "none":
        size = {"2d": (q, k), "3d": (heads, q, k), "keys": (b, 1, 1, k)}.get(mask, (b, heads, q, k))
        options["attn_mask"] = randn(*size) if mask == "float" else torch.rand(size, generator=generator) > 0.4
        if mask == "keys":
            options["attn_mask"] = options["attn_mask"].expand(b, 1, q, k)
    return query, key, value, options


@settings(max_examples=150)
@given(call=calls())
def test_outputs_gradients_and_log_sums_are_those_of_the_plain_call(call):
    *tensors, options = call
    plain = F.scaled_dot_product_attention(*tensors, **options)
    output, attention = _captured(*tensors, **options)
    assert _same(output, plain)
    if attention.log_sums is not None:
        assert attention.log_sums.shape == attention.shape[:3]
        assert attention.log_sums.is_contiguous()
        scores = _scores(attention)
        open_rows = (scores > -math.inf).any(-1)
        expected = torch.where(open_rows, scores.logsumexp(-1), 0.0)
        digits = {torch.float64: 1e-12, torch.float32: 2e-5}.get(tensors[0].dtype, 1e-3)
        assert torch.allclose(attention.log_sums.double(), expected, rtol=digits, atol=digits)
    r, weights = torch.rand(attention.shape[0], attention.shape[2]), attention.dense().double().numpy()
    for fusion, fuse in FUSIONS.items():
        found = attention.vecmat(r, head_fusion=fusion)
        assert error(found, product(r, fuse(weights, axis=1))) < (1e-3 if tensors[0].dtype == torch.bfloat16 else 1e-4)

    leaves = [[x.detach().clone().requires_grad_() for x in tensors] for _ in range(2)]
    plain, (output, attention) = F.scaled_dot_product_attention(*leaves[0], **options), _captured(*leaves[1], **options)
    assert _same(output, plain)
    cotangent = torch.randn_like(plain)
    for a, b in zip(
        torch.autograd.grad(plain, leaves[0], cotangent), torch.autograd.grad(output, leaves[1], cotangent), strict=True
    ):
        assert _same(a, b)
    assert attention.log_sums is None or not attention.log_sums.requires_grad


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("kind", ["plain", "causal", "bool", "float", "grouped", "scale"])
def test_the_kernels_log_sums_are_kept(dtype, kind):
    """Else the test above would be about nothing."""
    query, key, value = (torch.randn(2, 2 if kind == "grouped" and i else 4, 6, 8).to(dtype) for i in range(3))
    options = {
        "causal": {"is_causal": True},
        "bool": {"attn_mask": torch.rand(2, 1, 6, 6) > 0.3},
        "float": {"attn_mask": torch.randn(6, 6).to(dtype)},
        "grouped": {"enable_gqa": True},
        "scale": {"scale": 0.1},
    }.get(kind, {})
    choice = torch._fused_sdp_choice(
        query, key, value, options.get("attn_mask"), 0.0, kind == "causal", enable_gqa=kind == "grouped"
    )
    output, attention = _captured(query, key, value, **options)
    assert torch.equal(output, F.scaled_dot_product_attention(query, key, value, **options))
    assert (attention.log_sums is not None) == (choice == 1)
    assert kind == "grouped" or choice == 1


@pytest.mark.parametrize(
    "shape", [(0, 2, 3, 4), (2, 2, 0, 4), (1, 1, 1, 1), (2, 3, 5, 1)], ids=["no_examples", "no_tokens", "one", "narrow"]
)
def test_shapes_at_the_edge(shape):
    query, key, value = torch.randn(3, *shape)
    given = {"query": query, "key": key, "value": value}
    function = F.scaled_dot_product_attention
    output, sums = attend(Recorder(), function, (query, key, value), {}, given)
    assert _same(output, function(query, key, value))
    assert sums is None or sums.shape == shape[:3]


def test_one_query_for_all_heads():
    query, key, value = torch.randn(2, 1, 5, 4), *torch.randn(2, 2, 3, 6, 4)
    output, attention = _captured(query, key, value)
    assert torch.equal(output, F.scaled_dot_product_attention(query, key, value))
    assert attention.shape == (2, 3, 5, 6)
    weights = _scores(attention).softmax(-1)
    assert torch.allclose(attention.dense().double(), weights, atol=1e-6)
    r = torch.rand(2, 5)
    assert error(attention.vecmat(r), product(r, weights.mean(1).numpy())) < 1e-5


def test_causality_beside_a_mask_is_left_to_torch():
    query, key, value = torch.randn(3, 2, 2, 5, 4)
    mask = torch.rand(5, 5) > 0.3
    plain = F.scaled_dot_product_attention(query, key, value, mask, is_causal=True)
    output, attention = _captured(query, key, value, mask, is_causal=True)
    assert torch.equal(output, plain)
    assert torch.allclose(attention.dense() @ value, plain, atol=1e-6)


def test_positional_arguments_mean_the_same():
    query, key, value = torch.randn(3, 2, 2, 5, 4)
    mask = torch.rand(5, 5) > 0.3
    output, attention = _captured(query, key, value, mask, 0.0, False)
    assert torch.equal(output, F.scaled_dot_product_attention(query, key, value, mask))
    assert attention.log_sums is not None
    _, attention = _captured(query, key, value, None, 0.0, True)
    assert attention.is_causal
    assert torch.allclose(attention.log_sums.double(), _scores(attention).logsumexp(-1), atol=1e-5)


def test_mistakes_raise_what_torch_raises():
    query, key, value = torch.randn(3, 2, 2, 5, 4)
    mask = torch.ones(5, 5, dtype=torch.bool)
    for args in (
        (query, key, value, mask[:3]),
        (query, key, value, mask.int()),
        (query, key, value, mask.double()),
        (query, key.double(), value),
        (query, key.bfloat16(), value.bfloat16()),
        (query, key[..., :3], value),
    ):
        with pytest.raises(RuntimeError) as plain:
            F.scaled_dot_product_attention(*args)
        with pytest.raises(RuntimeError) as captured:
            _captured(*args)
        assert str(captured.value) == str(plain.value)


def test_dropout_and_masks_with_gradients_are_left_to_torch():
    query, key, value = torch.randn(3, 2, 2, 5, 4)
    torch.manual_seed(3)
    plain = F.scaled_dot_product_attention(query, key, value, dropout_p=0.5)
    torch.manual_seed(3)
    output, attention = _captured(query, key, value, dropout_p=0.5)
    assert torch.equal(output, plain)
    assert attention.log_sums is None
    masks = [torch.zeros(5, 5, requires_grad=True) for _ in range(2)]
    plain = F.scaled_dot_product_attention(query, key, value, masks[0])
    output, attention = _captured(query, key, value, masks[1])
    assert torch.equal(output, plain)
    output.square().sum().backward()
    plain.square().sum().backward()
    assert torch.equal(masks[0].grad, masks[1].grad)
    assert masks[0].grad.abs().max() > 0


@pytest.mark.parametrize("inputs", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_autocast_changes_the_call_as_it_would(inputs):
    tensors = torch.randn(3, 2, 2, 5, 4).to(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = F.scaled_dot_product_attention(*tensors)
        output, _ = _captured(*tensors)
    assert _same(output, plain)
    assert output.dtype == torch.bfloat16


def test_inference_mode():
    with torch.inference_mode():
        tensors = torch.randn(3, 2, 2, 5, 4)
        output, attention = _captured(*tensors)
        assert torch.equal(output, F.scaled_dot_product_attention(*tensors))
    assert torch.allclose(attention.log_sums.double(), _scores(attention).logsumexp(-1), atol=1e-5)
    assert torch.allclose(attention.vecmat(torch.ones(2, 5)), attention.dense().mean(1).sum(1), atol=1e-5)


def test_tensor_subclasses_are_left_to_torch():
    class Marked(Tensor):
        pass

    tensors = [x.as_subclass(Marked) for x in torch.randn(3, 2, 2, 5, 4)]
    plain = F.scaled_dot_product_attention(*tensors)
    output, attention = _captured(*tensors)
    assert type(output) is type(plain)
    assert torch.equal(output, plain)
    assert attention.log_sums is None


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:`torch.jit.script`")
@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
def test_function_transforms_around_a_captured_call_give_what_they_would(transform):
    query, key, value = torch.randn(3, 4, 2, 2, 5, 4)
    layer = _Layer()

    def loss(q: Tensor) -> Tensor:
        return layer(q, key[0], value[0]).square().sum()

    def run() -> Tensor:
        if transform == "vmap":
            return torch.vmap(layer)(query, key, value)
        if transform == "grad":
            return torch.func.grad(loss)(query[0])
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return torch.func.jvp(loss, (query[0],), (key[1],))[1]

    plain = run()
    with capture(layer) as maps:
        output = run()
    assert torch.equal(output, plain)
    assert len(maps) == 1


def test_without_the_fused_backend_nothing_is_kept_that_was_not_computed():
    tensors = torch.randn(3, 2, 2, 5, 4)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        plain = F.scaled_dot_product_attention(*tensors)
        output, attention = _captured(*tensors)
    assert torch.equal(output, plain)
    assert attention.log_sums is None


@pytest.mark.parametrize("weights", [True, False])
def test_nn_multihead_attention_keeps_them_too(weights):
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x, padding = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    plain = layer(x, x, x, key_padding_mask=padding, need_weights=weights)[0]
    with capture(layer) as (maps):
        output = layer(x, x, x, key_padding_mask=padding, need_weights=weights)[0]
    assert torch.equal(output, plain)
    (attention,) = maps
    assert (attention.log_sums is None) == weights
    if not weights:
        assert torch.allclose(attention.log_sums.double(), _scores(attention).logsumexp(-1), atol=1e-5)
