"""SequenceAdapter: sequences to tensors, the bare model's numbers, features, baselines, errors."""

from __future__ import annotations

import captum.attr
import numpy as np
import pandas as pd
import pytest
import torch
from lime.lime_tabular import RecurrentTabularExplainer
from torch import nn

from captum_attn_lime import AttentionAttribution, SequenceAdapter
from captum_attn_lime.adapters._state import cudnn_off
from captum_attn_lime.adapters.numeric._series import cells_of, sequences_of
from captum_attn_lime.errors import ForwardError, InputError

STEPS, SERIES = 4, 3
# Series: u, kind (category), w.
DATA = np.random.RandomState(0).normal(size=(6, STEPS, SERIES))
DATA[:, :, 1] = [[0, 1, 2, 0], [0, 1, 2, 1], [1, 1, 0, 2], [0, 2, 0, 2], [1, 0, 1, 1], [0, 1, 2, 2]]
NAMES = ["u", "kind", "w"]


class Recurrent(nn.Module):
    """An LSTM whose last state gives the classes; it notes what came."""

    def __init__(self, classes: int = 2, **options):
        super().__init__()
        self.lstm = nn.LSTM(SERIES, 5, batch_first=True, **options)
        self.head = nn.Linear(5, classes)
        self.seen: list[torch.Tensor] = []
        self.cudnn: list[bool] = []

    def forward(self, x):
        self.seen.append(x.detach())
        self.cudnn.append(torch.backends.cudnn.enabled)
        return self.head(self.lstm(x)[0][:, -1])


class Steps(nn.Module):
    """A transformer over steps, pooled by their mean."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.embed, self.head = nn.Linear(SERIES, 8), nn.Linear(8, 2)
        self.places = nn.Parameter(torch.randn(STEPS, 8))
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x) + self.places).mean(dim=1))


def adapter(model=None, **options) -> SequenceAdapter:
    torch.manual_seed(0)
    options = {"training_data": DATA, "feature_names": NAMES, "categorical_features": ["kind"], **options}
    return SequenceAdapter((Recurrent() if model is None else model).eval(), **options)


def test_cells_are_numbered_and_named_as_lime_does():
    flat = cells_of(DATA)
    official = RecurrentTabularExplainer(DATA, feature_names=NAMES, random_state=0)
    x = adapter().encode(DATA)
    assert x.feature_names == (tuple(official.feature_names),) * 6
    for t in range(STEPS):
        for f in range(SERIES):
            np.testing.assert_array_equal(flat[:, f * STEPS + t], DATA[:, t, f])
            assert int(x.feature_mask[0, t, f]) == f * STEPS + t
            assert x.feature_names[0][f * STEPS + t] == f"{NAMES[f]}_t-{STEPS - 1 - t}"
    np.testing.assert_array_equal(sequences_of(flat, STEPS), DATA)
    np.testing.assert_array_equal(x.rows, flat)


@pytest.mark.parametrize(
    ("units", "names", "mask"),
    [
        ("step", ("t-3", "t-2", "t-1", "t-0"), [[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3]]),
        ("series", tuple(NAMES), [[0, 1, 2]] * STEPS),
    ],
)
def test_features_may_be_whole_steps_or_series(units, names, mask):
    x = adapter().encode(DATA[:2], features=units)
    assert x.feature_names == (names,) * 2
    assert x.feature_mask.tolist() == [mask] * 2
    assert x.feature_mask.is_contiguous()


def test_baselines_are_each_cells_mean_and_most_frequent_category():
    x = adapter().encode(DATA[:2])
    np.testing.assert_allclose(x.baselines[1, :, [0, 2]], DATA.mean(axis=0)[:, [0, 2]], atol=1e-6)
    assert x.baselines[0, :, 1].tolist() == [0, 1, 2, 2]
    zero = adapter().encode(DATA[:2], baselines="zero")
    assert not zero.baselines.any()
    own = adapter().encode(DATA[:2], baselines=[1, 0, 3])
    assert own.baselines.tolist() == [[[1, 0, 3]] * STEPS] * 2
    bare = SequenceAdapter(Recurrent()).encode(DATA)
    assert not bare.baselines.any()


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_predict_proba_is_the_bare_model_one_by_one(batch_size):
    a = adapter(batch_size=batch_size)
    with torch.no_grad():
        slow = torch.cat([a.model(torch.tensor(one[None], dtype=torch.float32)) for one in DATA]).double()
    np.testing.assert_allclose(a.logits(DATA), slow, atol=1e-6)
    np.testing.assert_allclose(a.predict_proba(DATA), slow.softmax(dim=1), atol=1e-6)
    assert a.predict_proba(DATA).dtype == np.float64
    x = a.encode(DATA)
    assert x.inputs.dtype == torch.float32
    torch.testing.assert_close(a(x.inputs).double(), slow)


def test_the_array_that_lime_hands_over():
    a = adapter()
    flat = cells_of(DATA)
    handed = np.transpose(flat.reshape(len(flat), SERIES, STEPS), axes=(0, 2, 1))
    assert not handed.flags["C_CONTIGUOUS"]
    assert handed.dtype == np.float64
    np.testing.assert_array_equal(a.predict_proba(handed), a.predict_proba(DATA))
    assert all(x.is_contiguous() and x.dtype == torch.float32 for x in a.model.seen)


def test_the_official_explainer_runs_on_it():
    a = adapter()
    official = RecurrentTabularExplainer(DATA, feature_names=NAMES, random_state=0)
    explanation = official.explain_instance(DATA[0], SequenceAdapter(a.model).predict_proba, num_samples=50)
    assert explanation.predict_proba == pytest.approx(a.predict_proba(DATA[0])[0], abs=1e-6)


FRAME = pd.DataFrame(DATA[0], columns=NAMES)
FORMS = {
    "array": DATA[0],
    "list": DATA[0].tolist(),
    "batch": DATA[:1],
    "tensor": torch.tensor(DATA[0]),
    "transposed": DATA[0].T.copy().T,
    "frame": FRAME,
    "frame_in_another_order": FRAME[["w", "u", "kind"]],
    "frames": [FRAME[["w", "u", "kind"]]],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_sequence_may_come_in_any_form(form):
    np.testing.assert_array_equal(adapter().arrays(FORMS[form]), DATA[:1])


def test_bfloat16_sequences_and_names_of_frames():
    half = torch.tensor(DATA[:, :, [0]]).bfloat16()
    np.testing.assert_array_equal(SequenceAdapter(nn.Flatten()).arrays(half), half.double())
    frames = [pd.DataFrame(one, columns=NAMES) for one in DATA]
    frames[1] = frames[1][["w", "u", "kind"]]
    a = SequenceAdapter(Recurrent(), training_data=frames)
    assert a.feature_names == tuple(NAMES)
    np.testing.assert_array_equal(a.training_data, DATA)


def changed(value: float, at: tuple[int, int]) -> np.ndarray:
    out = DATA[0].copy()
    out[at] = value
    return out


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        (DATA[0, 0], r"shape is \(3,\)"),
        (DATA[None], r"shape is \(1, 6, 4, 3\)"),
        (np.zeros((0, STEPS, SERIES)), r"shape is \(0, 4, 3\)"),
        (DATA[0, :, :2], r"expected 3 series \(u, kind, w\)"),
        (DATA[0].T, r"expected 3 series .* shape is \(3, 4\)"),
        (DATA[0, :3], "expected 4 steps"),
        (changed(np.nan, (2, 2)), "series 'w' at step 2 of sequence 0 is nan"),
        (changed(0.5, (1, 1)), "'kind' has the value 0.5; categories are integers"),
        (changed(7, (1, 1)), "'kind' has the value 7, which the training data has not"),
        ([["a"] * SERIES] * STEPS, "cannot be converted"),
        ([FRAME, FRAME[:2]], r"have \[2, 4\] steps"),
    ],
)
def test_bad_sequences(sequence, message):
    for run in (adapter().encode, adapter().predict_proba):
        with pytest.raises(InputError, match=message):
            run(sequence)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(task="ranking"), "task must be"),
        (dict(batch_size=0), "batch_size"),
        (dict(categorical_features=["size"]), "names 'size'"),
        (dict(categorical_features=["u"]), "categories are integers"),
        (dict(training_data=DATA[0]), "several sequences"),
        (dict(feature_names=["u", "kind"]), r"expected 2 series"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        adapter(**options)


def test_what_is_known_only_when_a_sequence_comes():
    a = SequenceAdapter(Recurrent(), categorical_features=[9])
    with pytest.raises(InputError, match="names series 9"):
        a.encode(DATA)
    with pytest.raises(InputError, match="features must be"):
        adapter().encode(DATA, features="word")
    # without training data any length goes
    assert [SequenceAdapter(Recurrent()).encode(DATA[:, :n]).inputs.shape[1] for n in (2, 4)] == [2, 4]


@pytest.mark.parametrize(
    ("baselines", "message"),
    [
        ("median", "baselines must be 'mean', 'zero' or an array"),
        ([1.0, 2.0], r"baselines of shape \(2,\) do not broadcast to sequences of shape \(\d+, 4, 3\)"),
        ([1.0, float("inf"), 2.0], "not finite"),
        ([1.0, 0.5, 2.0], "categories are integers"),
    ],
)
def test_bad_baselines(baselines, message):
    with pytest.raises(InputError, match=message):
        adapter().encode(DATA, baselines=baselines)


def test_the_mean_as_baseline_needs_training_data():
    with pytest.raises(InputError, match="pass training_data= to the SequenceAdapter"):
        adapter(training_data=None).encode(DATA, baselines="mean")


class Each(nn.Module):
    """One prediction at every step."""

    def forward(self, x):
        return x[:, :, :2]


class StepsFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(SERIES, 5)

    def forward(self, x):
        return self.lstm(x)[0][-1]


def test_outputs_that_are_not_one_prediction_a_sequence():
    with pytest.raises(ForwardError, match=r"shape \(6, 4, 2\) for 6 example.*predicts at each step"):
        adapter(Each()).predict_proba(DATA)
    with pytest.raises(ForwardError, match="predicts at each step"):
        adapter(nn.LSTM(SERIES, 5, batch_first=True)).logits(DATA)
    with pytest.raises(ForwardError, match="'lstm' was made with batch_first=False"):
        adapter(StepsFirst()).logits(DATA)
    with pytest.raises(ForwardError, match="returned int"):
        adapter(type("Number", (nn.Module,), {"forward": lambda self, x: 1})()).logits(DATA)


def test_tensors_and_models_that_do_not_fit():
    a = adapter()
    x = a.encode(DATA).inputs
    for wrong in ((x[0],), (x, x)):
        with pytest.raises(InputError, match="one tensor"):
            a(*wrong)

    class Two(nn.Module):
        def forward(self, x, lengths):
            return x

    with pytest.raises(ForwardError, match="x, lengths"):
        SequenceAdapter(Two())


def test_regression():
    a = adapter(Recurrent(1), task="regression", class_names=["level"])
    expected = a.model(torch.tensor(DATA).float()).detach()[:, 0]
    np.testing.assert_allclose(a.predict(DATA), expected, atol=1e-6)
    assert a.predict(DATA).shape == (6,)
    with pytest.raises(InputError, match="use predict"):
        a.predict_proba(DATA)
    with pytest.raises(InputError, match="use predict_proba"):
        adapter().predict(DATA)
    assert adapter(task="regression").predict(DATA).shape == (6, 2)


def test_labels_that_do_not_exclude_each_other():
    a = adapter(Recurrent(3), task="multi_label")
    np.testing.assert_allclose(a.predict_proba(DATA), 1 / (1 + np.exp(-a.logits(DATA))), atol=1e-12)
    single = adapter(Recurrent(1), task="multi_label")
    p = 1 / (1 + np.exp(-single.logits(DATA)))
    np.testing.assert_allclose(single.predict_proba(DATA), np.concatenate([1 - p, p], axis=1), atol=1e-12)


def test_dropout_is_off_and_comes_back():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(STEPS * SERIES, 2)).train()
    a = SequenceAdapter(model, training_data=DATA)
    np.testing.assert_array_equal(a.predict_proba(DATA), a.predict_proba(DATA))
    assert all(m.training for m in model.modules())


def test_gradients_of_recurrent_layers_do_without_cudnn():
    a = adapter()
    x = a.encode(DATA[:1])
    assert torch.backends.cudnn.enabled  # or there is nothing to see
    captum.attr.Saliency(a).attribute(x.inputs.requires_grad_(), target=0)
    assert not any(a.model.cudnn)  # cuDNN has no backward pass in eval mode
    a.model.cudnn.clear()
    a.predict_proba(DATA)
    assert a.model.cudnn == [True]  # and is wanted where no gradient is
    a.model.train()
    a(x.inputs)
    assert a.model.cudnn[-1]
    assert torch.backends.cudnn.enabled


def test_two_blocks_without_cudnn_share_one_change():
    one, two = cudnn_off(), cudnn_off()
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert not torch.backends.cudnn.enabled
    two.__exit__(None, None, None)
    assert torch.backends.cudnn.enabled


def test_integrated_gradients_of_a_linear_model_are_weight_times_distance():
    model = nn.Sequential(nn.Flatten(), nn.Linear(STEPS * SERIES, 2))
    a = SequenceAdapter(model, training_data=DATA)
    x = a.encode(DATA[:2])
    ig = captum.attr.IntegratedGradients(a)
    found = ig.attribute(**x.arguments(ig), target=1)
    weight = model[1].weight[1].detach().reshape(STEPS, SERIES).double()
    torch.testing.assert_close(found.double(), weight * torch.tensor(DATA[:2] - DATA.mean(axis=0)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("units", ["cell", "step", "series"])
def test_ablation_equals_replacing_units_by_hand(units):
    a = adapter()
    x = a.encode(DATA[0], features=units)
    method = captum.attr.FeatureAblation(a)
    found = method.attribute(**x.arguments(method), target=1)[0]
    base = x.baselines[0].double().numpy()
    for t in range(STEPS):
        for f in range(SERIES):
            where = {"cell": (t, f), "step": (t, slice(None)), "series": (slice(None), f)}[units]
            other = DATA[0].copy()
            other[where] = base[where]
            expected = a.logits(DATA[0])[0, 1] - SequenceAdapter(a.model).logits(other)[0, 1]
            assert float(found[t, f]) == pytest.approx(expected, abs=1e-5)


def eager_rollout(model: Steps, x: torch.Tensor) -> np.ndarray:
    """Half attention, half residual, averaged over heads and over the rows that are pooled; float64, by hand."""
    state = (model.embed(x) + model.places).double().detach()
    product = np.eye(STEPS)
    for layer in model.encoder.layers:
        layer = layer.double()
        w, b = layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias
        q, k, _ = (state[0] @ w.T + b).detach().numpy().reshape(STEPS, 3, 2, 4).transpose(1, 2, 0, 3)
        scores = q @ k.transpose(0, 2, 1) / 2.0
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        product = (0.5 * weights.mean(axis=0) + 0.5 * np.eye(STEPS)) @ product
        state = layer(state).detach()
        layer.float()
    return product.mean(axis=0)


def test_rollout_gives_a_step_of_attention_to_each_of_its_cells():
    a = adapter(Steps())
    x = a.encode(DATA[0])
    method = AttentionAttribution(a, method="rollout")
    found = method.attribute(**{**x.arguments(method), "feature_mask": None}, target=1)
    assert found.shape == x.inputs.shape
    expected = eager_rollout(a.model, x.inputs)
    assert expected.std() > 1e-3  # the steps differ
    for f in range(SERIES):
        np.testing.assert_allclose(found[0, :, f], expected, atol=1e-5)
    # As features, cells share what their step has, a step keeps it, and a series gets its share of all steps.
    by_cell = method.attribute(**x.arguments(method), target=1)
    np.testing.assert_allclose(by_cell[0, :, 0], expected / SERIES, atol=1e-5)
    by_series = method.attribute(**a.encode(DATA[0], features="series").arguments(method), target=1)
    np.testing.assert_allclose(by_series, np.full((1, STEPS, SERIES), 1 / SERIES), atol=1e-5)
    by_step = method.attribute(**a.encode(DATA[0], features="step").arguments(method), target=1)
    np.testing.assert_allclose(by_step[0, :, 0], expected, atol=1e-5)
