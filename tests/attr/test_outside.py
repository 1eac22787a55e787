"""How much of an attribution lies on no feature: models whose attention on special tokens is known."""

from __future__ import annotations

import copy
import pickle
from html import escape

import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import FeatureAblation, LayerGradientXActivation
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from captum_attn_lime import AttentionAttribution, LimeText, TabularAdapter, TextAdapter, compare, features, global_view
from captum_attn_lime import plot as plots
from captum_attn_lime.adapters import Encoding
from captum_attn_lime.methods import Rollout
from tests.models import text as models

TEXT = "good film the acting bad"
CLS, SEP, WORD = 40.0, 55.0, 1.0  # of 100 with five words


class Reader(nn.Module):
    """One attention in which each token of an id always has the same weight beside the others."""

    def __init__(self, n_ids=80):
        super().__init__()
        self.embed, self.head = nn.Embedding(n_ids, 9), nn.Linear(9, 2)
        self.query, self.key = nn.Linear(9, 1), nn.Linear(9, 1)
        with torch.no_grad():
            weights = torch.full((n_ids,), WORD)
            weights[2], weights[3] = CLS, SEP
            self.embed.weight[:, 0] = weights.log()
            for layer, bias, weight in ((self.query, 1.0, 0.0), (self.key, 0.0, 1.0)):
                layer.weight.zero_()[0, 0] = weight
                layer.bias.fill_(bias)

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        mask = None if attention_mask is None else attention_mask[:, None, None].bool()
        q, k, v = (part[:, None] for part in (self.query(x), self.key(x), x))
        return self.head(scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)[:, 0, 0])


class ClassToken(nn.Module):
    """A table read through a token that no column stands for, which keeps 75 % for itself: 3 to 1/4 each of four."""

    def __init__(self):
        super().__init__()
        self.tokens, self.cls, self.head = (
            nn.Parameter(torch.randn(4, 8)),
            nn.Parameter(torch.randn(8)),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        value = torch.cat([x[..., None] * self.tokens, self.cls.expand(len(x), 1, -1)], dim=1)
        key = torch.tensor([0.0] * 4 + [12.0]).log().nan_to_num(neginf=0.0)[None, :, None].expand(len(x), -1, 1)
        read = scaled_dot_product_attention(torch.ones_like(key)[:, None], key[:, None], value[:, None], scale=1.0)
        return self.head(read[:, 0, -1])


@pytest.fixture(scope="module")
def adapter():
    torch.manual_seed(0)
    return TextAdapter(Reader().eval(), models.word_level_tokenizer())


@pytest.fixture(scope="module")
def review(adapter):
    x = adapter.encode(TEXT)
    raw = AttentionAttribution(adapter, method="raw")
    found = {"raw": raw, "rollout": AttentionAttribution(adapter, method=Rollout(residual=0.4))}
    found["LIME"] = LimeText(adapter).explain(TEXT, 1, num_samples=30)
    return compare(found, x, target=1)


def test_the_share_of_each_special_token(review):
    assert review.outside["raw"].to_dict() == pytest.approx({"[CLS]": 0.40, "[SEP]": 0.55})
    assert review.scores["raw"].tolist() == pytest.approx([0.01] * 5)
    # 40 % of this rollout are what the query's own token, [CLS], keeps.
    assert review.outside["rollout"].to_dict() == pytest.approx({"[CLS]": 0.64, "[SEP]": 0.33})
    assert review.outside["LIME"].isna().all()
    lines = repr(review).splitlines()
    assert lines[1:] == [
        "raw: 95 % lies on [SEP] (55 %), [CLS] (40 %)",
        "rollout: 97 % lies on [CLS] (64 %), [SEP] (33 %)",
    ]


def test_special_tokens_can_be_shown(review):
    shown = review.scores_with_special_tokens
    assert list(shown.index) == ["[CLS]", *TEXT.split(), "[SEP]"]
    assert shown["raw"].tolist() == pytest.approx([0.40, *[0.01] * 5, 0.55])
    assert shown["LIME"].isna().tolist() == [True, *[False] * 5, True]
    page = review.to_html(special_tokens=True)
    assert page.count(">[CLS]<") == 4  # once for each method, and in the table
    assert "95 % lies on [SEP] (55 %), [CLS] (40 %)." in page
    assert ">[CLS]<" not in review.to_html()
    assert "95 % lies on [SEP] (55 %), [CLS] (40 %)." in review.to_html()
    texts = [t.get_text() for sub in review.plot(special_tokens=True).subfigs for ax in sub.axes for t in ax.texts]
    assert texts.count("[CLS]") == 3
    notes = [ax.get_title(loc="right") for sub in review.plot().subfigs for ax in sub.axes]
    assert "95 % lies on [SEP] (55 %), [CLS] (40 %)" in notes
    for copied in (copy.deepcopy(review), pickle.loads(pickle.dumps(review))):
        pd.testing.assert_frame_equal(copied.outside, review.outside)


@pytest.mark.parametrize("form", ["object", "cells", "tokens"])
def test_attributions_that_came_ready_have_shares_too(adapter, form):
    x = adapter.encode(TEXT)
    raw = AttentionAttribution(adapter, method="raw")
    given = {
        "object": raw,
        "cells": raw.attribute(**x.arguments(raw), target=1),  # all special tokens carry what they have together
        "tokens": raw.attribute(x.inputs, additional_forward_args=x.forward_args),
    }[form]
    # A word of two tokens tells cells from tokens.
    mask = torch.tensor([[4, 0, 0, 1, 2, 3, 4]])
    joined = copy.copy(x)
    object.__setattr__(joined, "feature_mask", mask)
    object.__setattr__(joined, "feature_names", (("good film", "the", "acting", "bad"),))
    if form == "cells":
        given = raw.attribute(**joined.arguments(raw), target=1)
    found = compare({"raw": given}, joined, target=1)
    assert found.scores["raw"].tolist() == pytest.approx([0.02, 0.01, 0.01, 0.01])
    shares = {"[CLS], [SEP]": 0.95} if form == "cells" else {"[CLS]": 0.40, "[SEP]": 0.55}
    assert found.outside["raw"].to_dict() == pytest.approx(shares)


def test_gradients_have_shares_and_ablation_of_nothing_has_none(adapter):
    x = adapter.encode(TEXT)
    gradient = LayerGradientXActivation(adapter, adapter.embedding)
    found = compare({"gradient": gradient, "ablation": FeatureAblation(adapter)}, x, target=1)
    cells = gradient.attribute(**x.arguments(gradient), target=1).detach().sum(dim=2)[0].abs()
    wanted = {"[CLS]": float(cells[0] / cells.sum()), "[SEP]": float(cells[-1] / cells.sum())}
    assert found.outside["gradient"].to_dict() == pytest.approx(wanted, abs=1e-6)
    assert found.outside["ablation"].isna().all()
    assert "ablation:" not in repr(found)


def test_the_other_text_of_a_pair_is_outside():
    from tests.models import heads

    a = TextAdapter(Reader(120).eval(), heads.bert_tokenizer())
    x = a.encode(("good film", "bad acting"), explained_text="first")
    found = compare({"raw": AttentionAttribution(a, method="raw")}, x)
    weights = a.model.embed.weight.detach()[x.inputs[0], 0].exp()
    weights /= weights.sum()
    second = [k for k, span in enumerate(x.token_spans[0]) if span is not None and span[0] == 1]
    assert found.outside["raw"]["the second text"] == pytest.approx(float(weights[second].sum()))
    assert float(found.outside["raw"].sum() + found.scores["raw"].sum()) == pytest.approx(1)
    assert "[bad]" in found.scores_with_special_tokens.index


def test_tokens_that_no_column_stands_for():
    torch.manual_seed(0)
    a = TabularAdapter(ClassToken().eval(), feature_names=list("abcd"))
    x = a.encode(np.array([[0.5, -1.0, 2.0, 1.0]]))
    found = compare({"raw": AttentionAttribution(a, method="raw")}, x, target=1)
    assert found.scores["raw"].tolist() == pytest.approx([1 / 16] * 4)
    assert found.outside["raw"].to_dict() == pytest.approx({"tokens outside the input": 0.75})
    assert found.scores_with_special_tokens["raw"].tolist() == pytest.approx([*[1 / 16] * 4, 0.75])
    assert "raw: 75 % lies on tokens outside the input" in found.to_html()
    figure = found.plot(special_tokens=True)
    assert figure.axes[0].get_xlabel().splitlines()[1] == "raw: 75 % lies on tokens outside the input"
    assert next(t.get_text() for t in figure.axes[0].get_yticklabels()) == "tokens outside the input"


def test_the_total_holds_tokens_without_cells():
    torch.manual_seed(0)
    a = TabularAdapter(ClassToken().eval(), feature_names=list("abcd"))
    rows = torch.tensor([[0.5, -1.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    cells, total = AttentionAttribution(a, method="raw").attribute_with_total(rows)
    assert total.tolist() == pytest.approx([1.0, 1.0])
    torch.testing.assert_close(cells.sum(dim=1), torch.full((2,), 0.25))
    doubled = lambda maps, query, **_: 2 * maps[-1].rows(query.argmax(dim=1)).mean(dim=1)[:, 0]  # noqa: E731
    assert AttentionAttribution(a, method=doubled).attribute_with_total(rows)[1].tolist() == pytest.approx([2.0, 2.0])


def test_nothing_outside_has_no_rows_and_no_words():
    ids = torch.arange(3)[None]
    x = Encoding(ids, (), ids, ids, (("a", "b", "c"),))
    found = compare({"one": [[1.0, 2.0, 3.0]], "zero": torch.zeros(1, 3)}, x)
    assert found.outside.empty
    assert list(found.outside.columns) == ["one", "zero"]
    assert "lies on" not in repr(found) + found.to_html()
    pd.testing.assert_frame_equal(found.scores_with_special_tokens, found.scores)


def test_a_global_view_knows_what_lies_on_no_feature(adapter):
    x = adapter.encode([TEXT, "bad film"])
    raw = AttentionAttribution(adapter, method="raw")
    cells = raw.attribute(**x.arguments(raw), target=1)
    view = global_view(features.pool(cells, x.feature_mask, "first"), x.feature_names)
    assert view.attrs["outside"] == pytest.approx((0.95 + 95 / 97) / 2)
    assert plots.global_view(view).get_xlabel().splitlines()[1] == "96 % lies on no feature"


def test_the_page_names_the_explained_number_once(review):
    page = review.to_html(prediction="good")
    assert page.count("Prediction: <b>good</b>") == 1
    assert page.count(f"Explained: {escape(str(review.explained))}") == 1
    assert "Prediction:" not in review.to_html()
