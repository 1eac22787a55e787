"""Texts with features taken out get the answers of copies that are put together by hand and run one at a time."""

from __future__ import annotations

import copy
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from captum_attn_lime import Explained, TextAdapter, WordTokenizer
from captum_attn_lime.errors import InputError, PaddingWarning, TargetError
from captum_attn_lime.perturb import perturbed
from tests.models import heads
from tests.models import padded as padded_models
from tests.models import text as models
from tests.models.heads import hugging_face

TEXT = "it isn't bad, it is not good; good film"
REMOVALS = ["baseline", "mask", "pad", "delete", "attention"]


def bert(**options) -> TextAdapter:
    torch.manual_seed(1)
    return TextAdapter(hugging_face("BertForSequenceClassification", num_labels=3), heads.bert_tokenizer(), **options)


def roberta() -> TextAdapter:
    torch.manual_seed(1)
    return TextAdapter(hugging_face("RobertaForSequenceClassification"), heads.roberta_tokenizer())


def gpt2() -> TextAdapter:
    torch.manual_seed(1)
    return TextAdapter(models.gpt2(pad_token_id=7), models.byte_bpe_tokenizer())


def by_hand() -> TextAdapter:
    torch.manual_seed(1)
    tokenizer = WordTokenizer.fit(models.CORPUS)
    return TextAdapter(models.MaskedMean(len(tokenizer)).eval(), tokenizer)


def masks(n: int, rows: int = 25) -> np.ndarray:
    kept = np.random.default_rng(0).random((rows, n)) < 0.6
    kept[0], kept[1], kept[2] = True, False, kept[3]
    return kept


@torch.no_grad()
def one_by_one(adapter, x, kept, removal, example=0):
    """The logits of each copy, put together token by token and run alone."""
    fill = {"baseline": adapter.mask_id, "mask": adapter.mask_id, "pad": adapter.pad_id}.get(removal)
    rows = []
    for row in kept:
        ids, mask, types = [], [], []
        for cell in range(x.inputs.shape[1]):
            further = [int(t[example, cell]) for t in x.forward_args]
            if x.forward_args and not further[0]:
                continue  # padding
            feature = int(x.feature_mask[example, cell])
            gone = feature < len(row) and not row[feature]
            if gone and removal == "delete":
                continue
            ids.append(fill if gone and fill is not None else int(x.inputs[example, cell]))
            mask.append(0 if gone and removal == "attention" else 1)
            types.append(further[1] if len(further) > 1 else 0)
        if not ids:
            ids, mask, types = [adapter.empty_id], [1], [0]
        rows.append(logits_of(adapter.model, *(torch.tensor([t]) for t in (ids, mask, types))))
    return torch.cat(rows).double().numpy()


def logits_of(model, ids, mask, types):
    if "GPT2" in type(model).__name__:  # the last token that is not hidden, whatever its id
        states = model.transformer(ids, attention_mask=mask).last_hidden_state
        return model.score(states[:, int(mask[0].nonzero()[-1])])
    if not hasattr(model, "config"):
        return model(ids=ids, mask=mask)
    types = {"token_type_ids": types} if model.config.type_vocab_size > 1 else {}
    return model(input_ids=ids, attention_mask=mask, **types).logits


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("make", [bert, roberta, gpt2, by_hand], ids=lambda make: make.__name__)
def test_a_text(make, removal):
    adapter = make()
    x = adapter.encode(TEXT)
    if removal == "attention" and make is by_hand:
        with pytest.raises(InputError, match="hide every token"):
            perturbed(adapter, x, 1, removal=removal)
        return
    game = perturbed(adapter, x, 1, removal=removal)
    assert game.names == x.feature_names[0]
    kept = masks(len(game.names))
    expected = one_by_one(adapter, x, kept, removal)
    np.testing.assert_allclose(game.scores(kept), expected[:, 1], atol=2e-5)
    np.testing.assert_allclose(game.class_scores(torch.from_numpy(kept)), expected, atol=2e-5)
    assert expected[:, 1].std() > 1e-3
    assert game.explained.value == pytest.approx(expected[0, 1], abs=1e-5)


@pytest.mark.parametrize("removal", REMOVALS)
def test_a_padded_pair_of_a_batch(removal):
    adapter = bert()
    pairs = [("it is not good, it is bad", "a film"), ("good film", "it isn't bad")]
    x = adapter.encode(pairs)
    assert int((x.forward_args[0][1] == 0).sum()) > 0
    game = perturbed(adapter, x, 2, removal=removal, example=1)
    kept = masks(len(game.names))
    np.testing.assert_allclose(game.scores(kept), one_by_one(adapter, x, kept, removal, 1)[:, 2], atol=1e-5)


@pytest.mark.parametrize("removal", ["delete", "mask"])
@pytest.mark.parametrize("name", padded_models.CASES)
def test_models_whose_answers_depend_on_padding_or_their_batch(name, removal):
    adapter = TextAdapter(*padded_models.make(name))
    text = padded_models.TEXTS[0]
    kept = masks(len(text.split()), 12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PaddingWarning)
        found = perturbed(adapter, adapter.encode(text), 1, removal=removal).scores(kept)
    words = np.array(text.split())
    for row, score in zip(kept, found, strict=True):
        model = padded_models.make(name)[0]
        gone = list(words[row]) if removal == "delete" else list(np.where(row, words, "xyz"))  # an unknown word
        expected = padded_models.by_hand(model, " ".join(gone) or "xyz")[1]
        assert score == pytest.approx(float(expected), abs=3e-5)


@pytest.mark.parametrize("removal", REMOVALS)
def test_an_end_token_that_pads_is_passed_over_whatever_is_removed(removal):
    from tokenizers import processors

    tokenizer = models.byte_bpe_tokenizer()
    ending = processors.TemplateProcessing(single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)])
    tokenizer.backend_tokenizer.post_processor = ending
    torch.manual_seed(1)
    adapter = TextAdapter(models.gpt2(pad_token_id=0), tokenizer)
    x = adapter.encode("it is not good, film")
    assert int(x.inputs[0, -1]) == 0
    game = perturbed(adapter, x, 1, removal=removal)
    kept = masks(len(game.names))
    kept = kept[kept.any(axis=1)]  # where no word is left, there is nothing before the end to read
    words = replace(x, inputs=x.inputs[:, :-1], forward_args=tuple(t[:, :-1] for t in x.forward_args))
    expected = one_by_one(adapter, words, kept, removal)
    np.testing.assert_allclose(game.scores(kept), expected[:, 1], atol=2e-5)
    assert game.scores(kept)[0] == pytest.approx(game.explained.value, abs=1e-5)


def test_the_baselines_of_the_encoding_stand_in():
    adapter = bert()
    x = adapter.encode(TEXT, baselines=9)
    game = perturbed(adapter, x, 1)
    gone = torch.where(x.feature_mask < len(game.names), torch.tensor(9), x.inputs)
    with torch.no_grad():
        expected = adapter(gone, *x.forward_args)[0, 1]
    assert game.scores([[False] * len(game.names)])[0] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("unit", ["logit", "probability"])
@pytest.mark.parametrize("target", [0, 1])
def test_both_classes_of_one_logit(unit, target):
    torch.manual_seed(1)
    adapter = TextAdapter(hugging_face("BertForSequenceClassification", num_labels=1), heads.bert_tokenizer())
    adapter.model.config.problem_type = "single_label_classification"
    x = adapter.encode(TEXT)
    game = perturbed(adapter, x, target, unit=unit)
    kept = masks(len(game.names))
    z = one_by_one(adapter, x, kept, "mask")[:, 0] * (1 if target else -1)
    np.testing.assert_allclose(game.scores(kept), z if unit == "logit" else 1 / (1 + np.exp(-z)), atol=1e-5)


def test_an_explained_number_is_asked_for_again():
    adapter = bert()
    x = adapter.encode(TEXT)
    explained = adapter.explained(x.inputs, x.forward_args, "LABEL_1", unit="probability")
    game = perturbed(adapter, x, explained, removal="delete")
    assert game.explained.is_same(explained)
    assert game.scores(np.ones((1, len(game.names)), bool))[0] == pytest.approx(explained.value, abs=1e-6)
    with pytest.raises(InputError, match="leave unit out"):
        perturbed(adapter, x, explained, unit="logit")


@pytest.mark.parametrize("removal", ["delete", "mask"])
def test_a_language_models_next_token(removal):
    adapter = heads.CASES["gpt2_next"].adapter()
    x = adapter.encode(TEXT)
    game = perturbed(adapter, x, 17, removal=removal, unit="probability")
    kept = masks(len(game.names), 8)
    assert game.class_scores(kept).shape == (8, 1)  # and not the vocabulary
    for row, score in zip(kept, game.scores(kept), strict=True):
        cells = torch.tensor([int(k) >= len(row) or bool(row[k]) for k in x.feature_mask[0]])
        ids = x.inputs[:, cells] if removal == "delete" else torch.where(cells, x.inputs, adapter.mask_id)
        ids = ids if ids.shape[1] else torch.tensor([[adapter.empty_id]])
        with torch.no_grad():
            expected = adapter.model(ids).logits[0, -1].double().softmax(0)[17]
        assert score == pytest.approx(float(expected), rel=1e-4)
    assert perturbed(adapter, x, adapter.class_name(17)).explained.column == 17


@pytest.mark.parametrize("name", ["bert_tokens", "bert_spans"])
def test_an_answer_for_each_token(name):
    adapter = heads.CASES[name].adapter()
    x = adapter.encode("good film")
    game = perturbed(adapter, x, (2, 1), removal="mask", unit="probability")
    for row in np.array([[True, True], [True, False], [False, False]]):
        cells = torch.tensor([int(k) >= 2 or bool(row[k]) for k in x.feature_mask[0]])
        with torch.no_grad():
            out = adapter(torch.where(cells, x.inputs, adapter.mask_id), *x.forward_args)[0].double()
        expected = out.softmax(0 if name == "bert_spans" else -1)[2, 1]
        assert game.scores([row])[0] == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(InputError, match="predicts for each token"):
        perturbed(adapter, x, (2, 1), removal="delete")


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("removal", REMOVALS)
def test_a_used_object_says_what_a_fresh_one_says(removal):
    adapter = bert()
    x = adapter.encode(TEXT)
    game = perturbed(adapter, x, 1, removal=removal)
    kept = masks(len(game.names))
    before = game.scores(kept)
    for other in (copy.deepcopy(game), pickle.loads(pickle.dumps(game))):
        np.testing.assert_array_equal(other.scores(kept), before)
    with torch.no_grad():
        adapter.model.classifier.weight.mul_(2)
    np.testing.assert_array_equal(game.scores(kept), perturbed(adapter, x, 1, removal=removal).scores(kept))
    assert not np.allclose(game.scores(kept), before)


@pytest.mark.parametrize("removal", REMOVALS)
def test_masks_do_not_depend_on_each_other(removal):
    adapter = bert()
    game = perturbed(adapter, adapter.encode(TEXT), 1, removal=removal)
    kept = masks(len(game.names))
    together = game.scores(kept)
    small = perturbed(adapter, adapter.encode(TEXT), 1, removal=removal, batch_size=2)
    np.testing.assert_allclose(small.scores(kept), together, atol=1e-5)
    np.testing.assert_allclose(
        np.concatenate([game.scores(kept[k : k + 1]) for k in range(5)]), together[:5], atol=1e-5
    )
    assert together[2] == together[3]
    assert game.scores(kept[:0]).shape == (0,)


@pytest.mark.parametrize("removal", REMOVALS)
def test_the_model_is_left_as_it_was_and_asked_in_eval_mode(removal):
    adapter = bert()
    adapter.model.train()
    game = perturbed(adapter, adapter.encode(TEXT), 1, removal=removal)
    state, kept = torch.get_rng_state(), masks(len(game.names))
    np.testing.assert_array_equal(game.scores(kept), game.scores(kept))
    assert torch.equal(state, torch.get_rng_state())
    assert all(m.training for m in adapter.model.modules())


@pytest.mark.parametrize(("removal", "runs"), [("mask", 8), ("delete", 6)])
def test_no_distinct_copy_runs_twice_and_batches_are_small(removal, runs):
    adapter = bert()
    x = adapter.encode("good good film")
    game = perturbed(adapter, x, 1, removal=removal, batch_size=2)
    adapter.predict_proba("film")
    sizes = []
    handle = adapter.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    every = np.array(np.meshgrid(*[[False, True]] * 3)).reshape(3, -1).T
    game.scores(np.concatenate([every, every]))
    handle.remove()
    if removal == "delete":  # whether padding matters is tried out for new widths
        sizes = sizes[-3:]
    assert sum(sizes) == runs  # "good film" without the first "good" is that without the second
    assert max(sizes) == 2


def test_a_bar_is_shown_where_asked_for(capsys):
    adapter = bert()
    x = adapter.encode(TEXT)
    for removal in ("mask", "delete"):
        perturbed(adapter, x, 1, removal=removal).scores(masks(len(x.feature_names[0])))
        assert capsys.readouterr().err == ""
        perturbed(adapter, x, 1, removal=removal, show_progress=True).scores(masks(len(x.feature_names[0])))
        assert "texts: 100%" in capsys.readouterr().err


def test_a_short_repr():
    adapter = bert(class_names=["bad", "odd", "good"])
    shown = repr(perturbed(adapter, adapter.encode(TEXT), "good", unit="probability"))
    assert shown.startswith("<PerturbedTensors: 11 features ('it', \"isn't\", 'bad', ',', 'it', ...); probability of")
    assert len(shown) < 140


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(removal="blur"), "'baseline' or one of 'delete'"),
        (dict(removal="mean"), "for texts, but is 'mean'"),
        (dict(seed=3), "removal='marginal'"),
        (dict(example=1), "no example 1"),
        (dict(batch_size=0), "positive number of copies"),
        (dict(baselines=0), "already has baselines"),
        (dict(unit="prediction"), "it has no prediction"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    adapter = bert()
    with pytest.raises(InputError, match=message):
        perturbed(adapter, adapter.encode(TEXT), 1, **options)


def test_masks_and_targets_that_do_not_fit():
    adapter = bert()
    x = adapter.encode("good film")
    game = perturbed(adapter, x)
    for bad, message in [
        ([[True]], r"\(n, 2\), but has shape \(1, 1\)"),
        ([True, False], "shape"),
        ([[0.5, 1.0]], "0 and 1"),
    ]:
        with pytest.raises(InputError, match=message):
            game.scores(bad)
    with pytest.raises(TargetError, match="not one of the model's 3 classes"):
        perturbed(adapter, x, 7)
    with pytest.raises(TargetError):
        perturbed(adapter, x, Explained(7, "logit"))
    with pytest.raises(InputError, match="is no adapter"):
        perturbed(adapter.model, x)


def test_padding_is_no_token_that_stays():
    adapter = by_hand()
    x = adapter.encode(["good film", "good film bad film"])
    with pytest.raises(InputError, match="hide every token"):
        perturbed(adapter, x, removal="attention")


def test_a_model_without_a_mask_hides_nothing():
    tokenizer = WordTokenizer.fit(models.CORPUS)
    bag = TextAdapter(models.BagOfWords(len(tokenizer)), tokenizer)
    with pytest.raises(InputError, match="BagOfWords does not accept"):
        perturbed(bag, bag.encode(TEXT), removal="attention")
