"""LimeExplanation: one typed object for texts, rows, sequences and pictures, with everything that lime's has."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from lime.explanation import Explanation
from lime.lime_image import ImageExplanation

import captum_attn_lime
from captum_attn_lime import Explained, LimeExplanation, LimeText
from captum_attn_lime.adapters import ImageEncoding
from captum_attn_lime.errors import InputError
from captum_attn_lime.lime import LimeImageExplanation, explanation_weights
from tests.lime.test_compatibility import KINDS
from tests.lime.test_diagnostics import explained as explained_kind


@pytest.fixture(params=KINDS)
def case(request):
    lime, example = KINDS[request.param](3)
    return request.param, lime, example


def test_fields_and_types(case):
    kind, lime, example = case
    found = lime.explain(example, 1, num_samples=100, num_features=2)
    assert type(found) is (LimeImageExplanation if kind == "image" else LimeExplanation)
    assert isinstance(found, Explanation)
    assert isinstance(found, ImageExplanation) is (kind == "image")
    assert isinstance(found.explained, Explained)
    assert found.diagnostics is found.all_diagnostics[1]
    assert found.explained is found.diagnostics.explained
    assert found.predict_proba[1] == pytest.approx(found.explained.value)
    assert found.seed == 3
    assert (found.text, found.explained_text, found.token) == (example if kind == "text" else None, None, None)
    assert (found.row is None) is (kind in ("text", "image"))
    (fit,) = found.fits
    assert fit.data.x.shape == (100, len(found.feature_names))
    assert fit.selected == 2
    assert found.local_exp[1] == fit.result[1]
    assert (found.intercept[1], found.score) == (fit.result[0], fit.result[2])
    assert len(found.as_list()) == 2


def test_copies(case):
    _, lime, example = case
    found = lime.explain(example, 1, num_samples=60)
    for other in (copy.copy(found), copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert type(other) is type(found)
        assert other.as_list() == found.as_list()
        assert repr(other) == repr(found)
        assert other.explained == found.explained
        assert len(other.as_html()) == len(found.as_html())


def test_repr(case):
    kind, lime, example = case
    found = lime.explain(example, 1, num_samples=60)
    shown = repr(found)
    assert shown.startswith(
        f"{type(found).__name__}(probability of class {'1' if kind in ('sequence', 'image') else ''}"
    )
    assert f"R² {found.score:.2f}" in shown
    names = [str(name) for name, _ in found.as_list()]
    assert all(name in shown for name in names[:3])
    assert f"({len(names)} features)" in shown or len(names) <= 3
    assert len(shown) < 200
    several = repr(lime.explain(example, labels=[1, 0], num_samples=60))
    assert "and 1 more" in several


def test_an_encoding_is_explained_as_what_it_is_of(case):
    kind, lime, example = case
    if kind == "image":
        assert isinstance(example, ImageEncoding)
        return
    x = lime.forward_func.encode(example)
    found = lime.explain(x, 1, num_samples=100)
    if kind == "text":  # whose words are the features, and not lime's
        assert found.feature_names == tuple(dict.fromkeys(x.feature_names[0]))
        with pytest.raises(InputError, match="mask_string replaces lime's words"):
            LimeText(lime.forward_func, bow=False, mask_string="x").explain(x, 1)
        lime.features = "word"
    assert explanation_weights(found) == explanation_weights(lime.explain(example, 1, num_samples=100))
    batch = lime.forward_func.encode([example, example] if kind == "text" else np.stack([example, example]))
    with pytest.raises(InputError, match=r"explain needs one .*2"):
        lime.explain(batch, 1)


def test_a_regression_is_read_under_1_in_every_class():
    found = explained_kind("regression")
    assert found.mode == "regression"
    assert found.local_exp[0] == [(k, -w) for k, w in found.local_exp[1]]
    assert found.intercept[0] == found.intercept[1]
    assert found.predicted_value == found.explained.value


def test_two_pages_of_one_notebook_have_ids_of_their_own():
    lime, text = KINDS["text"](0)
    one, two = (lime.explain(example, 1, num_samples=60).as_html() for example in (text, text.replace("film", "cast")))
    ids = [page[page.index('id="top_div') :].split('"')[1] for page in (one, two)]
    assert ids[0] != ids[1]


def test_the_package_imports_lime_only_when_it_is_needed():
    assert captum_attn_lime.LimeExplanation is LimeExplanation
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        captum_attn_lime.Nothing  # noqa: B018
