"""The pictures: what is drawn is what came in, unknown values show, and bad data is refused."""

from __future__ import annotations

import re
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot

from captum_attn_lime import plot
from captum_attn_lime.errors import InputError
from captum_attn_lime.metrics import agreement
from captum_attn_lime.plot._common import score_colors, text_color
from captum_attn_lime.plot._image import images_height

WORDS = ["A", "$fine$", "film", "", "with a\nbreak"]
SCORES = pd.DataFrame({"rollout": [0.1, 0.5, 0.0, 0.2, 0.2], "LIME": [0.3, -0.6, np.nan, 0.1, 0.0]}, index=WORDS)


@pytest.fixture(autouse=True)
def _closed():
    yield
    pyplot.close("all")


def _drawn(ax):
    return [t.get_text() for t in ax.texts]


def test_text_shows_every_word_once_and_no_mathtext():
    ax = plot.text(WORDS, SCORES["LIME"], title="costs $5 or $6")
    assert _drawn(ax) == ["A", "$fine$", "film", "␣", "with a break"]
    assert not any(t.get_parse_math() for t in [*ax.texts, ax.title, ax._left_title] if t.get_text())
    ax.figure.savefig(BytesIO())


def test_text_takes_tensors_and_an_axes_and_breaks_lines():
    _, ax = pyplot.subplots(figsize=(2, 3))
    words = ["word"] * 30
    assert plot.text(words, torch.rand(30, requires_grad=True), ax=ax) is ax
    assert len({round(t.get_position()[1], 3) for t in ax.texts}) > 3
    width = ax.get_window_extent().width / ax.figure.dpi * 72
    assert all(t.get_position()[0] < width for t in ax.texts)


def test_colours_tell_sign_strength_and_missing():
    strong, weak, zero, missing = score_colors(np.array([1.0, 0.1, 0.0, np.nan]), None)
    assert text_color((1, 1, 1, 1)) == "black"
    assert text_color((0.1, 0.1, 0.4, 1)) == "white"
    brightness = [sum(c[:3]) for c in (strong, weak, zero)]
    assert brightness == sorted(brightness)
    assert missing[0] == missing[1] == missing[2]
    plus, minus = score_colors(np.array([1.0, -1.0]), None)
    assert plus[0] > plus[2]
    assert minus[2] > minus[0]


def test_texts_has_one_block_per_method():
    figure = plot.texts(WORDS, SCORES, title="both")
    titles = [ax._left_title.get_text() for ax in figure.axes if ax._left_title.get_text()]
    assert titles == ["rollout", "LIME"]


def test_bars_are_sorted_and_cut():
    ax = plot.bars(SCORES, max_features=2)
    assert ax.get_yticklabels()[0].get_text() == "$fine$"
    assert len(ax.containers) == 2
    assert "2 of 5" in ax.get_ylabel()
    lengths = [bar.get_width() for bar in ax.containers[1]]
    assert lengths[0] == pytest.approx(-1.0)


def test_bars_mark_missing_values_and_fill_the_figure():
    crosses = [line for line in plot.bars(SCORES).lines if line.get_marker() == "x"]
    assert [len(line.get_xdata()) for line in crosses] == [1]
    tall = pd.DataFrame({"a": range(1, 16), "b": range(1, 16)})
    ax = plot.bars(tall)
    ax.figure.canvas.draw()
    assert ax.get_position().y0 * ax.figure.get_figheight() < 0.7  # inches below the bars, for one axis label


def test_a_word_without_a_score_is_hatched():
    ax = plot.text(WORDS, SCORES["LIME"])
    assert [patch.get_hatch() is not None for patch in ax.patches] == SCORES["LIME"].isna().tolist()


def test_words_stay_readable_at_every_score():
    for values in (np.linspace(-1, 1, 41), np.linspace(0, 1, 41)):
        for color in score_colors(values, None):
            ink = {"black": (0, 0, 0), "white": (1, 1, 1)}[text_color(color)]
            assert _contrast(ink, color[:3]) >= 4.5


def test_the_page_stays_readable_at_full_strength_in_light_and_dark():
    page = plot.html_page(SCORES)
    light, dark = re.findall(r"--page: #.*?}", page, re.DOTALL)
    assert "prefers-color-scheme: dark" in page
    for scheme in (light, dark):
        ink, card = (_hex(re.search(rf"--{name}: (#\w{{6}})", scheme)[1]) for name in ("ink", "card"))
        for name in ("plus", "minus", "one", "agree"):
            color = [int(c) / 255 for c in re.search(rf"--{name}: ([\d, ]+);", scheme)[1].split(",")]
            blended = [0.9 * c + 0.1 * b for c, b in zip(color, card, strict=True)]
            assert _contrast(ink, blended) >= 4.5, (scheme, name)
    assert page.count("calc(var(--s) * .009)") == 4  # strength 100 is the 0.9 above


def _hex(color):
    return [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def _luminance(color):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrast(a, b):
    """The contrast ratio of WCAG 2.2: 4.5 is what text needs."""
    darker, lighter = sorted((_luminance(a), _luminance(b)))
    return (lighter + 0.05) / (darker + 0.05)


def test_heads_scale_together_or_alone():
    weights = np.stack([np.full((1, 2, 2), 0.25), np.full((1, 2, 2), 1.0)])
    assert [image.get_clim() for image in plot.heads(weights).images] == [(0, 1), (0, 1)]
    alone = plot.heads(weights, shared_scale=False)
    assert [image.get_clim() for image in alone.images] == [(0, 0.25), (0, 1)]
    assert "its largest" in alone.get_xlabel()


def test_agreement_matrix():
    table = agreement(SCORES.fillna(0.0), k=2)
    ax = plot.agreement(table, measure="top_k_jaccard")
    assert ax.get_title() == "overlap of the top 2"
    assert len(ax.texts) == 2


def test_heads_grid_and_one_map():
    weights = torch.rand(2, 3, 4, 4).softmax(-1)
    grid = plot.heads(weights, tokens=["a", "b", "c", "d"])
    drawn = torch.stack([torch.tensor(np.asarray(image.get_array())) for image in grid.images])
    assert torch.allclose(drawn.view(2, 3, 4, 4).float(), weights)
    assert len(plot.heads([weights[0], weights[1, :2]]).images) == 5
    ax = plot.attention(weights[0, 0], ["a", "b", "c", "d"])
    assert np.allclose(np.asarray(ax.images[0].get_array()), weights[0, 0].numpy())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.text([], []), "at least one"),
        (lambda: plot.text(["a"], [1.0, 2.0]), "1 words but 2 scores"),
        (lambda: plot.text(["a"], [[1.0]]), "dimensions"),
        (lambda: plot.text(["a"], ["x"]), "numbers"),
        (lambda: plot.bars([1, 2]), "DataFrame"),
        (lambda: plot.bars(SCORES, max_features=0), "at least 1"),
        (lambda: plot.agreement(SCORES), "metrics.agreement"),
        (lambda: plot.agreement(agreement(SCORES), measure="pearson"), "no measure"),
        (lambda: plot.heads(torch.rand(3)), "dimension|shape"),
        (lambda: plot.html_page(pd.DataFrame()), "nothing"),
    ],
)
def test_bad_data_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_page_escapes_and_shows_missing_and_infinite_values():
    scores = pd.DataFrame({"a<b": [0.5, np.nan, np.inf], "c": [-1.0, 0.0, 1.0]}, index=["<script>", "&", '"quoted"'])
    page = plot.html_page(scores, agreement(scores.fillna(0).replace(np.inf, 1)), title="<t>", notes=["<n>"])
    assert "<script>" not in page
    assert "<t>" not in page
    assert "<n>" not in page
    assert "&lt;script&gt;" in page
    assert 'class="missing"' in page
    assert "http" not in page  # nothing is loaded from elsewhere
    bars = plot.html_page(scores, as_text=False)
    assert "Word by word" not in bars


def test_pictures_side_by_side():
    table = pd.DataFrame({"rollout": [0.25, 0.75, 0.0], "LIME": [2.0, np.nan, -4.0]})
    segments = np.array([[0, 0, 1, 3], [2, 2, 1, 3]])  # the last column is of no segment
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    figure = plot.images(table, segments, picture, title="a & b", width=8)
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["picture", "rollout", "LIME"]
    np.testing.assert_allclose(panels[0].images[0].get_array(), picture / 255)
    drawn = [np.ma.filled(ax.images[1].get_array(), np.nan) for ax in panels[1:]]
    np.testing.assert_array_equal(drawn[0], [[0.25, 0.25, 0.75, 0], [0, 0, 0.75, 0]])
    np.testing.assert_array_equal(drawn[1], [[2, 2, np.nan, 0], [-4, -4, np.nan, 0]])
    # What is of no segment shows the picture, and each method has its own scale.
    assert (panels[1].images[1].get_alpha()[:, 3] == 0).all()
    assert [ax.images[1].get_clim() for ax in panels[1:]] == [(0, 0.75), (-4, 4)]
    assert figure.get_figheight() == pytest.approx(images_height((2, 4), 2, width=8, title="a & b"))
    figure.canvas.draw()
    boxes = [ax.get_window_extent() for ax in figure.axes]
    assert all(figure.bbox.x0 <= b.x0 and b.x1 <= figure.bbox.x1 and b.y1 <= figure.bbox.y1 for b in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    many = pd.DataFrame({f"method {k}": [1.0, 2, 3] for k in range(6)})
    bottoms = {round(ax.get_position().y0, 3) for ax in plot.images(many, segments, picture).axes if ax.get_title()}
    assert len(bottoms) == 2  # seven pictures in two rows
    for wrong in (segments / 2, segments[0], segments - 1):
        with pytest.raises(InputError, match="segments must be integers from 0"):
            plot.images(table, wrong, picture)
    with pytest.raises(InputError, match="are needed"):
        plot.images(table, segments[:, :3], picture)


def test_shares_in_words():
    note = plot._common.outside_note
    assert note(None) == note(0.0) == note({}) == note(pd.Series([np.nan, 0.0], index=["[CLS]", "b"])) == ""
    assert note(0.5) == "50 % lies on what is not shown"
    assert note({"[CLS]": 0.001}) == "less than 1 % lies on [CLS]"
    assert note({"[CLS]": 0.999, "[SEP]": 0.0}) == "more than 99 % lies on [CLS]"
    many = dict.fromkeys("abcde", 0.2)
    assert note(many) == "100 % lies on a (20 %), b (20 %), c (20 %) and others"
    for bad in (1.5, -0.1, {"a": 0.9, "b": 0.9}):
        with pytest.raises(InputError, match="shares that sum"):
            note(bad)
    with pytest.raises(InputError, match="array of numbers"):
        note("a lot")
    with pytest.raises(InputError, match="DataFrame of shares"):
        plot.bars(pd.DataFrame({"a": [1.0]}), outside={"[CLS]": 0.5})


def test_pictures_say_what_lies_outside():
    shares = {"[CLS]": 0.4, "<$s$>": 0.5}
    words = "90 % lies on <$s$> (50 %), [CLS] (40 %)"
    long = "a title that does not fit beside the note, however small the letters are"
    ax = plot.text(["a", "film"], [0.1, 0.2], outside=shares, title=long, width=5)
    assert ax.get_title(loc="right") == words
    assert ax.get_title(loc="left").endswith("…")
    assert plot.text(["a", "film"], [0.1, 0.2], outside=0.0).get_title(loc="right") == ""
    assert plot.image(np.ones((2, 2)), np.ones((2, 2)), outside=shares).get_xlabel() == words
    assert words in [t.get_text() for t in plot.weights({"a": 1.0}, outside=shares).texts]
    table = pd.DataFrame({"rollout": [0.1, 0.9], "LIME": [1.0, -1.0]}, index=["a", "film"])
    outside = pd.DataFrame({"rollout": shares})
    assert plot.bars(table, outside=outside).get_xlabel().splitlines()[1:] == [f"rollout: {words}"]
    figure = plot.texts(table.index, table, outside=outside)
    assert [ax.get_title(loc="right") for ax in figure.axes if ax.texts] == [words, ""]
    figure = plot.images(table, [[0, 1]], np.ones((1, 2)), outside=outside)
    assert [ax.get_xlabel() for ax in figure.axes if ax.get_xlabel()] == [words]
    assert words.replace("<", "&lt;").replace(">", "&gt;") in plot.html_page(table, outside=outside)
    for drawn in (ax.figure, figure):
        drawn.savefig(BytesIO())


def test_special_tokens_are_labelled_where_there_is_no_room_for_all():
    tokens = ["[CLS]", *["word"] * 20, "[SEP]", "[PAD]", "[PAD]"]
    weights = np.full((2, 3, 24, 24), 1 / 24)
    labels = [t.get_text() for t in plot.heads(weights, tokens=tokens).texts]
    assert sorted(set(labels)) == ["[CLS]", "[SEP]"]  # [PAD] would stand on [SEP]
    assert len(labels) == 2 * (2 + 3)
    assert not plot.heads(weights, tokens=["<a>", "b"] * 12).texts
