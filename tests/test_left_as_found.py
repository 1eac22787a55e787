"""The model, its generators and the caller's tensors are left as found, also in training mode and after an error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from captum_attn_lime import AttentionAttribution, TextAdapter, describe
from captum_attn_lime.attr._model_state import ModelState
from captum_attn_lime.errors import TrainingModeWarning
from tests.families import IDS, MASK
from tests.models import text as models
from tests.models.gated import WIDTH, Gated, N


class Normed(Gated):
    """Batch norm and dropout."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.norm, self.second = nn.BatchNorm1d(WIDTH), nn.Sequential(nn.Dropout(dropout), self.second)

    def forward(self, x):
        return super().forward(self.norm(x.transpose(1, 2)).transpose(1, 2))


def test_training_mode_moves_no_batch_norm_and_is_said():
    model, x = Normed().train(), torch.randn(3, N, WIDTH)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    for method in ("raw", "rollout", "relevance"):
        attribution = AttentionAttribution(model, method=method)
        for _ in range(2):
            with pytest.warns(TrainingModeWarning, match="batch norm"):
                attribution.attribute(x, target=0)
    describe(model, x)
    attribution.matrix(x, target=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in model.modules())


def test_random_generators_are_left_as_one_run_of_the_model_leaves_them():
    model, x = Normed(dropout=0.5).train(), torch.randn(3, N, WIDTH)
    torch.manual_seed(5)
    model(x)
    expected = torch.get_rng_state()
    for make in (AttentionAttribution(model, method="raw"), AttentionAttribution(model)):
        scores = []
        for _ in range(3):
            torch.manual_seed(5)
            with pytest.warns(TrainingModeWarning):
                scores.append(make.attribute(x))
            assert torch.equal(torch.get_rng_state(), expected)
        assert torch.equal(scores[0], scores[1])
        with pytest.warns(TrainingModeWarning):
            again = make.attribute(x)
        assert not torch.equal(again, scores[0]), "one run after the other draws other numbers"


def test_what_the_model_switches_for_good_is_put_back():
    class Switching(Gated):
        def forward(self, x, mask):
            if x.shape[1] < 20:
                self.mixing, self.head = 1e-9, nn.Linear(WIDTH, 2)
            self.open.add_(1e-9)
            mask.zero_()
            return super().forward(x.add_(1.0))

    model, x, mask = Switching().eval(), torch.randn(2, N, WIDTH), torch.ones(2, N)
    head, kept = model.head, x.clone()
    AttentionAttribution(model, method="raw").attribute(x, additional_forward_args=(mask,))
    assert model.head is head
    assert (model.mixing, float(model.open), float(mask.sum())) == (0, 0.0, 2 * N)
    assert torch.equal(x, kept)
    AttentionAttribution(model).attribute(x, additional_forward_args=(mask,))
    assert torch.equal(x, kept)

    def broken(x):
        model(x, mask)
        raise KeyError("of the model")

    with pytest.raises(KeyError, match="of the model"):
        AttentionAttribution(broken).attribute(x)
    assert model.head is head
    assert float(mask.sum()) == 0, "what a function holds itself is its own"


def test_what_an_adapter_found_out_about_its_model_is_kept():
    adapter = TextAdapter(models.bert(), models.word_level_tokenizer())
    adapter.found, adapter.model.found = "little", "little"
    with ModelState(adapter).left_as_found():
        adapter.found, adapter.model.found = "much", "much"
    assert (adapter.found, adapter.model.found) == ("much", "little")


def test_bigbird_stays_as_sparse_as_it_was():
    """It switches itself to full attention, for good, where an input is short."""
    from transformers import BigBirdConfig, BigBirdForSequenceClassification

    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    tokens = dict(vocab_size=70, pad_token_id=0, bos_token_id=1, eos_token_id=2, sep_token_id=3)
    config = BigBirdConfig(**sizes, **tokens, attention_type="block_sparse", block_size=2, num_random_blocks=1)
    model = BigBirdForSequenceClassification(config).eval()
    layer = model.bert.encoder.layer[0].attention.self
    attribution = AttentionAttribution(lambda ids, mask: model(ids, attention_mask=mask).logits)
    for _ in range(2):
        attribution.attribute(IDS, additional_forward_args=(torch.ones_like(MASK),))
        assert model.bert.attention_type == "block_sparse"
        assert model.bert.encoder.layer[0].attention.self is layer
