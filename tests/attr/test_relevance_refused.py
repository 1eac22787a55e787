"""What relevance refuses by name, rather than being wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from captum_attn_lime import AttentionAttribution, register_attention
from captum_attn_lime.errors import ReadoutError, SelectionError, UnreadableAttentionError
from tests.families import IDS, MASK, HandWritten
from tests.families.hand_written import Flexible, masked_softmax
from tests.models.relevance import dense, first_row, like, near, relevance, strong_model


@pytest.fixture
def model():
    return strong_model()


class Relative(HandWritten.Attention):
    """Weights that meet a second set of values, one for each pair of places."""

    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.randn(7, 7, 8))

    def mix(self, query, key, value, hidden):
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        weights = masked_softmax(query @ key.mT / 8**0.5, hidden)
        return self.both(weights, value).transpose(1, 2).flatten(2)

    def both(self, weights, value):
        return weights @ value + torch.einsum("bhqk,qkd->bhqd", weights, self.places)


class RelativeFirst(Relative):
    def both(self, weights, value):
        return torch.einsum("bhqk,qkd->bhqd", weights, self.places) + weights @ value


class RelativeOfTensors(Relative):
    """The second values are computed."""

    def both(self, weights, value):
        return weights @ value + torch.einsum("bhqk,qkd->bhqd", weights, self.places * 1)


class RelativeByMatmul(Relative):
    def both(self, weights, value):
        batch, heads, n, _ = weights.shape
        by_query = weights.permute(2, 0, 1, 3).reshape(n, batch * heads, n) @ self.places
        return weights @ value + by_query.reshape(n, batch, heads, 8).permute(1, 2, 0, 3)


class RelativeToKeys(Relative):
    """One vector for each key, as a linear layer."""

    def both(self, weights, value):
        return weights @ value + nn.functional.linear(weights, self.places[0].T)


@pytest.mark.parametrize("kind", [Relative, RelativeFirst, RelativeOfTensors, RelativeByMatmul, RelativeToKeys])
def test_weights_that_meet_more_than_values_are_refused(kind):
    model = HandWritten(kind).eval()
    # Through all layers places mix tokens too; the last layer alone would be a product of the values' part only.
    with pytest.raises(SelectionError, match=r"how the weights of 'layers\.2' act on values is not known"):
        relevance(model, IDS, args=(MASK,), layers=-1)


def _told(module, args, kwargs, output):
    query, key = (f(args[0]).unflatten(-1, (-1, 8)).transpose(1, 2) for f in (module.query, module.key))
    return masked_softmax(query @ key.mT / 8**0.5, None)


def test_registered_attention_is_refused_and_the_layers_beside_it_are_not(model):
    with register_attention(model.layers[1], _told):
        with pytest.raises(SelectionError, match=r"how the weights of 'layers\.1' .* register_attention"):
            relevance(model, IDS)
        above = relevance(model, IDS, layers=-1)
        rollout = AttentionAttribution(model).attribute(IDS)
    assert torch.equal(above, relevance(model, IDS, layers=-1))
    assert torch.allclose(rollout, AttentionAttribution(model).attribute(IDS))


class DetachesLayer(HandWritten):
    def states(self, ids, mask=None):
        x = self.embed(ids)
        for i, layer in enumerate(self.layers):
            y = layer(x, mask)
            x = x + (y.detach() if i == 1 else y)
        return x


class DetachesStream(HandWritten):
    def states(self, ids, mask=None):
        x = self.embed(ids)
        for i, layer in enumerate(self.layers):
            x = x + layer(x, mask)
            x = x.detach() if i == 1 else x
        return x


class WithoutBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1


class Silent(WithoutBackward):
    @staticmethod
    def backward(ctx, gradient):
        return None


class Doubled(WithoutBackward):
    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class Functional(HandWritten):
    """A function of its own behind the second layer."""

    function = WithoutBackward

    def states(self, ids, mask=None):
        x = self.embed(ids)
        for i, layer in enumerate(self.layers):
            y = layer(x, mask)
            x = self.function.apply(x + y) if i == 1 else x + y
        return x


class OfSilent(Functional):
    function = Silent


@pytest.mark.parametrize("kind", [DetachesLayer, DetachesStream, OfSilent])
def test_a_layer_that_the_gradient_does_not_reach_is_refused(model, kind):
    cut = like(model, kind)
    with pytest.raises(SelectionError, match=r"no gradient of the target reaches 'layers\.1'"):
        relevance(cut, IDS)
    assert torch.equal(relevance(cut, IDS, layers=-1), relevance(model, IDS, layers=-1))


def test_a_model_that_detaches_everything_is_refused(model):
    with pytest.raises(ReadoutError, match="does the model detach it"):
        relevance(lambda ids: model(ids).detach(), IDS, query=0)


def test_functions_of_the_models_own_need_a_backward_and_theirs_is_taken(model):
    with pytest.raises(ReadoutError, match=r"the gradient of the target could not be computed.*backward or vjp"):
        relevance(like(model, Functional), IDS)

    def behind(ids):
        return WithoutBackward.apply(model(ids))

    for method in ("rollout", "relevance"):
        with pytest.raises(ReadoutError, match=r"after the last attention call has no gradient.*Pass query="):
            AttentionAttribution(behind, method=method).attribute(IDS, target=0)

    class Twice(Functional):
        function = Doubled

    own = dense(like(model, Twice), IDS, query=first_row())
    assert near(relevance(like(model, Twice), IDS), own)
    assert not near(relevance(model, IDS), own, 1e-3)


def test_saturated_probabilities_are_refused_and_say_so(model):
    def saturated(ids):
        return torch.softmax(model(ids) * 1e5, dim=-1)

    with pytest.raises(ReadoutError, match=r"a probability is saturated\. Explain logits"):
        relevance(saturated, IDS)
    model.float()
    with pytest.raises(ReadoutError, match="gradient of the target of example 1 is zero"):
        relevance(lambda ids: model(ids) * torch.tensor([[1.0], [0.0]]), IDS, query=0)


def test_gradients_that_are_not_numbers_are_refused(model):
    def rooted(ids):
        out = model(ids)
        return out + (out * 0).sqrt()

    with pytest.raises(ReadoutError, match=r"the output of 'layers\.0' has NaN or infinite values"):
        relevance(rooted, IDS, query=0)


def test_flex_attention_without_a_gradient_on_the_cpu_is_refused():
    with pytest.raises(ReadoutError, match="flex_attention, which torch does not have on the CPU"):
        relevance(HandWritten(Flexible).eval(), IDS, args=(MASK,))


class WritesValues(HandWritten.Attention):
    """The memory of the values is used again."""

    def mix(self, query, key, value, hidden):
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        weights = masked_softmax(query @ key.mT / 8**0.5, hidden)
        with torch.no_grad():
            value = value.clone()
            out = Product.apply(weights, value) if weights.requires_grad else weights @ value
            value.zero_()
        return out.transpose(1, 2).flatten(2)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights, value):
        return weights @ value


def test_values_written_into_are_refused():
    layer = WritesValues()
    model = HandWritten()
    model.layers = nn.ModuleList([layer])
    model.eval()
    with pytest.raises(UnreadableAttentionError, match=r"wrote into the values of 'layers\.0'"):
        relevance(model, IDS, token_map=torch.arange(7))
    # Copies of the batch for as many examples as heads must not hide it.
    with pytest.raises(UnreadableAttentionError, match=r"wrote into the values of 'layers\.0'"):
        relevance(model, torch.cat([IDS, IDS]), target=0, token_map=torch.arange(7))
