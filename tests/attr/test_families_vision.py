"""Pixels, columns and prefix tokens; models that must ask which token is meant; stacks beside other stacks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_attn_lime import AttentionAttribution, capture
from captum_attn_lime.attr._token_map import place
from captum_attn_lime.errors import AttentionKindError, ReadoutError, UnreadableAttentionError
from tests.families.base import Family, build
from tests.families.readouts import attention_pooling, weighted
from tests.families.tables import ft_transformer, tab_transformer
from tests.families.timm_models import (
    timm_beit,
    timm_deit_distilled,
    timm_eva,
    timm_siglip,
    timm_vit,
    timm_vit_registers,
)
from tests.families.torch_modules import mha_bias_kv, mha_cross, mha_zero_attn, torch_decoder, torch_transformer
from tests.families.torchvision_models import torchvision_vit
from tests.families.vision import clip_vision, deit, dinov2_registers, siglip_vision, vit
from tests.reference.attention import fuse

HUGGINGFACE = [vit, deit, dinov2_registers, clip_vision, siglip_vision]
TIMM = [timm_vit, timm_vit_registers, timm_deit_distilled, timm_eva, timm_beit, timm_siglip]
VISION = [*HUGGINGFACE, *TIMM, torchvision_vit]
PLACED = [*VISION, ft_transformer, tab_transformer, mha_bias_kv, mha_zero_attn, mha_cross, torch_decoder]


def _name(make) -> str:
    return make.__name__


def _inputs(family: Family) -> tuple[Tensor, ...]:
    return family.inputs if isinstance(family.inputs, tuple) else (family.inputs,)


def _on_cells(family: Family, scores: np.ndarray) -> tuple[Tensor, ...]:
    expected = family.token_of_cell
    assert expected is not None
    return place(torch.tensor(scores), expected if isinstance(expected, tuple) else (expected,), _inputs(family))


def _attribute(family: Family, **options) -> tuple[Tensor, ...]:
    query = options.pop("query", "auto")
    attribution = AttentionAttribution(family.forward, **options)
    out = attribution.attribute(_inputs(family), additional_forward_args=family.args or None, query=query)
    assert isinstance(out, tuple)
    return out


def _difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    assert len(found) == len(expected)
    pairs = list(zip(found, expected, strict=True))
    assert all(torch.equal(a.isnan(), b.isnan()) for a, b in pairs)  # cells of no token
    return max(float((a - b).nan_to_num().abs().max()) for a, b in pairs)


def _token_numbers(maps, query, **_):
    """Give token number n the score n + 1, so that a cell's score tells its token, and 0 that it has none."""
    return torch.arange(1, maps[-1].shape[3] + 1).expand(len(query), -1)


@pytest.mark.parametrize("make", PLACED, ids=_name)
def test_each_cell_is_given_to_the_token_that_is_made_of_it(make):
    family = build(make)
    layers = -1 if make in (mha_bias_kv, mha_zero_attn, mha_cross) else None
    found = _attribute(family, method=_token_numbers, layers=layers, query=0)
    n_tokens = max(int(cells.nan_to_num().max()) for cells in found)
    expected = _on_cells(family, np.arange(1, n_tokens + 1)[None].repeat(2, axis=0))
    assert _difference(found, expected) == 0


@pytest.mark.parametrize("make", VISION, ids=_name)
def test_prefix_tokens_are_given_no_pixels_and_patches_are_given_all_of_theirs(make):
    family = build(make)
    (tokens,) = _attribute(family, method=_token_numbers, query=0)
    numbers, counts = torch.unique(tokens[0] - 1, return_counts=True)
    with torch.no_grad(), capture(family.model) as maps:
        family.forward(*_inputs(family), *family.args)
    n = maps[0].shape[3]
    assert numbers.tolist() == list(range(family.prefix, n))
    assert set(counts.tolist()) == {3 * 8 * 8}
    assert n == family.prefix + tokens[0].numel() // (3 * 8 * 8)


def test_prefixes_are_of_the_sizes_that_the_models_say():
    for make in TIMM:
        family = build(make)
        assert family.model.num_prefix_tokens == family.prefix


def _weights(make, n: int) -> np.ndarray:
    """Return what a user who knows the model would pass: its two heads' tokens, or CLS and the patches, equally."""
    weights = np.zeros((2, n))
    if make in (deit, timm_deit_distilled):
        weights[:, :2] = 1 / 2
    elif make is dinov2_registers:
        weights[:, 0], weights[:, 4:] = 1 / 2, 1 / 12
    else:
        weights[:] = 1 / n
    return weights


ASKING = {deit: "0, 1", timm_deit_distilled: "0, 1", dinov2_registers: "0, 4, 5", tab_transformer: "0, 1, 2"}


@pytest.mark.parametrize("make", ASKING, ids=_name)
def test_a_model_whose_tokens_are_read_in_several_ways_asks_which_one_is_meant(make):
    family = build(make)
    with pytest.raises(ReadoutError, match=rf"reads \d tokens \({ASKING[make]}") as error:
        _attribute(family)
    assert "Pass query= (a token index, one index per example, weights (B, N)" in str(error.value)


@pytest.mark.parametrize("make", ASKING, ids=_name)
@pytest.mark.parametrize("method", ["raw", "rollout"])
def test_with_a_query_it_gives_the_dense_product(make, method):
    family = build(make, torch.float64)
    layers = family.recompute()
    n = layers[-1].shape[-1]
    weights = _weights(make, n)
    found = _attribute(family, method=method, query=torch.tensor(weights))
    assert _difference(found, _on_cells(family, weighted(weights, layers)[method])) < 1e-12
    for token in (0, 1):
        found = _attribute(family, method=method, query=token)
        one = np.eye(n)[[token, token]]
        assert _difference(found, _on_cells(family, weighted(one, layers)[method])) < 1e-12


@pytest.mark.parametrize("make", TIMM, ids=_name)
def test_timm_unfused_is_captured_alike(make):
    family = build(make, torch.float64)

    def run() -> list:
        with torch.no_grad(), capture(family.model) as maps:
            family.forward(*_inputs(family))
        return maps

    fused = run()
    with family.eager():
        eager = run()
    for a, b in zip(fused, eager, strict=True):
        assert type(a) is not type(b)
        assert (a.dense() - b.dense()).abs().max() < 1e-12
        assert a.shape == b.shape
    assert all(m.fused_attn for m in family.model.modules() if hasattr(m, "fused_attn"))


class Pooled(nn.Module):
    """One query, learned or taken from the input, reads tokens that passed through a layer."""

    def __init__(self, *, learned: bool) -> None:
        super().__init__()
        self.asked = nn.Parameter(torch.randn(1, 1, 8)) if learned else None
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)
        self.pool = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor, asked: Tensor) -> Tensor:
        x = x + self.layer(x, x, x)[0]
        asked = asked if self.asked is None else self.asked.repeat(len(x), 1, 1)
        return self.pool(asked, x, x, need_weights=False)[0][:, 0]


@pytest.mark.parametrize(("learned", "kind"), [(True, "pool"), (False, "cross")])
def test_one_query_pools_only_where_it_is_learned(learned, kind):
    model = Pooled(learned=learned).eval()
    with capture(model) as maps:
        model(torch.randn(2, 5, 8), torch.randn(2, 1, 8))
    assert [m.kind for m in maps] == ["self", kind]


def test_an_encoder_decoder_is_explained_within_one_stack():
    family = build(torch_transformer, torch.float64)
    with pytest.raises(AttentionKindError, match=r"two stacks .*Choose layers= within one of them"):
        _attribute(family)
    every = family.recompute()
    decoder = [every[2], every[4]]
    last, nothing = np.eye(4)[[3, 3]], torch.full((2, 5, 32), torch.nan)
    for method in ("raw", "rollout"):
        found = _attribute(family, method=method, layers=-1 if method == "raw" else slice(2, None))
        expected = torch.tensor(weighted(last, decoder)[method])[:, :, None].expand(2, 4, 32)
        assert _difference(found, (nothing, expected)) < 1e-12


@pytest.mark.parametrize("make", [mha_bias_kv, mha_zero_attn], ids=_name)
def test_what_goes_to_an_appended_key_goes_to_no_input(make):
    family = build(make, torch.float64)
    expected = fuse(family.recompute()[-1], "mean")[:, 0]  # (B, N + 1)
    (found,) = _attribute(family, method="raw")
    assert _difference((found,), (torch.tensor(expected[:, :-1]),)) < 1e-12
    assert bool((found.sum(1) < 0.999).all())


@pytest.mark.parametrize("make", [siglip_vision, timm_siglip], ids=_name)
@pytest.mark.parametrize("method", ["raw", "rollout"])
def test_pooling_by_a_learned_query_is_the_readout(make, method):
    family = build(make, torch.float64)
    expected = attention_pooling(family.recompute())[method]
    assert _difference(_attribute(family, method=method), _on_cells(family, expected)) < 1e-12


def test_layers_whose_heads_are_mixed_are_refused_and_not_left_out():
    """CaiT mixes its scores, and its weights, from head to head; its class attention alone is plain."""
    from timm.models.cait import Cait

    model = Cait(img_size=24, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=3).eval()
    with pytest.raises(UnreadableAttentionError, match=r"'blocks\.0\.attn', 'blocks\.1\.attn'"):
        AttentionAttribution(model, method="raw").attribute(torch.randn(2, 3, 24, 24))
