"""What all four classes keep that the official package does not: seeds, global random numbers, pickles, safe pages."""

from __future__ import annotations

import json
import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from lime.lime_tabular import LimeTabularExplainer
from torch import nn

from captum_attn_lime import (
    ImageAdapter,
    LimeImage,
    LimeSequence,
    LimeTabular,
    LimeText,
    SequenceAdapter,
    TabularAdapter,
    TextAdapter,
    WordTokenizer,
)
from captum_attn_lime.lime import (
    LimeExplanation,
    explanation_prediction,
    explanation_score,
    explanation_weights,
    pooled,
    safe_html,
)

TEXT = "a fine film with a fine cast"
ROWS = np.random.RandomState(0).normal(size=(60, 3))
SERIES = np.random.RandomState(1).normal(size=(40, 4, 2))
PICTURE = np.random.RandomState(2).randint(0, 256, size=(12, 12, 3)).astype(np.uint8)
EVIL = "</script><b>&"


class Linear(nn.Module):
    """Logits (B, 2) from all numbers of an input."""

    def __init__(self, n):
        super().__init__()
        slopes = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
        self.slopes = nn.Parameter(slopes / n**0.5)

    def forward(self, x, mask=None):
        return x.flatten(1).float() @ self.slopes


class Bag(nn.Module):
    """Logits (B, 2) that add up a number for each word."""

    def __init__(self, n):
        super().__init__()
        self.words = nn.Embedding(n, 2)
        nn.init.normal_(self.words.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, input_ids, attention_mask):
        return (self.words(input_ids) * attention_mask[:, :, None]).sum(dim=1)


def text(seed=0, names=("no", "yes")):
    tokenizer = WordTokenizer.fit([TEXT])
    adapter = TextAdapter(Bag(len(tokenizer.vocabulary)).eval(), tokenizer)
    return LimeText(adapter, class_names=list(names), seed=seed), TEXT


def table(seed=0, names=("no", "yes"), columns=("a", "b", "c")):
    adapter = TabularAdapter(Linear(3).eval(), training_data=ROWS, feature_names=list(columns), class_names=list(names))
    return LimeTabular(adapter, seed=seed), ROWS[0]


def sequence(seed=0):
    return LimeSequence(SequenceAdapter(Linear(8).eval(), training_data=SERIES), seed=seed), SERIES[0]


def image(seed=0):
    adapter = ImageAdapter(Linear(432).eval(), mean=(0.5,) * 3, std=(0.25,) * 3, size=(12, 12))
    x = adapter.encode(PICTURE, features=np.arange(144).reshape(12, 12) // 24)
    return LimeImage(adapter, seed=seed), x


KINDS = {"text": text, "table": table, "sequence": sequence, "image": image}


@pytest.fixture(params=KINDS)
def make(request):
    return KINDS[request.param]


def explained(make, seed=0, **options):
    lime, example = make(seed)
    return lime.explain(example, 1, num_samples=150, **options)


def test_global_random_numbers_are_left_alone(make):
    lime, example = make()
    before, torch_before = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    found = [lime.explain(example, 1, num_samples=100, num_features=2, seed=seed) for seed in (0, 1)]
    pooled(found)
    after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_the_seed_decides(make):
    first, again, other = (explanation_weights(explained(make, seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    lime, example = make(9)
    lime.explain(example, 1, num_samples=150)  # lime's own random numbers would go on from here
    assert explanation_weights(lime.explain(example, 1, num_samples=150, seed=3)) == first


def test_explanations_can_be_pickled(make):
    found = explained(make)
    copy = pickle.loads(pickle.dumps(found))
    assert type(copy) is type(found)
    assert explanation_weights(copy) == explanation_weights(found)
    assert str(copy.diagnostics) == str(found.diagnostics)
    json.dumps(copy.diagnostics.to_dict())


def test_scores_of_both_limes_are_read(make):
    found = explained(make)
    score, prediction = explanation_score(found), explanation_prediction(found)
    assert (score, prediction) == pytest.approx((found.diagnostics.r2_shown, found.diagnostics.local_prediction))
    label = next(iter(found.local_exp))
    found.score, found.local_pred = {label: score}, {label: np.array([prediction])}  # as lime's repository has them
    assert (explanation_score(found), explanation_prediction(found)) == (score, prediction)


@pytest.mark.parametrize("make", [text, sequence, table], ids=["text", "sequence", "table"])
def test_pages_and_notebooks(make, monkeypatch):
    found, pages = explained(make), []
    assert isinstance(found, LimeExplanation)
    display = ModuleType("IPython.display")
    display.HTML, display.display = lambda page: page, pages.append
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    found.show_in_notebook()
    without_ids = [page[page.index("</script></head>") :].count("<script") for page in (*pages, found._repr_html_())]
    assert without_ids == [1, 1]
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(ImportError, match="save_to_file"):
        found.show_in_notebook()


def own_part(page):
    return page[page.index("</script></head>") :]


def test_names_in_the_page_of_a_row_are_escaped():
    lime, row = table(names=("no", EVIL), columns=("a", EVIL, "c"))
    found = lime.explain(row, 1, num_samples=50)
    for page in (found.as_html(), safe_html(found)):
        assert EVIL not in page
        assert own_part(page).count("</script>") == 2
    plain = LimeTabularExplainer(ROWS, feature_names=["a", EVIL, "c"], random_state=0)
    found = plain.explain_instance(row, table()[0].forward_func.predict_proba, num_samples=50)
    assert EVIL not in safe_html(found)


def test_no_bar_unless_asked_for(make, capfd):
    explained(make)
    assert capfd.readouterr() == ("", "")
    explained(make, show_progress=True)
    shown = capfd.readouterr().err
    assert "100%" in shown
    assert ("texts:" if make is text else "150/150") in shown  # of a text, the distinct copies


@pytest.mark.parametrize("make", [text, sequence, table], ids=["text", "sequence", "table"])
def test_the_class_that_was_explained_is_shown(make):
    lime, example = make()
    found = lime.explain(example, 0, num_samples=50)
    assert found.as_list() == found.as_list(label=0)
    with pytest.raises(KeyError):
        found.as_list(label=1)
    figure = found.as_pyplot_figure()
    assert len(figure.axes[0].patches) == len(found.as_list())
