"""What passes attention by has no value: NaN in scores, tables and pictures, and no part in agreement."""

from __future__ import annotations

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

from captum_attn_lime import AttentionAttribution, TabularAdapter, compare
from captum_attn_lime.errors import TokenMapError
from captum_attn_lime.metrics._global_view import global_view

RANDOM = np.random.RandomState(0)
ROWS = np.column_stack([RANDOM.normal(size=(60, 2)), RANDOM.randint(0, 3, (60, 3))])
NAMES = ["age", "income", "job", "town", "kind"]


class Columns(nn.Module):
    """Attention over some columns; the others join behind it."""

    def __init__(self, numbers=(), categories=(0, 1, 2), method="rollout"):
        super().__init__()
        torch.manual_seed(0)
        self.numbers, self.categories = list(numbers), list(categories)
        self.weight = nn.Parameter(torch.randn(2, 8))
        self.tables = nn.ModuleList(nn.Embedding(3, 8) for _ in range(3))
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8 + 2 + 3, 2)

    def forward(self, x_num, x_cat):
        tokens = [(x_num[:, i, None] + 1) * self.weight[i] for i in self.numbers]
        tokens += [self.tables[i](x_cat[:, i]) for i in self.categories]
        attended = self.encoder(torch.stack(tokens, dim=1)).mean(dim=1)
        return self.head(torch.cat([attended, 5 * x_num, x_cat.to(x_num)], dim=1))


def adapter_of(model: nn.Module) -> TabularAdapter:
    return TabularAdapter(model.eval(), training_data=ROWS, categorical_features=[2, 3, 4], feature_names=NAMES)


@pytest.mark.parametrize("method", ["raw", "rollout", "relevance"])
@pytest.mark.parametrize(
    ("numbers", "categories", "lacking"),
    [
        ((), (0, 1, 2), ["age", "income"]),
        ((0,), (0, 1, 2), ["income"]),
        ((0, 1), (0, 2), ["town"]),
        ((0, 1), (), ["job", "town", "kind"]),
        ((1,), (2,), ["age", "job", "town"]),
    ],
)
def test_columns_behind_the_attention_have_no_value(method, numbers, categories, lacking):
    a = adapter_of(Columns(numbers, categories))
    x = a.encode(ROWS[0])
    found = compare({"a": AttentionAttribution(a, method=method)}, x, target=1).scores["a"]
    assert list(found.index[found.isna()]) == lacking
    if method != "relevance":
        assert found.sum() == pytest.approx(1.0)
    batch = AttentionAttribution(a, method=method).attribute(a.encode(ROWS[:3]).inputs, target=1)
    assert sum(int(part.isnan().sum()) for part in batch) == 3 * len(lacking)


def test_what_has_no_value_takes_no_part_in_agreement_and_is_drawn_as_such():
    a = adapter_of(Columns())
    x = a.encode(ROWS[0])
    result = compare({"rollout": AttentionAttribution(a), "ablation": captum.attr.FeatureAblation(a)}, x, target=1)
    kept = result.scores.dropna()
    assert list(kept.index) == ["job", "town", "kind"]
    by_hand = compare({name: [*[np.nan] * 2, *kept[name]] for name in kept}, x)
    np.testing.assert_allclose(result.agreement, by_hand.agreement)
    assert "no value" in result.to_html()
    result.plot().savefig("/dev/null", format="png")


def test_features_of_several_columns():
    a = adapter_of(Columns(numbers=(0,)))
    x = a.encode(ROWS[:2])
    attention = AttentionAttribution(a)
    plain = attention.attribute(x.inputs, target=1)
    # age and income together, income alone in no feature of its own; job and town together.
    mask = (torch.tensor([[0, 0]]), torch.tensor([[1, 1, 2]]))
    numbers, categories = attention.attribute(x.inputs, target=1, feature_mask=mask)
    torch.testing.assert_close(numbers, plain[0][:, :1].expand(-1, 2))  # what of the feature has a value
    torch.testing.assert_close(categories[:, 0], plain[1][:, :2].sum(dim=1))
    alone = attention.attribute(x.inputs, target=1, feature_mask=x.feature_mask)
    assert alone[0].isnan().tolist() == [[False, True]] * 2


def test_the_view_over_many_rows_leaves_them_out():
    a = adapter_of(Columns())
    x = a.encode(ROWS[:4])
    numbers, categories = AttentionAttribution(a).attribute(x.inputs, target=1)
    view = global_view(torch.cat([numbers, categories], dim=1), x.feature_names)
    assert set(view.index) == {"job", "town", "kind"}


def test_noise_leaves_them_without_a_value():
    a = adapter_of(Columns(numbers=(0,), categories=()))
    numbers = lambda x: a(x, torch.zeros(len(x), 3, dtype=torch.int64))  # noqa: E731
    tunnel = captum.attr.NoiseTunnel(AttentionAttribution(numbers))
    found = tunnel.attribute(torch.randn(2, 2), target=0, nt_samples=3, stdevs=0.1)
    assert found.isnan().tolist() == [[False, True]] * 2


def test_where_nothing_reaches_attention_there_is_nothing_to_say():
    class Constant(Columns):
        def forward(self, x_num, x_cat):
            attended = self.encoder(self.weight[None].expand(len(x_num), -1, -1)).mean(dim=1)
            return self.head(torch.cat([attended, x_num, x_cat.to(x_num)], dim=1))

    a = adapter_of(Constant())
    with pytest.raises(TokenMapError, match="change none of the 2 attended tokens"):
        AttentionAttribution(a).attribute(a.encode(ROWS[0]).inputs, target=1, query="mean")


def test_a_colour_beside_a_picture():
    class Picture(nn.Module):
        def __init__(self):
            super().__init__()
            self.cut = nn.Conv2d(3, 8, 4, 4)
            layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.head = nn.Linear(11, 2)

        def forward(self, picture, colour):
            tokens = self.encoder(self.cut(picture).flatten(2).transpose(1, 2)).mean(dim=1)
            return self.head(torch.cat([tokens, colour], dim=1))

    pixels, colour = AttentionAttribution(Picture().eval()).attribute((torch.rand(1, 3, 10, 8), torch.rand(1, 3)))
    assert bool(colour.isnan().all())
    assert pixels[0, 0, :8:4, ::4].sum().item() == pytest.approx(1.0)
    assert not bool(pixels[:, :, 8:].any())  # the model does not read what lies beyond the last patch
