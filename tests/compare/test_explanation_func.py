"""as_explanation_func: Captum's sensitivity against a plain loop over single examples, and what it refuses."""

from __future__ import annotations

import captum.attr
import numpy as np
import pytest
import torch
from captum.metrics import infidelity, sensitivity_max
from captum.metrics._core.sensitivity import default_perturb_func
from torch import nn

from captum_attn_lime import AttentionAttribution, LimeTabular, LimeText, as_explanation_func
from captum_attn_lime.errors import InputError, TokenMapError
from tests.models import text as models

N, D = 5, 8


class Encoder(nn.Module):
    """Self-attention over embeddings (B, N, D), read at its first token; ids go through a table."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, D)
        layer = nn.TransformerEncoderLayer(D, 2, 16, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(D, 3)

    def forward(self, x, scale=None):
        x = x if x.is_floating_point() else self.table(x)
        x = x if scale is None else x * scale.reshape(-1, 1, 1)
        return self.head(self.encoder(x)[:, 0])


def model() -> Encoder:
    torch.manual_seed(1)
    return Encoder().double().eval()


def by_loop(explain, inputs, rows_of, n_samples, perturbed, norm=2):
    """Return the sensitivity of each example: one attribution after the other, each of a single example.

    Args:
        explain: Function of single examples (a tuple of tensors) and keywords.
        inputs: Tuple of tensors.
        rows_of: From an example's number to its own keywords.
        n_samples: Number of perturbed copies of each example.
        perturbed: What the perturbation gave, a list of tuples of tensors, one a call, each row.s copies together.
        norm: Order of the norm over all cells.
    """
    out = []
    for i in range(len(inputs[0])):
        own = [t.numpy().ravel() for t in explain(tuple(x[i : i + 1] for x in inputs), **rows_of(i))]
        own = np.concatenate(own)
        size = np.linalg.norm(own, norm) or 1.0
        worst = 0.0
        for call in perturbed:
            copies = len(call[0]) // len(inputs[0])
            for k in range(copies):
                row = i * copies + k
                other = explain(tuple(x[row : row + 1] for x in call), **rows_of(i))
                other = np.concatenate([t.numpy().ravel() for t in other])
                worst = max(worst, float(np.linalg.norm(own - other, norm)) / size)
        out.append(worst)
    assert sum(len(call[0]) for call in perturbed) == n_samples * len(inputs[0])
    return out


def recording(perturb=default_perturb_func):
    """Return a perturbation function with noise, and the list of what it gave."""
    log = []

    def perturb_func(inputs, perturb_radius):
        found = perturb(inputs, perturb_radius)
        log.append(tuple(t.clone() for t in (found if isinstance(found, tuple) else (found,))))
        return found

    return perturb_func, log


def plain(method):
    """Return a method's attribute as a function that always gives a tuple."""

    def explain(inputs, **options):
        found = method.attribute(inputs if len(inputs) > 1 else inputs[0], **options)
        return tuple(t.detach() for t in (found if isinstance(found, tuple) else (found,)))

    return explain


TARGETS = {
    "int": (2, lambda i: 2),
    "list": ([0, 2, 1], lambda i: [0, 2, 1][i]),
    "tensor": (torch.tensor([0, 2, 1]), lambda i: [0, 2, 1][i]),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("most", [None, 6])
def test_relevance_with_targets_arguments_and_queries(target, most):
    net, x = model(), torch.randn(3, N, D, dtype=torch.float64)
    scale = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    method = AttentionAttribution(net, method="relevance")
    perturb, log = recording()
    of, each = TARGETS[target]
    options = dict(target=of, additional_forward_args=(scale,), query=[0, 1, 2])
    found = sensitivity_max(
        as_explanation_func(method), x, perturb_func=perturb, perturb_radius=0.2, n_perturb_samples=4,
        max_examples_per_batch=most, **options,
    )  # fmt: skip
    assert len(log) == (1 if most is None else 2)
    rows = lambda i: dict(target=each(i), additional_forward_args=(scale[i : i + 1],), query=[i])  # noqa: E731
    expected = by_loop(plain(method), (x,), rows, 4, log)
    assert min(expected) > 1e-4
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-8, atol=0)


def test_rollout_and_another_norm():
    net, x = model(), torch.randn(2, N, D, dtype=torch.float64)
    method = AttentionAttribution(net)
    perturb, log = recording()
    found = sensitivity_max(
        as_explanation_func(method), x, perturb_func=perturb, perturb_radius=0.3, n_perturb_samples=3, norm_ord=1
    )
    expected = by_loop(plain(method), (x,), lambda i: {}, 3, log, norm=1)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-8, atol=0)


@pytest.mark.parametrize("rows", [1, 3])
def test_lime_text_with_masks_and_baselines_of_each_example(rows):
    net, x = model(), torch.randn(3, N, D, dtype=torch.float64)
    masks = torch.tensor([[0, 1, 1, 2, 2], [0, 0, 1, 1, 2], [0, 1, 2, 2, 2]])[:rows].unsqueeze(2).expand(rows, N, D)
    bases = torch.arange(rows, dtype=torch.float64).reshape(rows, 1, 1).expand(rows, N, D).contiguous() / 4
    lime = LimeText(net)
    perturb, log = recording()
    found = sensitivity_max(
        as_explanation_func(lime), x, perturb_func=perturb, perturb_radius=0.3, n_perturb_samples=2,
        target=[1, 0, 2], feature_mask=masks, baselines=bases, n_samples=50,
    )  # fmt: skip

    def own(i):
        k = i if rows > 1 else 0
        return dict(target=[1, 0, 2][i], feature_mask=masks[k : k + 1], baselines=bases[k : k + 1], n_samples=50)

    expected = by_loop(plain(lime), (x,), own, 2, log)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-8, atol=0)
    assert len(set(np.round(expected, 6))) == 3


def test_a_tuple_of_columns_to_lime_tabular_and_a_perturbation_that_leaves_categories():
    rows = np.random.RandomState(0).normal(size=(200, 2))
    training = np.concatenate([rows, np.random.RandomState(1).randint(0, 3, (200, 1))], axis=1)

    def forward(numbers, categories):
        return (numbers**2).sum(dim=1) * (1 + categories[:, 0])

    def noise(inputs, radius):
        numbers, categories = inputs
        return default_perturb_func(numbers, radius)[0], categories

    lime = LimeTabular(forward, training, semantics="gradient")
    x = (torch.randn(2, 2, dtype=torch.float64), torch.tensor([[1], [2]]))
    perturb, log = recording(noise)
    found = sensitivity_max(
        as_explanation_func(lime), x, perturb_func=perturb, perturb_radius=0.5, n_perturb_samples=3, n_samples=100
    )
    expected = by_loop(plain(lime), x, lambda i: dict(n_samples=100), 3, log)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-8, atol=0)
    with pytest.raises(InputError, match=r"input 1 .*noise was added to token ids or categories.*perturb_func"):
        sensitivity_max(as_explanation_func(lime), x, n_samples=100)


def next_id(inputs):
    """Perturb ids: another one in place of each third token."""
    ids = inputs[0] if isinstance(inputs, tuple) else inputs
    out = ids.clone()
    out[:, ::3] = (out[:, ::3] + 1 + torch.arange(len(ids)).unsqueeze(1)) % 20
    return out


def test_a_layer_method_on_token_ids_changed_to_other_ids():
    net, ids = model(), torch.randint(0, 20, (3, N))
    method = captum.attr.LayerIntegratedGradients(net, net.table)
    log = []

    def perturb(inputs):
        log.append((next_id(inputs),))
        return log[-1][0]

    options = dict(n_steps=8)
    with pytest.raises(RuntimeError, match="must match the size"):  # what as_explanation_func is for
        sensitivity_max(method.attribute, ids, perturb_func=perturb, target=1, baselines=ids * 0, **options)
    log.clear()
    found = sensitivity_max(
        as_explanation_func(method), ids, perturb_func=perturb, n_perturb_samples=3, target=[0, 1, 2],
        baselines=ids * 0, **options,
    )  # fmt: skip
    rows = lambda i: dict(target=i, baselines=ids[:1] * 0, **options)  # noqa: E731
    expected = by_loop(plain(method), (ids,), rows, 3, log)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-6, atol=0)


def test_several_layers_and_baselines_whose_first_is_a_number():
    net = nn.Bilinear(3, 2, 4).double()
    after = nn.Linear(4, 2).double()

    def forward(a, b):
        return after(net(a, b).tanh())

    x = (torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64))
    bases = (0.0, torch.randn(2, 2, dtype=torch.float64))
    method = captum.attr.IntegratedGradients(forward)
    perturb, log = recording()
    found = sensitivity_max(
        as_explanation_func(method), x, perturb_func=perturb, n_perturb_samples=3, target=1, baselines=bases, n_steps=8
    )
    rows = lambda i: dict(target=1, baselines=(0.0, bases[1][i : i + 1]), n_steps=8)  # noqa: E731
    expected = by_loop(plain(method), x, rows, 3, log)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-8, atol=0)

    layers = captum.attr.LayerActivation(forward, [net, after])
    explain = as_explanation_func(lambda inputs, **options: layers.attribute(inputs, **options))
    shapes = [tuple(t.shape) for t in explain(x)]
    assert shapes == [(2, 4), (2, 2)]
    perturb, log = recording()
    found = sensitivity_max(explain, x, perturb_func=perturb, n_perturb_samples=2)
    flat = lambda inputs: explain(inputs)  # noqa: E731
    expected = by_loop(flat, x, lambda i: {}, 2, log)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-8, atol=0)


def test_noise_on_token_ids_is_refused_for_every_kind_of_attribution():
    torch.manual_seed(1)
    net, ids = model(), torch.randint(0, 20, (2, N))
    for method in (AttentionAttribution(net), LimeText(net), captum.attr.LayerIntegratedGradients(net, net.table)):
        explain = as_explanation_func(method)
        options = {} if isinstance(method, AttentionAttribution) else dict(target=0)
        with pytest.raises(InputError, match=r"token ids .*Perturb embeddings instead.*inputs_embeds"):
            sensitivity_max(explain, ids, **options)
        assert explain(ids, **options).shape[:2] == ids.shape  # after the refusal it starts anew
    # what the message advises: embeddings
    found = sensitivity_max(as_explanation_func(AttentionAttribution(net)), net.table(ids).detach())
    assert found.shape == (2,)
    assert bool((found > 0).all())


def test_tuple_in_tuple_out_and_detached():
    net, x = model(), torch.randn(2, N, D, dtype=torch.float64, requires_grad=True)
    explain = as_explanation_func(captum.attr.LayerActivation(net, net.head))
    assert isinstance(explain((x,)), tuple)
    found = explain(x)
    assert isinstance(found, torch.Tensor)
    assert not found.requires_grad
    torch.testing.assert_close(found, net(x).detach())
    strided = as_explanation_func(lambda inputs: inputs.transpose(1, 2))(x)
    assert strided.is_contiguous()


def test_like_inputs_gives_infidelity_its_shapes():
    net, ids = model(), torch.randint(1, 20, (2, N))
    method = captum.attr.LayerIntegratedGradients(net, net.table)
    explain = as_explanation_func(method, like_inputs=True)
    options = dict(target=1, baselines=ids * 0, n_steps=16)
    found = explain(ids, **options)
    torch.testing.assert_close(found, method.attribute(ids, **options).sum(dim=2))

    def to_zero(inputs):  # every second token's id becomes 0, the baseline
        gone = (torch.arange(N) % 2).expand(inputs.shape)
        return gone.to(torch.float64), inputs * (1 - gone)

    with pytest.raises(AssertionError, match="matching shapes"):
        infidelity(net, to_zero, ids, method.attribute(ids, **options), target=1)
    score = infidelity(net, to_zero, ids, found, target=1, n_perturb_samples=1)
    with torch.no_grad():
        drop = net(ids)[:, 1] - net(to_zero(ids)[1])[:, 1]
    expected = (found[:, 1::2].sum(dim=1) - drop) ** 2
    torch.testing.assert_close(score, expected)
    with pytest.raises(TokenMapError, match=r"\(2, 3\).*\(2, 5\)"):
        as_explanation_func(captum.attr.LayerActivation(net, net.head), like_inputs=True)(ids)


def test_an_adapters_encoding_with_its_mask_baselines_and_arguments():
    adapter = models_adapter()
    x = adapter.encode(["a fine film with a fine cast", "a dull film"])
    lime = LimeText(adapter)
    log = []

    def perturb(inputs):
        ids = (inputs[0] if isinstance(inputs, tuple) else inputs).clone()
        ids[:, 1] = 6 + torch.arange(len(ids))
        log.append((ids,))
        return ids

    arguments = x.arguments(lime)
    inputs = arguments.pop("inputs")
    found = sensitivity_max(
        as_explanation_func(lime),
        inputs,
        perturb_func=perturb,
        n_perturb_samples=2,
        target=1,
        n_samples=60,
        **arguments,
    )

    def rows(i):
        return dict(
            target=1,
            n_samples=60,
            baselines=x.baselines[i : i + 1],
            feature_mask=x.feature_mask[i : i + 1],
            additional_forward_args=tuple(a[i : i + 1] for a in x.forward_args),
        )

    expected = by_loop(plain(lime), (inputs,), rows, 2, log)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-5, atol=1e-7)
    assert min(expected) > 0


def models_adapter():
    from captum_attn_lime.adapters import TextAdapter

    torch.manual_seed(1)
    return TextAdapter(models.bert(), models.word_level_tokenizer())


def test_what_is_no_attribution_is_refused():
    with pytest.raises(InputError, match="or a function, but is AttentionAttribution"):
        as_explanation_func(AttentionAttribution)
    with pytest.raises(InputError, match="but is int"):
        as_explanation_func(3)
    net, x = model(), torch.randn(2, N, D, dtype=torch.float64)
    with pytest.raises(InputError, match="return_convergence_delta"):
        as_explanation_func(captum.attr.IntegratedGradients(net))(x, target=0, return_convergence_delta=True)
    with pytest.raises(InputError, match=r"shape \(5,\) for 2 example"):
        as_explanation_func(lambda inputs: torch.zeros(5))(x)
    with pytest.raises(InputError, match="returned NoneType"):
        as_explanation_func(lambda inputs: None)(x)
