"""captum_lime: Captum's own Lime gives the official package's weights, and Captum's defaults are told of."""

from __future__ import annotations

import subprocess
import sys
import warnings
from inspect import signature

import captum.attr
import numpy as np
import pytest
import torch
from captum._utils.models.linear_model import SkLearnLasso, SkLearnLinearRegression, SkLearnRidge
from captum.attr._core.lime import get_exp_kernel_similarity_function
from lime.lime_text import LimeTextExplainer

from captum_attn_lime import LimeText, captum_lime, compare
from captum_attn_lime.adapters import TextAdapter, WordTokenizer
from captum_attn_lime.errors import InputError, LimeWarning
from captum_attn_lime.lime._captum_recipe import check_captum_lime
from tests.models import text as models

FAST = dict(perturbations_per_eval=100)


def bert_adapter() -> TextAdapter:
    torch.manual_seed(1)
    return TextAdapter(models.bert(), models.word_level_tokenizer())


TEXT = "it isn't bad, it is not good, a dull film and a long one"


@pytest.mark.parametrize("features", [1, 2, 9])
def test_the_same_samples_give_the_official_weights(features):
    """The official explainer's own draws put through Captum's Lime: what is left is the kernel and the fit."""
    torch.manual_seed(2)
    table = torch.randn(1, features, dtype=torch.float64)
    x = torch.ones(1, features, dtype=torch.float64)

    def forward(x):  # not linear, so that kernel and weights matter
        return (x * table).sum(dim=1).sin() + x[:, 0] * x[:, -1]

    drawn = []

    def classify(texts):
        kept = np.zeros((len(texts), features))
        for row, text in enumerate(texts):
            kept[row, [int(word) for word in text.split()]] = 1
        drawn.extend(torch.from_numpy(kept).long())
        return forward(torch.from_numpy(kept)).numpy()[:, None]

    explainer = LimeTextExplainer(random_state=3, feature_selection="none")
    text = " ".join(map(str, range(features)))
    official = explainer.explain_instance(text, classify, labels=(0,), num_samples=300)
    expected = np.zeros(features)
    for k, weight in official.local_exp[0]:
        expected[k] = weight

    lime = captum_lime(forward)

    def same_samples(inputs, **kwargs):
        yield from (row.unsqueeze(0) for row in drawn)

    assert lime.perturb_func is not same_samples
    lime.perturb_func = same_samples
    found = lime.attribute(x, n_samples=300, **FAST)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=2e-4, atol=2e-6)


def test_samples_are_drawn_as_lime_draws_them():
    x = torch.ones(1, 4)
    kept = []

    def forward(x):
        kept.append(x.clone())
        return x.sum(dim=1)

    captum_lime(forward).attribute(x, n_samples=4001, **FAST)
    rows = torch.cat(kept)
    assert rows[0].tolist() == [1, 1, 1, 1]
    removed = 4 - rows[1:].sum(dim=1)
    counts = torch.bincount(removed.long(), minlength=5)
    assert counts[0] == 0
    # 1 to 4 removed equally often, and among these each feature: within five standard deviations
    assert (counts[1:] / 4000 - 0.25).abs().max() < 5 * (0.25 * 0.75 / 4000) ** 0.5
    for count in (1, 2, 3):
        of = rows[1:][removed == count]
        assert ((1 - of).mean(dim=0) - count / 4).abs().max() < 5 * (0.25 / len(of)) ** 0.5


def test_a_linear_function_and_a_bag_of_words_as_lime_text_has_them():
    torch.manual_seed(0)
    w = torch.randn(1, 12)
    x = torch.rand(2, 12) + 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Captum says that a batch takes long
        found = captum_lime(lambda x: (x * w).sum(dim=1)).attribute(x, n_samples=3000, **FAST)
    near = LimeText(lambda x: (x * w).sum(dim=1)).attribute(x, n_samples=3000)
    torch.testing.assert_close(found, near, atol=0.01, rtol=0)
    torch.testing.assert_close(found, x * w, atol=0.02, rtol=0)

    tokenizer = WordTokenizer.fit(models.CORPUS)
    adapter = TextAdapter(models.BagOfWords(len(tokenizer), 3).eval(), tokenizer)
    encoding = adapter.encode("it isn't bad, it is good")
    lime, official = captum_lime(adapter), LimeText(adapter)
    found = lime.attribute(**encoding.arguments(lime), target=2, n_samples=3000, **FAST)
    near = official.attribute(**encoding.arguments(official), target=2, n_samples=3000)
    torch.testing.assert_close(found, near, atol=0.02, rtol=0)


def test_a_small_transformer_and_its_special_tokens():
    adapter = bert_adapter()
    x = adapter.encode(TEXT)
    words = len(x.words[0])
    lime, official = captum_lime(adapter), [LimeText(adapter, seed=seed) for seed in (0, 1)]
    found = lime.attribute(**x.arguments(lime), target=1, n_samples=3000, **FAST)[0]
    first, second = (m.attribute(**x.arguments(m), target=1, n_samples=3000)[0] for m in official)
    noise = float((first - second).norm())  # what two draws of the official explainer differ by
    assert float((found - first).norm()) < 1.6 * noise
    assert noise < 0.2 * float(first.norm())
    special = x.feature_mask[0] == words
    assert special.any()
    assert found[special].tolist() == [0.0] * int(special.sum())
    assert (found[~special] != 0).all()


def test_captums_defaults_give_zeros_where_the_recipe_does_not():
    adapter = bert_adapter()
    x = adapter.encode(TEXT)

    def probability(*tensors):
        return (adapter(*tensors) / 8).softmax(dim=1)  # of an undecided model

    shared = dict(target=1, n_samples=600, **FAST)
    default, recipe = captum.attr.Lime(probability), captum_lime(probability)
    torch.manual_seed(0)
    assert not default.attribute(**x.arguments(default), **shared).any()
    found = recipe.attribute(**x.arguments(recipe), **shared)
    effects = found[x.feature_mask != len(x.words[0])]
    assert effects.abs().max() > 0.004
    near = LimeText(probability)
    near = near.attribute(**x.arguments(near), target=1, n_samples=600)
    assert torch.corrcoef(torch.stack([found[0], near[0]]))[0, 1] > 0.9


def test_lassos_threshold_is_what_the_warning_says():
    """Captum's default takes about 0.04 off effects, and makes those below it exactly 0."""
    w = torch.tensor([[0.03, -0.03, 0.08, -0.1]])
    torch.manual_seed(0)
    lime = captum.attr.Lime(lambda x: (x * w).sum(dim=1))
    found = lime.attribute(torch.ones(1, 4), n_samples=3000, **FAST)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, 0.04, -0.06]]), atol=0.006, rtol=0)
    with pytest.warns(LimeWarning, match=r"effects below about 0\.04 exactly 0"):
        check_captum_lime(lime)


def test_seeds_batches_tuples_and_embeddings():
    torch.manual_seed(0)
    a, b = torch.rand(1, 3), torch.rand(1, 2, 4)

    def forward(a, b):
        return a.sum(dim=1) ** 2 + b.prod(dim=2).sum(dim=1)

    mask = (torch.tensor([[0, 0, 1]]), torch.tensor([[[2], [1]]]).expand(1, 2, 4))
    bases = (0.0, torch.full((1, 2, 4), 0.5))
    shared = dict(baselines=bases, feature_mask=mask, n_samples=400)
    lime = captum_lime(forward)
    found = lime.attribute((a, b), **shared, **FAST)
    again = lime.attribute((a, b), **shared, perturbations_per_eval=7)
    other = captum_lime(forward, seed=1).attribute((a, b), **shared, **FAST)
    official = LimeText(forward).attribute((a, b), **shared)
    for f, g, h, o in zip(found, again, other, official, strict=True):
        torch.testing.assert_close(f, g, atol=1e-5, rtol=1e-5)
        assert not torch.equal(f, h)
        torch.testing.assert_close(f, o, atol=0.05, rtol=0)
    assert found[1].shape == b.shape
    assert found[0][0, 0] == found[0][0, 1] != found[0][0, 2] == found[1][0, 1, 0]


def test_nothing_to_remove_gives_zeros():
    x = torch.ones(1, 3)
    found = captum_lime(lambda x: x.sum(dim=1)).attribute(x, baselines=1.0, n_samples=20)
    assert found.tolist() == [[0, 0, 0]]


def test_other_models_and_widths():
    x, w = torch.ones(1, 5), torch.arange(5.0)
    exact = captum_lime(lambda x: x @ w, interpretable_model=SkLearnLinearRegression())
    torch.testing.assert_close(exact.attribute(x, n_samples=200, **FAST)[0], w, atol=1e-4, rtol=0)
    assert isinstance(exact, captum.attr.Lime)
    ours, captums = (signature(m.attribute).parameters for m in (exact, captum.attr.Lime(lambda x: x)))
    assert list(ours) == list(captums)
    assert {n for n in ours if ours[n].default != captums[n].default} == {"n_samples", "perturbations_per_eval"}
    narrow, wide = (
        captum_lime(lambda x: (x @ w).exp() / 1e4, kernel_width=k).attribute(x, n_samples=500, **FAST) for k in (5, 1e4)
    )
    assert not torch.allclose(narrow, wide, rtol=0.05)
    with pytest.raises(InputError, match="kernel_width must be a positive number, but is 0"):
        captum_lime(lambda x: x, kernel_width=0)
    with pytest.raises(InputError, match=r"forward_func must be .* str"):
        captum_lime("bert")


def test_what_is_told_of_and_what_is_not():
    def forward(x):
        return x.sum(dim=1)

    ids, numbers = torch.ones(1, 3, dtype=torch.int64), torch.ones(1, 3)
    bare = captum.attr.Lime(forward)
    with pytest.warns(LimeWarning, match=r"Lasso\(alpha=0.01\).* and .*kernel.*captum_lime\(forward_func\)") as seen:
        assert len(check_captum_lime(bare, ids)) == 2
    assert len(seen) == 1
    assert seen[0].filename == __file__
    with pytest.warns(LimeWarning, match="Lasso"):
        assert len(check_captum_lime(bare, numbers)) == 1
    other_width = captum.attr.Lime(forward, SkLearnRidge(alpha=1.0), get_exp_kernel_similarity_function("euclidean", 9))
    with pytest.warns(LimeWarning, match="ids"):
        assert len(check_captum_lime(other_width, ids)) == 1
    fine = [
        captum_lime(forward),
        captum.attr.KernelShap(forward),
        captum.attr.Saliency(forward),
        LimeText(forward),
        captum.attr.Lime(forward, SkLearnLasso(alpha=1e-5), lambda *args, **kwargs: 1.0),
    ]
    assert [check_captum_lime(method, ids) for method in fine] == [()] * 5
    assert check_captum_lime(other_width, numbers) == ()


def test_compare_tells_of_captums_defaults_at_the_callers_line():
    adapter = bert_adapter()
    x = adapter.encode("it isn't bad, it is good")
    with pytest.warns(LimeWarning, match="Captum's defaults") as seen:
        compare({"Lime": captum.attr.Lime(adapter)}, x, target=0)
    assert [w.filename for w in seen] == [__file__]
    scores = compare({"Lime": captum_lime(adapter), "LimeText": LimeText(adapter)}, x, target=0).scores  # no warning
    assert (scores != 0).all().all()


def test_it_works_without_the_lime_package():
    code = (
        "import sys; sys.modules['lime'] = None; import torch; from captum_attn_lime import captum_lime;"
        "print(captum_lime(lambda x: x.sum(dim=1)).attribute(torch.ones(1, 3), n_samples=50).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "torch.Size([1, 3])", done.stderr
