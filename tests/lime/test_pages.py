"""lime's page says the truth: read from the page's own data, and opened in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from lime.lime_tabular import LimeTabularExplainer
from torch import nn

from captum_attn_lime import LimeSequence, LimeTabular, LimeText, SequenceAdapter, TabularAdapter, TextAdapter
from captum_attn_lime.adapters import WordTokenizer
from captum_attn_lime.lime import safe_html

NAMES = ["healthy", "ill"]
ROWS = np.random.RandomState(0).normal(size=(300, 2))
SERIES = np.random.RandomState(1).normal(size=(80, 3, 2))
TEXT = "😀 good film but bad 😀 and good"


class Health(nn.Module):
    """The first number speaks for "healthy", the last one for "ill"; one logit or two."""

    def __init__(self, columns):
        super().__init__()
        self.columns = columns

    def forward(self, x):
        flat = x.flatten(1)
        z = flat[:, -1:] - 2 * flat[:, :1]
        return z if self.columns == 1 else torch.cat([-z, z], dim=1)


class Critic(nn.Module):
    """ "good" speaks for class 1 and "bad" for class 0."""

    def __init__(self, columns):
        super().__init__()
        values = torch.tensor([[0.0], [0.0], [1.0], [-3.0], [0.0], [0.0]])
        self.values, self.columns = nn.Embedding.from_pretrained(values), columns

    def forward(self, input_ids):
        z = self.values(input_ids).sum(dim=1)
        return z if self.columns == 1 else torch.cat([-z, z], dim=1)


def tokenizer():
    return WordTokenizer({"<pad>": 0, "<unk>": 1, "good": 2, "bad": 3, "film": 4, "😀": 5})


def row(columns):
    adapter = TabularAdapter(Health(columns), training_data=ROWS, feature_names=["fitness", "fever"], class_names=NAMES)
    return LimeTabular(adapter), [1.5, 1.5], {"fitness": "healthy", "fever": "ill"}


def series(columns):
    adapter = SequenceAdapter(
        Health(columns), training_data=SERIES, feature_names=["fitness", "fever"], class_names=NAMES
    )
    return LimeSequence(adapter), np.full((3, 2), 1.5), {"fitness_t-2": "healthy", "fever_t-0": "ill"}


def text(columns):
    adapter = TextAdapter(Critic(columns), tokenizer(), class_names=NAMES)
    return LimeText(adapter, features="word"), TEXT, {"bad": "healthy", "good": "ill"}


KINDS = {"row": row, "series": series, "text": text}


def found_in(page):
    """Return the names that bars stand under, and the features with their weights, of the first chart."""
    names = json.loads(re.search(r"new lime\.Explanation\((\[.*?\])\)", page).group(1))
    bars = json.loads(re.search(r"exp\.show\((\[.*?\]), \d+, exp_div", page).group(1))
    return names, bars


def pages(explanation, tmp_path):
    explanation.save_to_file(str(tmp_path / "page.html"))
    return explanation.as_html(), explanation._repr_html_(), (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("target", [0, 1, None])
def test_bars_stand_under_the_class_that_they_speak_for(kind, columns, target, tmp_path):
    lime, example, speaks_for = KINDS[kind](columns)
    explanation = lime.explain(example, target, num_samples=400)
    for page in pages(explanation, tmp_path):
        names, bars = found_in(page)
        assert names == NAMES
        for feature, name in speaks_for.items():
            (weight,) = [w for shown, w in bars if feature in shown]
            assert names[int(weight > 0)] == name
        assert f"LIME of the probability of class &#x27;{explanation.explained.name}&#x27;" in page


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [0, 1])
def test_logits_are_not_called_probabilities(kind, target, tmp_path):
    for columns in (1, 2):
        lime, example, speaks_for = KINDS[kind](columns)
        explanation = lime.explain(example, target, num_samples=400, output="logits")
        page = explanation.as_html()
        assert "new lime.PredictProba" not in page[page.index("</head>") :]
        names, bars = found_in(page)
        # Of two logits each has its own: what lowers one of them need not raise the other.
        assert names == (NAMES if columns == 1 else [f"NOT {NAMES[target]}", NAMES[target]])
        for feature, name in speaks_for.items():
            (weight,) = [w for shown, w in bars if feature in shown]
            under = names[int(weight > 0)]
            assert (under == name) if columns == 1 else ("NOT" in under) == (name != NAMES[target])


def test_labels_that_do_not_exclude_each_other():
    adapter = TabularAdapter(Health(2), training_data=ROWS, class_names=["cough", "fever"], task="multi_label")
    one = LimeTabular(adapter).explain([1.5, 1.5], 0, num_samples=100).as_html()
    assert found_in(one)[0] == ["NOT cough", "cough"]
    assert '["cough", "fever"], [0.' in one  # both probabilities under their own names
    both = LimeTabular(adapter).explain([1.5, 1.5], labels=[0, 1], num_samples=100).as_html()
    assert found_in(both)[0] == ["cough", "fever", ""]  # lime writes "NOT a" and "a" beside more than two names


def test_a_regression_is_headed_by_its_prediction():
    adapter = TextAdapter(Critic(1), tokenizer(), outputs="predictions")
    explanation = LimeText(adapter).explain("good bad film", num_samples=3000)
    weights = dict(explanation.as_list())
    assert weights["bad"] == pytest.approx(-3, abs=0.1)
    assert weights["good"] == pytest.approx(1, abs=0.1)
    page = explanation.as_html()
    assert "LIME of the prediction: -2" in page
    assert "new lime.PredictedValue(pp_svg, -2.0, -3.0, 1.0)" in page
    assert "new lime.PredictProba" not in page[page.index("</head>") :]
    assert found_in(page)[0] == ["negative", "positive"]


def test_marks_stand_where_the_words_stand_behind_an_emoji():
    page = text(1)[0].explain(TEXT, 1, num_samples=100).as_html()
    marks = json.loads(re.search(r"exp\.show_raw_text\((\[.*?\]), \d+,", page).group(1))
    units = TEXT.encode("utf-16-le")
    assert {word for word, _, _ in marks} >= {"good", "bad", "😀"}
    for word, start, _ in marks:
        own = word.encode("utf-16-le")
        assert units[2 * start : 2 * start + len(own)] == own


def test_the_page_of_an_official_explanation():
    adapter = row(2)[0].forward_func
    official = LimeTabularExplainer(ROWS, feature_names=["fitness", "fever"], class_names=NAMES, random_state=0)
    explanation = official.explain_instance(np.array([1.5, 1.5]), adapter.predict_proba, labels=(0,), num_samples=200)
    names, bars = found_in(safe_html(explanation))
    assert {names[int(w > 0)] for shown, w in bars if "fitness" in shown} == {"healthy"}
    assert explanation.as_list(label=0)[0][1] == -bars[0][1]  # the explanation itself is left as it was


def test_a_name_with_a_script_in_it_is_escaped_above_the_charts():
    evil = "</script><b>&"
    adapter = TabularAdapter(Health(2), training_data=ROWS, class_names=["a", evil])
    page = LimeTabular(adapter).explain([1.0, 1.0], evil, num_samples=50).as_html()
    assert evil not in page
    assert "&lt;/script&gt;&lt;b&gt;&amp;" in page


def drawn(page, tmp_path):
    """Return the page as a browser has drawn it."""
    path = tmp_path / "drawn.html"
    path.write_text(page, encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [0, 1])
def test_in_a_browser(kind, target, tmp_path):
    lime, example, speaks_for = KINDS[kind](2)
    page = drawn(lime.explain(example, target, num_samples=400).as_html(), tmp_path)
    chart = page[page.rindex('class="lime explanation"') :]
    title = r'<text x="[\d.]+" y="15"[^>]*fill: (rgb\([^)]*\));">([^<]+)</text>'
    names = {name: color for color, name in re.findall(title, chart)}
    assert list(names) == NAMES
    for feature, name in speaks_for.items():
        bar = re.search(rf">[^<]*{feature}[^<]*</text><rect[^>]*fill: (rgb\([^)]*\))", chart)
        assert bar.group(1) == names[name]
    assert ">Prediction probabilities</text>" in page
    logits = drawn(lime.explain(example, target, num_samples=400, output="logits").as_html(), tmp_path)
    assert ">Prediction probabilities</text>" not in logits
    assert f">LIME of the logit of class '{NAMES[target]}'" in logits
