"""AttentionAttribution as a Captum attribution: contract, inputs of every form, options, and errors at the door."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from captum.attr import Attribution, InputXGradient, NoiseTunnel
from captum.metrics import infidelity, sensitivity_max
from torch import nn

from captum_attn_lime import AttentionAttribution, features
from captum_attn_lime.errors import (
    AttentionKindError,
    ForwardError,
    InputError,
    NoAttentionError,
    SelectionError,
    TargetError,
    TokenMapError,
)
from captum_attn_lime.methods import LayerMethod, Needs, Raw, Rollout
from tests.families import IDS, MASK, EncoderClassifier, HandWritten, bert, build, vit

METHODS = ["raw", "rollout"]
every_method = pytest.mark.parametrize("method", METHODS)


class OverEmbeddings(nn.Module):
    """The hand-written layers over embeddings (B, N, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = HandWritten()

    def forward(self, x, mask=None):
        for layer in self.body.layers:
            x = x + layer(x, mask)
        return self.body.head(x.mean(1))


@pytest.fixture
def model():
    return HandWritten().eval()


@pytest.fixture
def embedded():
    return OverEmbeddings().eval()


# --- the contract ---------------------------------------------------------------------------------------------------


def test_argument_order_is_captums():
    ours = list(inspect.signature(AttentionAttribution.attribute).parameters.values())
    captums = list(inspect.signature(InputXGradient.attribute).parameters)
    assert [p.name for p in ours][: len(captums)] == captums
    assert [p.name for p in ours][len(captums)] == "feature_mask"
    assert all(p.kind == p.KEYWORD_ONLY for p in ours[len(captums) + 1 :])
    assert hasattr(AttentionAttribution.attribute, "__wrapped__")


def test_it_is_an_attribution_with_a_readable_name(model):
    attribution = AttentionAttribution(model)
    assert isinstance(attribution, Attribution)
    assert attribution.get_name() == "Attention Attribution"
    assert not attribution.has_convergence_delta()
    assert not attribution.multiplies_by_inputs
    assert not attribution.uses_target


@every_method
def test_tensor_in_tensor_out_and_tuple_in_tuple_out(model, method):
    attribution = AttentionAttribution(model, method=method)
    single = attribution.attribute(IDS, additional_forward_args=MASK)
    (one,) = attribution.attribute((IDS,), additional_forward_args=(MASK,))
    ids, mask = attribution.attribute((IDS, MASK))
    assert torch.equal(single, one)
    assert torch.equal(single, ids)
    assert torch.equal(mask, torch.zeros_like(mask))
    assert single.shape == IDS.shape
    assert single.is_contiguous()
    assert not single.requires_grad
    assert torch.allclose(single.sum(1), torch.ones(2))


@every_method
@pytest.mark.parametrize("target", [None, 1, (2,), torch.tensor(0), torch.tensor([0, 2]), [1, 2], [(1,), (0,)]])
def test_every_form_of_target_is_taken_and_changes_nothing(model, method, target):
    attribution = AttentionAttribution(model, method=method)
    assert torch.equal(attribution.attribute(IDS, target=target), attribution.attribute(IDS))


@pytest.mark.parametrize("target", [3, -4, (0, 1), torch.tensor([0, 9]), [0], [0, 1, 2], "fresh", np.int64(3), 1.5])
def test_a_target_the_output_does_not_have_is_refused(model, target):
    with pytest.raises(TargetError, match=r"output of shape \(2, 3\)|no class names") as error:
        AttentionAttribution(model).attribute(IDS, target=target)
    assert isinstance(error.value, (ValueError, IndexError, AssertionError))


def test_noise_tunnel(embedded):
    x = torch.randn(2, 5, 32)
    attribution = AttentionAttribution(embedded)
    still = NoiseTunnel(attribution).attribute(x, nt_samples=3, stdevs=0.0, target=1)
    assert torch.allclose(still, attribution.attribute(x), atol=1e-6)
    noisy = NoiseTunnel(attribution).attribute(x, nt_samples=4, nt_type="smoothgrad", stdevs=0.5)
    assert noisy.shape == x.shape
    assert not torch.allclose(noisy, still)


def test_sensitivity_max(embedded, model):
    x = torch.randn(3, 5, 32)
    assert sensitivity_max(AttentionAttribution(embedded).attribute, x, target=1).shape == (3,)

    def swap(ids):
        ids = ids.clone()
        ids[:, 3] = 5
        return ids

    change = sensitivity_max(AttentionAttribution(model).attribute, IDS[:, :4], perturb_func=swap, n_perturb_samples=2)
    assert change.shape == (2,)
    assert bool((change > 0).all())


def test_infidelity_after_split(embedded):
    x = torch.randn(2, 5, 32)
    scores = AttentionAttribution(embedded).attribute(x)
    cells = features.split(scores, features.by_position(x))
    assert torch.allclose(cells.sum(dim=(1, 2)), torch.ones(2))

    def drop(inputs):
        keep = (torch.rand(len(inputs), 5, 1) > 0.5).float().expand_as(inputs)
        return inputs * (1 - keep), inputs * keep

    assert infidelity(lambda x: embedded(x)[:, 0], drop, x, cells).shape == (2,)


def test_a_replaced_forward_func_is_the_one_explained(model):
    attribution = AttentionAttribution(model)
    first = attribution.attribute(IDS)
    other = HandWritten().eval()
    attribution.forward_func = other
    assert torch.equal(attribution.attribute(IDS), AttentionAttribution(other).attribute(IDS))
    assert not torch.equal(attribution.attribute(IDS), first)


# --- inputs of every form -------------------------------------------------------------------------------------------


def test_embeddings_carry_their_tokens_score_on_every_cell(model, embedded):
    embedded.body = model
    cells = AttentionAttribution(embedded).attribute(model.embed(IDS).detach())
    assert cells.shape == (2, 7, 32)
    assert torch.equal(cells, cells[..., :1].expand_as(cells))
    assert torch.allclose(cells[..., 0].sum(1), torch.ones(2))


def test_images_carry_their_patches_score_on_every_pixel():
    family = build(vit)
    cells = AttentionAttribution(family.forward).attribute(family.inputs)
    blocks = cells.view(2, 3, 3, 8, 3, 8)
    assert torch.equal(blocks, blocks[:, :1, :, :1, :, :1].expand_as(blocks))


class NotSquare(nn.Module):
    """A ViT over a 16 x 28 image with patches of 8: a 2 x 3 grid, four columns of pixels unseen, two prefix tokens."""

    def __init__(self, at_end: bool = False) -> None:
        super().__init__()
        self.patches, self.at_end = nn.Conv2d(3, 32, 8, stride=8), at_end
        self.prefix, self.body = nn.Parameter(torch.randn(1, 2, 32)), OverEmbeddings()

    def forward(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2)
        prefix = self.prefix.expand(len(x), -1, -1)
        return self.body(torch.cat([x, prefix] if self.at_end else [prefix, x], 1))


@pytest.mark.parametrize("at_end", [False, True])
def test_grids_that_are_not_square_and_prefix_tokens_wherever_they_are(at_end):
    model = NotSquare(at_end).eval()
    image = torch.randn(2, 3, 16, 28)
    cells = AttentionAttribution(model).attribute(image)
    patches = model.patches(image).flatten(2).transpose(1, 2)
    prefix = model.prefix.expand(2, -1, -1)
    tokens = torch.cat([patches, prefix] if at_end else [prefix, patches], 1).detach()
    scores = AttentionAttribution(model.body).attribute(tokens)[:, :, 0]
    grid = (scores[:, :6] if at_end else scores[:, 2:]).view(2, 2, 3)
    assert torch.allclose(cells[:, 1, 3::8, 3:24:8], grid, atol=1e-6)
    assert torch.equal(cells[:, :, :, 24:], torch.zeros(2, 3, 16, 4))


class Table(nn.Module):
    """Columns as tokens: numeric and categorical tensors, CLS first or last, columns in another order."""

    def __init__(self, cls_first: bool = True) -> None:
        super().__init__()
        self.weight, self.cls = nn.Parameter(torch.randn(4, 32)), nn.Parameter(torch.randn(1, 1, 32))
        self.embed = nn.ModuleList(nn.Embedding(n, 32) for n in (2, 3))
        self.body, self.cls_first = OverEmbeddings(), cls_first

    def tokens(self, numbers, categories):
        x = numbers[:, :, None] * self.weight + 1.0
        x = torch.cat([*(e(c)[:, None] for e, c in zip(self.embed, categories.T, strict=True)), x.flip(1)], 1)
        cls = self.cls.expand(len(x), -1, -1)
        return torch.cat([cls, x] if self.cls_first else [x, cls], 1)

    def forward(self, numbers, categories):
        return self.body(self.tokens(numbers, categories))


@pytest.mark.parametrize("cls_first", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_tables_find_each_columns_token_by_themselves(cls_first, batch):
    model = Table(cls_first).eval()
    numbers, categories = torch.randn(batch, 4), torch.randint(0, 2, (batch, 2))
    scores = AttentionAttribution(model.body).attribute(model.tokens(numbers, categories).detach())[:, :, 0]
    first = int(cls_first)
    on_numbers, on_categories = AttentionAttribution(model).attribute((numbers, categories))
    assert torch.allclose(on_categories, scores[:, first : first + 2], atol=1e-6)
    assert torch.allclose(on_numbers, scores[:, first + 2 : first + 6].flip(1), atol=1e-6)


def test_columns_of_very_different_scale_are_all_found():
    class Standardised(Table):
        def forward(self, numbers, categories):
            return super().forward((numbers - 5e5) / torch.tensor([1e-3, 1.0, 1e5, 1e7]), categories)

    model = Standardised().eval()
    inputs = (torch.zeros(1, 4), torch.zeros(1, 2, dtype=torch.long))
    on_numbers, on_categories = AttentionAttribution(model).attribute(inputs)
    assert bool((on_numbers > 0).all())
    assert bool((on_categories > 0).all())


def test_a_column_that_changes_no_token_is_not_given_a_silent_zero():
    class Deaf(Table):
        def forward(self, numbers, categories):
            return super().forward(numbers * torch.tensor([1.0, 0.0, 1.0, 1.0]), categories)

    with pytest.raises(TokenMapError, match=r"\[1\] change no token, while others do"):
        AttentionAttribution(Deaf().eval()).attribute((torch.randn(1, 4), torch.zeros(1, 2, dtype=torch.long)))


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_ft_transformer(heads, batch):
    from rtdl_revisiting_models import FTTransformer

    model = FTTransformer(
        n_cont_features=5, cat_cardinalities=[3, 4], d_out=2, n_blocks=2, d_block=16, attention_n_heads=heads,
        attention_dropout=0.1, ffn_d_hidden=None, ffn_d_hidden_multiplier=2, ffn_dropout=0.0, residual_dropout=0.0,
    ).eval()  # fmt: skip
    inputs = (torch.randn(batch, 5), torch.randint(0, 3, (batch, 2)))
    attribution = AttentionAttribution(model)
    together = attribution.attribute(inputs, target=1)
    for i in range(batch):
        alone = attribution.attribute(tuple(x[i : i + 1] for x in inputs), target=1)
        assert all(torch.allclose(t[i], a[0], atol=1e-6) for t, a in zip(together, alone, strict=True))
    total = sum(t.sum(1) for t in together)
    assert bool(((total > 0.2) & (total < 1)).all())  # the rest is the CLS token's


# --- options --------------------------------------------------------------------------------------------------------


def test_feature_mask_gives_every_cell_its_features_total(model, embedded):
    mask = torch.tensor([[0, 0, 1, 1, 1, 2, 3]])
    attribution = AttentionAttribution(model)
    plain, grouped = attribution.attribute(IDS), attribution.attribute(IDS, feature_mask=mask)
    for feature in range(4):
        where = mask[0] == feature
        assert torch.allclose(grouped[:, where], plain[:, where].sum(1, keepdim=True).expand(-1, int(where.sum())))
    x = torch.randn(2, 7, 32)
    cells = AttentionAttribution(embedded).attribute(x)
    by_word = AttentionAttribution(embedded).attribute(x, feature_mask=mask[:, :, None])
    assert torch.allclose(by_word[:, 2, 9], cells[:, 2:5, 0].sum(1))


def test_a_custom_method(model):
    def last_head(stack, query):
        return stack[-1].vecmat(query, heads=-1)

    chosen = AttentionAttribution(model, method=last_head).attribute(IDS)
    assert torch.equal(chosen, AttentionAttribution(model, method=Raw(heads=3)).attribute(IDS))


@pytest.mark.parametrize(
    ("needs", "has"),
    [(Needs(), (False, False)), (Needs(values=True), (True, False)), (Needs(gradients=True), (True, True))],
    ids=["none", "values", "gradients"],
)
def test_a_custom_method_gets_what_it_needs(model, needs, has):
    seen = []

    class Own(LayerMethod):
        def step(self, layer, r):
            seen.append((layer.value is not None, layer.output_gradient is not None))
            return layer.vecmat(r)

    Own.needs = needs
    found = AttentionAttribution(model, method=Own()).attribute(IDS, target=1)
    assert seen == [has] * 3
    assert torch.allclose(found, AttentionAttribution(model, method=Rollout(residual=0.0)).attribute(IDS), atol=1e-6)


def test_layers_by_index_name_and_slice(model):
    def raw(layers):
        return AttentionAttribution(model, method="raw", layers=layers).attribute(IDS)

    assert torch.equal(raw(0), raw("layers.0"))
    assert torch.equal(raw(-1), raw(None))
    assert torch.allclose(raw([0, "layers.1"]), (raw(0) + raw(1)) / 2)
    assert torch.allclose(raw(slice(1, None)), (raw(1) + raw(2)) / 2)


@pytest.mark.parametrize("layers", [3, -4, "layers.9", "", [], slice(5, None), [0, 7], True, 0.5])
def test_layers_the_model_does_not_have_are_refused(model, layers):
    with pytest.raises((SelectionError, TypeError)):
        AttentionAttribution(model, layers=layers).attribute(IDS)


@pytest.mark.parametrize("heads", [4, -5, [], [0, 4]])
def test_heads_the_model_does_not_have_are_refused(model, heads):
    with pytest.raises(SelectionError, match="head"):
        AttentionAttribution(model, method=Rollout(heads=heads)).attribute(IDS)


def test_query_forms(model):
    def scores(query):
        return AttentionAttribution(model, method="raw").attribute(IDS, additional_forward_args=MASK, query=query)

    each = torch.stack([scores(i) for i in range(7)])  # (query, B, N)
    assert torch.equal(scores("first"), each[0])
    assert torch.equal(scores("last"), torch.stack([each[6, 0], each[4, 1]]))
    assert torch.equal(scores([6, 4]), scores("last"))
    assert torch.equal(scores(torch.tensor([6, 4])), scores("last"))
    assert torch.equal(scores(-1), each[6])
    assert torch.allclose(scores(slice(0, 2)), each[:2].mean(0), atol=1e-6)
    expected_mean = torch.stack([each[:, 0].mean(0), each[:5, 1].mean(0)])
    assert torch.allclose(scores("mean"), expected_mean, atol=1e-6)
    assert torch.allclose(scores(torch.eye(7)[:2] * 2), torch.stack([each[0, 0], each[1, 1]]) * 2)


@pytest.mark.parametrize(
    "query", [7, -8, [0, 9], [0, 1, 2], "middle", slice(7, 9), torch.ones(2, 3), torch.full((2, 7), torch.nan), None]
)
def test_queries_that_name_nothing_are_refused(model, query):
    with pytest.raises(SelectionError, match="query"):
        AttentionAttribution(model).attribute(IDS, query=query)


def test_token_map(model):
    def reversed_rows(x):
        return model(x.flip(1).long())

    rows = IDS.float()
    found = AttentionAttribution(reversed_rows).attribute(rows, token_map=torch.arange(7).flip(0))
    assert torch.allclose(found, AttentionAttribution(model).attribute(IDS.flip(1)).flip(1), atol=1e-6)
    with pytest.raises(InputError, match="0 to 6"):
        AttentionAttribution(reversed_rows).attribute(rows, token_map=torch.arange(1, 8))
    with pytest.raises(InputError, match="broadcast"):
        AttentionAttribution(reversed_rows).attribute(rows, token_map=torch.arange(3))


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([[1, 2]], "list"),
        ((IDS, [1]), "list"),
        ((), "empty tuple"),
        (torch.zeros(0, 4, dtype=torch.long), "at least one"),
        (torch.tensor(3), "dimension 0"),
        ((IDS, IDS[:1]), "same number of examples"),
        (torch.full((1, 4, 32), torch.nan), "NaN"),
        ({"input_ids": IDS}, "dict"),
    ],
)
def test_inputs_that_are_not_batches_of_tensors_are_refused(model, inputs, message):
    with pytest.raises(InputError, match=message):
        AttentionAttribution(model).attribute(inputs)


def test_a_model_output_instead_of_a_tensor_says_what_to_do():
    family = build(bert)
    with pytest.raises(ForwardError, match=r"SequenceClassifierOutput.*\.logits"):
        AttentionAttribution(family.model).attribute(IDS)


@pytest.mark.parametrize("output", [None, 3.0, torch.tensor(1.0)])
def test_a_forward_function_without_a_batch_of_outputs(model, output):
    def forward(ids):
        model(ids)
        return output

    with pytest.raises(ForwardError):
        AttentionAttribution(forward).attribute(IDS)


def test_a_model_without_attention():
    with pytest.raises(NoAttentionError, match="Sequential"):
        AttentionAttribution(nn.Sequential(nn.Linear(4, 4), nn.ReLU())).attribute(torch.randn(2, 4))


def test_windows_are_refused_by_name():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):  # (B, 8, 8) in windows of four tokens
            windows = x.reshape(-1, 4, 8)
            return self.attention(windows, windows, windows)[0].reshape(len(x), -1)

    with pytest.raises(AttentionKindError, match="'attention' runs over 4 groups"):
        AttentionAttribution(Windows().eval()).attribute(torch.randn(2, 8, 8))


def test_the_two_stacks_of_an_encoder_decoder_are_not_mixed():
    from transformers import BartConfig, BartForSequenceClassification

    sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 2)
    sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
    sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 16)
    model = BartForSequenceClassification(BartConfig(vocab_size=70, d_model=32, eos_token_id=3, **sizes)).eval()
    ids = torch.tensor([[0, 17, 33, 8, 51, 64, 3]])  # the decoder reads the same ids, shifted: equally many tokens

    def forward(ids):
        return model(input_ids=ids).logits

    with pytest.raises(AttentionKindError, match="two stacks"):
        AttentionAttribution(forward).attribute(ids)
    with pytest.raises(SelectionError, match="pass query="):
        AttentionAttribution(forward, layers=[0, 1]).attribute(ids)
    scores = AttentionAttribution(forward, layers=[0, 1]).attribute(ids, query="mean")
    assert torch.allclose(scores.sum(), torch.tensor(1.0))
    with pytest.raises(TokenMapError, match="token_map="):  # the decoder's tokens are the ids shifted by one
        AttentionAttribution(forward, layers=[2, 3]).attribute(ids)
    shifted = torch.arange(7).roll(-1)
    scores = AttentionAttribution(forward, layers=[2, 3]).attribute(ids, token_map=shifted)
    assert torch.allclose(scores.sum(), torch.tensor(1.0))


def test_tokens_that_cannot_be_placed_ask_for_a_map():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.body = nn.Linear(6, 4 * 32), OverEmbeddings()

        def forward(self, x):
            return self.body(self.mix(x).view(len(x), 4, 32))

    with pytest.raises(TokenMapError, match="token_map="):
        AttentionAttribution(Mixed().eval()).attribute(torch.randn(2, 6))


@pytest.mark.parametrize(
    "options", [{"method": "flow?"}, {"method": Rollout}, {"method": None}, {"offload": "no such folder"}]
)
def test_options_are_checked_when_the_attribution_is_made(model, options):
    with pytest.raises(InputError):
        AttentionAttribution(model, **options)
    with pytest.raises(InputError, match="str"):
        AttentionAttribution("bert")


def test_ids_the_model_does_not_have_fail_as_in_the_model():
    with pytest.raises(IndexError):
        AttentionAttribution(EncoderClassifier().eval()).attribute(torch.tensor([[999]]))
