"""A wrapped model is asked as by hand: mask, token types, task, class names and limits arrive, or an error says why."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from captum_attn_lime.adapters import TextAdapter
from captum_attn_lime.errors import ForwardError, InputError, TruncationWarning
from captum_attn_lime.lime import LimeText
from tests.models import text as models
from tests.models import wrapping
from tests.models.wrapping import WRAPPERS

PAIRS = [("it is not good", "a fine film"), ("bad", "a dull film with a long cast")]


@pytest.fixture(autouse=True)
def _no_compiling(request):
    """Run compiled models as they were written: what counts here is how they are called."""
    if "compiled_indeed" in request.node.name:
        yield
    else:
        with torch.compiler.set_stance("force_eager"):
            yield


def tokenizer():
    found = models.word_level_tokenizer()
    found.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return found


def bert(**options) -> nn.Module:
    torch.manual_seed(0)
    return models.bert(num_labels=2, max_position_embeddings=24, id2label={0: "no", 1: "yes"}, **options)


def by_hand() -> np.ndarray:
    model, encode = bert(), tokenizer()
    rows = []
    for pair in PAIRS:
        with torch.no_grad():
            rows.append(model(**encode(*pair, return_tensors="pt", return_token_type_ids=True)).logits.softmax(dim=1))
    return torch.cat(rows).numpy()


@pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda w: w.__name__)
@pytest.mark.parametrize("training", [False, True])
def test_mask_token_types_and_class_names_arrive(wrap, training):
    model = wrap(bert()).train(training)
    adapter = TextAdapter(model, tokenizer())
    np.testing.assert_allclose(adapter.predict_proba(PAIRS), by_hand(), atol=1e-5)
    x = adapter.encode(PAIRS[0])
    assert len(x.forward_args) == 2
    assert adapter.class_names == ("no", "yes")
    assert adapter.max_length == 24
    assert adapter.task == "classification"
    assert adapter.embedding is next(m for m in model.modules() if hasattr(m, "config")).get_input_embeddings()
    assert all(m.training is training for m in model.modules())


@pytest.mark.parametrize("wrap", [wrapping.Lightning, wrapping.InOnePiece, nn.DataParallel], ids=lambda w: w.__name__)
def test_captums_methods_and_lime_run_through_a_wrapper(wrap):
    import captum.attr

    plain, wrapped = TextAdapter(bert(), tokenizer()), TextAdapter(wrap(bert()), tokenizer())
    found = []
    for adapter in (plain, wrapped):
        x = adapter.encode(PAIRS[0])
        gradients = captum.attr.LayerIntegratedGradients(adapter, adapter.embedding)
        lime = LimeText(adapter, seed=0).explain(PAIRS[0], 1, explained_text="first", num_samples=60)
        found.append((gradients.attribute(**x.arguments(gradients), target=1, n_steps=8), dict(lime.as_list())))
    torch.testing.assert_close(found[1][0], found[0][0])
    assert found[1][1] == pytest.approx(found[0][1], abs=1e-5)


@pytest.mark.parametrize("wrap", [wrapping.Drops, wrapping.Renames, wrapping.NamelessParts], ids=lambda w: w.__name__)
def test_token_types_that_would_get_lost_are_an_error_that_says_what_to_give(wrap):
    adapter = TextAdapter(wrap(bert()), tokenizer())
    with pytest.raises(ForwardError, match=r"takes token types.*forward_names=\{'token_type_ids'"):
        adapter.predict_proba(PAIRS)
    with pytest.raises(ForwardError, match="takes token types"):
        adapter.encode(PAIRS[0])


def test_forward_names_say_where_they_go():
    renames = {"token_type_ids": "kinds"}
    nameless = {"input_ids": "a", "attention_mask": "b", "token_type_ids": "c"}
    for wrap, names in ((wrapping.Renames, renames), (wrapping.NamelessParts, nameless)):
        adapter = TextAdapter(wrap(bert()), tokenizer(), forward_names=names)
        np.testing.assert_allclose(adapter.predict_proba(PAIRS), by_hand(), atol=1e-5)
    dropped = TextAdapter(wrapping.Drops(bert()), tokenizer(), forward_names={"token_type_ids": None})
    assert np.abs(dropped.predict_proba(PAIRS) - by_hand()).max() > 1e-3
    assert len(dropped.encode(PAIRS[0]).forward_args) == 1


def test_a_forward_that_runs_in_no_way_is_an_error_that_says_what_to_give():
    class Odd(wrapping.Wrapper):
        def forward(self, **kwargs):
            return self.inner(kwargs["sentences"], attention_mask=kwargs["attention_mask"])

    with pytest.raises(ForwardError, match=r"did not run on token ids.*forward_names="):
        TextAdapter(Odd(bert()), tokenizer()).predict_proba("a fine film")
    adapter = TextAdapter(Odd(bert()), tokenizer(), forward_names={"input_ids": "sentences", "token_type_ids": None})
    assert adapter.predict_proba("a fine film").shape == (1, 2)


def test_a_model_that_is_compiled_indeed_answers_as_by_hand():
    torch._dynamo.reset()
    model = torch.compile(_Masked().train(), backend="eager")
    texts = ["a fine film", "bad", "it is not good"]
    for training in (False, True):
        adapter = TextAdapter(model.train(training), tokenizer())
        found = adapter.logits(texts)
        for text, row in zip(texts, found, strict=True):
            ids = torch.tensor(tokenizer()([text])["input_ids"])
            with torch.no_grad():
                np.testing.assert_allclose(
                    row, model._orig_mod.head(model._orig_mod.embed(ids).mean(dim=1))[0], atol=1e-5
                )


class _Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.drop, self.head = nn.Embedding(60, 4), nn.Dropout(), nn.Linear(4, 2)

    def forward(self, input_ids, attention_mask):
        x = self.drop(self.embed(input_ids)) * attention_mask[..., None]
        return self.head(x.sum(dim=1) / attention_mask.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("kind", ["BertForQuestionAnswering", "BertForTokenClassification", "BertForMaskedLM"])
@pytest.mark.parametrize(
    "wrap", [wrapping.compiled, nn.DataParallel, wrapping.Lightning, wrapping.InOnePiece], ids=lambda w: w.__name__
)
def test_the_task_arrives(kind, wrap):
    import transformers

    model = getattr(transformers, kind)(bert().config).eval()
    expected = "spans" if "Question" in kind else "tokens"
    adapter = TextAdapter(wrap(model), tokenizer(), task=expected if wrap is wrapping.InOnePiece else None)
    assert adapter.task == expected
    x = adapter.encode("a fine film")
    assert adapter(x.inputs, *x.forward_args).shape[:2] == x.inputs.shape


def test_a_wrapper_that_makes_one_row_of_a_token_model_is_a_classifier():
    from transformers import BertForMaskedLM

    class Prompt(wrapping.Wrapper):
        def forward(self, input_ids, attention_mask=None, **kwargs):
            return self.inner(input_ids, attention_mask, **kwargs).logits[:, 0, [5, 6, 7]]

    model = Prompt(BertForMaskedLM(bert().config).eval())
    by_token = TextAdapter(model, tokenizer())
    x = by_token.encode("a fine film")
    with pytest.raises(ForwardError, match=r"task is 'tokens'.*pass task= .*'classification'"):
        by_token(x.inputs, *x.forward_args)
    adapter = TextAdapter(model, tokenizer(), task="classification")
    assert adapter.predict_proba("a fine film").shape == (1, 3)
    assert (adapter.task, adapter.class_names) == ("classification", None)


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, wrapping.compiled])
def test_a_text_longer_than_the_positions_inside_is_cut_with_a_warning(wrap):
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = bert().bert, nn.Linear(32, 2)

        def forward(self, input_ids, attention_mask=None):
            return self.head(self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state[:, 0])

    lime = LimeText(TextAdapter(wrap(Head().eval()), tokenizer()), seed=0)
    with pytest.warns(TruncationWarning, match="the model takes 24"):
        lime.explain("a fine film with a good cast " * 8, target=1, num_samples=200)


class _Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(60, 4), nn.Linear(4, 2)

    def forward(self, ids):
        return self.head(self.embed(ids).mean(1))


def test_models_that_cannot_be_asked_are_refused_with_what_to_do():
    from transformers import BertForMultipleChoice

    with pytest.warns(DeprecationWarning, match="deprecated"):
        both = torch.jit.script(_Small()), torch.jit.trace(_Small(), torch.tensor([[1, 2]]))
    for scripted in both:
        with pytest.raises(InputError, match=r"TorchScript.*pass the module that was scripted"):
            TextAdapter(scripted, tokenizer())
    for wrap in (lambda m: m, nn.DataParallel):
        with pytest.raises(InputError, match=r"\(n, choices, N\).*scores one choice"):
            TextAdapter(wrap(BertForMultipleChoice(bert().config)), tokenizer())

    class Pipeline:
        model = _Small()

    with pytest.raises(InputError, match=r"pass its \.model"):
        TextAdapter(Pipeline(), tokenizer())


def test_the_advice_for_multiple_choice_works():
    from transformers import BertForMultipleChoice

    class OneChoice(wrapping.Wrapper):
        def forward(self, input_ids, attention_mask, token_type_ids):
            return self.inner(input_ids[:, None], attention_mask[:, None], token_type_ids[:, None]).logits

    torch.manual_seed(0)
    adapter = TextAdapter(OneChoice(BertForMultipleChoice(bert().config).eval()), tokenizer())
    assert adapter.logits(PAIRS).shape == (2, 1)


def test_what_is_no_batch_of_tensors_is_refused_with_what_to_do():
    adapter = TextAdapter(bert(), tokenizer())
    x = adapter.encode("a fine film")
    with pytest.raises(InputError, match=r"unsqueeze\(0\)"):
        adapter(x.inputs[0])
    encoded = tokenizer()("a fine film", return_tensors="pt")
    for call in (lambda: adapter(encoded), lambda: adapter(dict(encoded)), lambda: adapter(**encoded)):
        with pytest.raises(InputError, match=r"adapter\(x.inputs, \*x.forward_args\)"):
            call()


def test_sentence_transformers(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    from transformers import BertForSequenceClassification, BertModel

    config = bert().config
    config.num_labels = 1
    BertForSequenceClassification(config).save_pretrained(tmp_path / "scores")
    BertModel(bert().config).save_pretrained(tmp_path / "embeds")
    for name in ("scores", "embeds"):
        tokenizer().save_pretrained(tmp_path / name)
    encoder = library.CrossEncoder(str(tmp_path / "scores"), device="cpu")
    adapter = TextAdapter(encoder, encoder.tokenizer)
    np.testing.assert_allclose(adapter.predict_proba(PAIRS)[:, 1], encoder.predict(PAIRS), atol=1e-5)

    embeds = library.SentenceTransformer(str(tmp_path / "embeds"), device="cpu")
    with pytest.raises(ForwardError, match="no number to explain; wrap it in a module"):
        TextAdapter(embeds, embeds.tokenizer).predict_proba("a fine film")

    class OnEmbeddings(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = embeds, nn.Linear(32, 2)

        def forward(self, features):
            return self.head(self.encoder(features)["sentence_embedding"])

    head = OnEmbeddings().eval()
    texts = ["a fine film", "it is not good and it is long"]
    found = TextAdapter(head, embeds.tokenizer).logits(texts)
    for text, row in zip(texts, found, strict=True):
        with torch.no_grad():
            one = head(dict(embeds.tokenizer(text, return_tensors="pt")))[0]
        np.testing.assert_allclose(row, one, atol=1e-5)
