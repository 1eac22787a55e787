"""LimeSequence: the official recurrent explainer's numbers on the right cells, and what they mean."""

from __future__ import annotations

import pickle
from inspect import signature

import captum.attr
import numpy as np
import pytest
import torch
from lime.lime_tabular import RecurrentTabularExplainer
from sklearn.linear_model import LinearRegression
from torch import nn

from captum_attn_lime import AttentionAttribution, LimeSequence, LimeTabular, SequenceAdapter, TabularAdapter, compare
from captum_attn_lime.errors import ForwardError, InputError, TargetError
from captum_attn_lime.lime import explanation_prediction, explanation_score, explanation_weights

STEPS, SERIES = 4, 3
NAMES = ["u", "kind", "w"]
# What the additive model gives for each cell of u and w; of "kind" 1.0 at each step where it is 1.
WEIGHTS = np.array([[1.0, 0.0, -2.0], [0.5, 0.0, 0.0], [0.0, 0.0, 3.0], [-1.5, 0.0, 0.25]])
EXACT = dict(model_regressor=LinearRegression())


def data(n: int = 300) -> np.ndarray:
    r = np.random.RandomState(0)
    out = r.normal([1.0, 0.0, -2.0], [0.5, 1.0, 4.0], size=(n, STEPS, SERIES))
    out[:, :, 1] = r.randint(0, 2, size=(n, STEPS))
    return out


class Additive(nn.Module):
    """A known function of the cells; class 1 has the opposite sign."""

    def __init__(self, columns: int = 2):
        super().__init__()
        self.register_buffer("weights", torch.tensor(WEIGHTS))
        self.columns = columns
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        score = (x * self.weights.to(x.dtype)).sum(dim=(1, 2)) + (x[:, :, 1] == 1).sum(dim=1)
        return torch.stack([score, -score, 2 * score], dim=1)[:, : self.columns]


class Recurrent(nn.Module):
    def __init__(self, classes: int = 3):
        super().__init__()
        self.lstm, self.head = nn.LSTM(SERIES, 6, batch_first=True), nn.Linear(6, classes)

    def forward(self, x):
        return self.head(self.lstm(x)[1][0][-1])


class Steps(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.embed, self.head = nn.Linear(SERIES, 8), nn.Linear(8, 2)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(dim=1))


def adapter(model: nn.Module | None = None, **options) -> SequenceAdapter:
    torch.manual_seed(0)
    options = {"training_data": data(), "feature_names": NAMES, "categorical_features": ["kind"], **options}
    return SequenceAdapter((Additive() if model is None else model).eval(), **options)


def lstm(classes: int = 3, **options) -> SequenceAdapter:
    torch.manual_seed(0)
    return adapter(Recurrent(classes).double(), **options)


def official(**options):
    """The explainer as a careful user would make it: categories of a series are those of all its cells."""
    cells = [1 * STEPS + t for t in range(STEPS)]
    options = {"categorical_features": cells, "feature_selection": "none", "random_state": 3, **options}
    return RecurrentTabularExplainer(data(), feature_names=NAMES, **options)


def on_cells(weights: dict[int, float]) -> np.ndarray:
    """lime's feature ids brought to (steps, series), by their definition."""
    out = np.zeros((STEPS, SERIES))
    for cell, weight in weights.items():
        out[cell % STEPS, cell // STEPS] = weight
    return out


SEQUENCE = data()[7]


@pytest.mark.parametrize(("target", "sign"), [(0, 1), (1, -1)])
def test_gradient_of_an_additive_model(target, sign):
    a = adapter()
    x = a.encode(SEQUENCE)
    method = LimeSequence(a, semantics="gradient", **EXACT)
    found = method.attribute(**x.arguments(method), target=target, n_samples=600)[0].double()
    np.testing.assert_allclose(found[:, [0, 2]], sign * WEIGHTS[:, [0, 2]], atol=1e-3)
    # Own category against the other: 1 is worth 1 more than 0.
    np.testing.assert_allclose(found[:, 1], sign * np.where(SEQUENCE[:, 1] == 1, 1.0, -1.0), atol=1e-3)
    assert set(SEQUENCE[:, 1]) == {0, 1}


def test_times_input_is_integrated_gradients_from_the_means():
    rows = np.random.RandomState(1).normal([1, 2], [1, 5], size=(200, STEPS, 2))
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * STEPS, 2))
    a = SequenceAdapter(model, training_data=rows)
    x = a.encode(rows[:2])
    method = LimeSequence(a, semantics="times_input", **EXACT)
    ig = captum.attr.IntegratedGradients(a)
    expected = ig.attribute(**x.arguments(ig), target=1).float()
    found = method.attribute(**x.arguments(method), target=1, n_samples=300)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert found.is_contiguous()


@pytest.mark.parametrize("semantics", ["contrast", "gradient", "times_input"])
def test_attribute_is_the_official_explainer_run_by_hand(semantics):
    a = lstm()
    explainer = official(mode="regression", discretize_continuous=semantics == "contrast")
    by_hand = explainer.explain_instance(SEQUENCE, lambda x: a.logits(x)[:, 2], num_samples=300)
    expected = on_cells(dict(by_hand.local_exp[1]))
    if semantics != "contrast":
        spread = data().std(axis=0)
        for f in (0, 2):
            expected[:, f] /= spread[:, f]
            if semantics == "times_input":
                expected[:, f] *= SEQUENCE[:, f] - data().mean(axis=0)[:, f]
    method = LimeSequence(a, semantics=semantics, seed=3)
    x = a.encode(SEQUENCE)
    found = method.attribute(**x.arguments(method), target=2, n_samples=300)[0]
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("seed", [3, 4])
def test_explain_is_the_official_explainer(seed):
    a = lstm(class_names=["a", "b", "c"])
    naive = official(random_state=seed, class_names=["a", "b", "c"])
    expected = naive.explain_instance(SEQUENCE, a.predict_proba, labels=(2,), num_samples=200)
    found = LimeSequence(a).explain(SEQUENCE, 2, num_samples=200, seed=seed)
    one, two = explanation_weights(expected), explanation_weights(found)
    assert set(one) == set(two) == set(range(STEPS * SERIES))
    np.testing.assert_allclose([two[k] for k in one], list(one.values()), atol=1e-6)
    assert [name for name, _ in found.as_list(2)] == [name for name, _ in expected.as_list(2)]
    assert any(name.startswith("kind_t-1=") for name, _ in found.as_list(2))
    assert found.class_names == ["a", "b", "c"]
    assert explanation_score(found) == pytest.approx(explanation_score(expected), abs=1e-9)


def test_logits_of_one_and_of_several_classes():
    a = lstm()
    with pytest.warns(UserWarning, match="do not sum to 1"):
        expected = official().explain_instance(SEQUENCE, a.logits, labels=(1,), num_samples=100)
    found = LimeSequence(a, seed=3).explain(SEQUENCE, 1, num_samples=100, output="logits")
    np.testing.assert_allclose(on_cells(explanation_weights(found)), on_cells(explanation_weights(expected)), atol=1e-6)
    single = LimeSequence(lstm(1), seed=3)
    yes, no = (single.explain(SEQUENCE, k, num_samples=100, output="logits") for k in (1, 0))
    np.testing.assert_allclose(on_cells(explanation_weights(yes)), -on_cells(explanation_weights(no)), atol=1e-9)
    assert yes.predict_proba[1] == pytest.approx(single.forward_func.logits(SEQUENCE)[0, 0])


def test_labels_that_do_not_exclude_each_other():
    a = lstm(task="multi_label")
    with pytest.warns(UserWarning, match="do not sum to 1"):
        expected = official().explain_instance(
            SEQUENCE, lambda x: 1 / (1 + np.exp(-a.logits(x))), labels=(0,), num_samples=100
        )
    found = LimeSequence(a, seed=3).explain(SEQUENCE, 0, num_samples=100)  # and no warning
    np.testing.assert_allclose(on_cells(explanation_weights(found)), on_cells(explanation_weights(expected)), atol=1e-6)


def test_regression_reads_the_real_weights_and_not_their_negatives():
    a = adapter(Additive(1), task="regression")
    found = LimeSequence(a, semantics="gradient", **EXACT).explain(SEQUENCE, num_samples=400)
    slopes = on_cells(explanation_weights(found)) / data().std(axis=0)  # lime's are per scaled unit
    np.testing.assert_allclose(slopes[:, [0, 2]], WEIGHTS[:, [0, 2]], atol=1e-3)
    assert on_cells(dict(found.local_exp[0]))[2, 2] < 0 < slopes[2, 2]
    with pytest.raises(TargetError, match="one output"):
        LimeSequence(a).explain(SEQUENCE, 1)
    same = LimeSequence(a, semantics="gradient", **EXACT).explain(SEQUENCE, num_samples=400, output="logits")
    assert explanation_weights(same) == explanation_weights(found)
    assert str(same.explained).startswith("prediction: ")


def test_score_and_prediction_in_both_shapes():
    found = LimeSequence(adapter()).explain(SEQUENCE, 0, num_samples=100)
    score, prediction = explanation_score(found, 0), explanation_prediction(found, 0)
    found.score, found.local_pred = {0: found.score}, {0: found.local_pred}  # as lime's later commits have them
    assert (explanation_score(found, 0), explanation_prediction(found, 0)) == (score, prediction)


def test_the_explanation_can_be_pickled():
    found = LimeSequence(adapter()).explain(SEQUENCE, 0, num_samples=50)
    again = pickle.loads(pickle.dumps(found))
    assert explanation_weights(again) == explanation_weights(found)
    assert again.as_list(0) == found.as_list(0)


def test_explain_takes_the_predicted_class_and_selects_cells():
    a = adapter()
    found = LimeSequence(a).explain(SEQUENCE, num_samples=100, num_features=2)
    assert list(found.local_exp) == [int(a.predict_proba(SEQUENCE).argmax())]
    assert len(explanation_weights(found)) == 2


def test_categories_are_drawn_as_such_at_every_step():
    seen = []

    def model(x):
        seen.append(x[:, :, 1])
        return x[:, 0, 0]

    for categorical in (["kind"], [1]):
        seen.clear()
        method = LimeSequence(model, data(), feature_names=NAMES, categorical_features=categorical)
        method.attribute(torch.tensor(SEQUENCE[None]), n_samples=100)
        for t in range(STEPS):
            assert set(torch.cat(seen)[:, t].tolist()) == {0, 1}
    seen.clear()
    LimeSequence(model, data()).attribute(torch.tensor(SEQUENCE[None]), n_samples=100)
    assert len(torch.cat(seen).unique()) > 10  # undeclared, they are numbers to lime


def test_names_of_categories():
    a = adapter()
    for series in ("kind", 1):
        method = LimeSequence(a, categorical_names={series: ["none", "some"]})
        names = [name for name, _ in method.explain(SEQUENCE, 0, num_samples=50).as_list(0)]
        kinds = [["none", "some"][int(k)] for k in SEQUENCE[:, 1]]
        assert {n for n in names if n.startswith("kind")} == {f"kind_t-{3 - t}={kinds[t]}" for t in range(STEPS)}


def test_an_integer_tensor_holds_categories():
    ids = np.random.RandomState(0).randint(0, 3, size=(60, STEPS, 1))
    seen = []

    def model(x):
        seen.append(x)
        return (x[:, -1, 0] == 1).double()

    method = LimeSequence(model, ids, **EXACT)
    found = method.attribute(torch.from_numpy(ids[:1]), n_samples=300)
    assert set(torch.cat(seen).flatten().tolist()) == {0, 1, 2}
    assert not torch.cat(seen).is_floating_point()
    assert found.is_floating_point()
    assert found[0, -1, 0].abs() > 0.4 > found[0, :-1].abs().max()


def test_bins_of_a_single_value_are_drawn_as_that_value():
    sequences = np.random.RandomState(0).normal(size=(80, STEPS, 2))
    sequences[:, 2, 1] = 5.0
    seen = []

    def model(x):
        seen.append(x)
        return x[:, 0, 0]

    LimeSequence(model, sequences).attribute(torch.tensor(sequences[:1]), n_samples=100)
    assert torch.cat(seen)[:, 2, 1].unique().tolist() == [5.0]


def test_samples_around_the_sequence():
    sequences = np.random.RandomState(0).normal(0, 0.1, size=(80, STEPS, 1))
    seen = []

    def model(x):
        seen.append(x)
        return x[:, 0, 0]

    far = torch.full((1, STEPS, 1), 9.0)
    method = LimeSequence(model, sequences, semantics="gradient", sample_around_instance=True)
    method.attribute(far, n_samples=100)
    assert torch.cat(seen).min() > 8.0


@pytest.mark.parametrize("target", [0, [0, 1], torch.tensor([1, 0])], ids=["int", "list", "tensor"])
def test_a_batch_is_its_sequences_one_by_one(target):
    a = lstm()
    method = LimeSequence(a)
    together = method.attribute(**a.encode(data()[:2]).arguments(method), target=target, n_samples=60)
    for i in range(2):
        own = target if isinstance(target, int) else int(target[i])
        alone = method.attribute(**a.encode(data()[i]).arguments(method), target=own, n_samples=60)
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-9, rtol=0)
    flat = method.attribute(a.encode(data()[:2]).inputs, target=target, n_samples=60, return_input_shape=False)
    for t in range(STEPS):
        for f in range(SERIES):
            torch.testing.assert_close(flat[:, f * STEPS + t], together[:, t, f])


def test_arguments_of_each_sequence_and_a_tuple():
    def model(x, scale):
        return scale * (2 * x[:, 0, 0] - x[:, 3, 2])

    method = LimeSequence(model, data(), semantics="gradient", **EXACT)
    inputs = torch.tensor(data()[:2]).float()
    (found,) = method.attribute((inputs,), additional_forward_args=torch.tensor([1.0, -2.0]), n_samples=300)
    expected = torch.zeros(2, STEPS, SERIES)
    expected[:, 0, 0], expected[:, 3, 2] = torch.tensor([2.0, -4.0]), torch.tensor([-1.0, 2.0])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("units", ["step", "series"])
@pytest.mark.parametrize("semantics", ["contrast", "times_input"])
def test_features_of_several_cells_get_the_sum(units, semantics):
    a = lstm()
    method = LimeSequence(a, semantics=semantics)
    cells = method.attribute(a.encode(SEQUENCE).inputs, target=0, n_samples=200)
    x = a.encode(SEQUENCE, features=units)
    found = method.attribute(**x.arguments(method), target=0, n_samples=200)
    expected = cells.sum(dim=2 if units == "step" else 1, keepdim=True).expand(1, STEPS, SERIES)
    torch.testing.assert_close(found, expected)
    values = method.attribute(**x.arguments(method), target=0, n_samples=200, return_input_shape=False)
    assert values.shape == (1, len(x.feature_names[0]))
    assert float(values.sum()) == pytest.approx(float(cells.sum()))
    # a mask may also be of fewer dimensions than the input
    narrow = x.feature_mask[:, :, :1] if units == "step" else x.feature_mask[:, :1]
    torch.testing.assert_close(method.attribute(x.inputs, 0, None, narrow, n_samples=200), found)


def test_slopes_are_not_added_up():
    a = adapter()
    method = LimeSequence(a, semantics="gradient")
    with pytest.raises(InputError, match="slopes do not add up"):
        method.attribute(**a.encode(SEQUENCE, features="step").arguments(method), target=0)
    assert method.attribute(**a.encode(SEQUENCE).arguments(method), target=0, n_samples=20).shape == (1, 4, 3)


def test_batches_and_the_models_own_dtype():
    a = adapter()
    x = a.encode(SEQUENCE)
    a.model.shapes.clear()
    LimeSequence(a).attribute(x.inputs, target=0, n_samples=25, perturbations_per_eval=10)
    assert a.model.shapes == [(1, STEPS, SERIES), (10, STEPS, SERIES), (10, STEPS, SERIES), (5, STEPS, SERIES)]
    half = a.encode(SEQUENCE).inputs.bfloat16()
    assert LimeSequence(a).attribute(half, target=0, n_samples=25).dtype == torch.bfloat16


@pytest.mark.parametrize("semantics", ["contrast", "gradient"])
def test_values_on_a_quartile_stay_in_their_bin_in_float32(semantics):
    sequences = np.random.RandomState(0).randint(40, 80, size=(150, 2, 2)) / 10
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    a = SequenceAdapter(model, training_data=sequences, task="regression")
    quartiles = np.percentile(sequences, [25, 50, 75], axis=0)
    on = [one for one in sequences if (one == quartiles).any()][:8]
    assert any(np.float32(one).astype(float)[one == q].any() for one in on for q in quartiles)
    scale = sequences.std(axis=0) if semantics == "gradient" else np.ones((2, 2))
    for one in on:
        method = LimeSequence(a, semantics=semantics)
        weights = explanation_weights(method.explain(one, num_samples=200))
        expected = np.array([[weights[f * 2 + t] for f in range(2)] for t in range(2)]) / scale
        found = method.attribute(a.encode(one).inputs, target=0, n_samples=200)[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_equal_calls_give_equal_results():
    a = adapter()
    x = a.encode(SEQUENCE)
    method = LimeSequence(a)
    one, two = (method.attribute(x.inputs, target=0, n_samples=50) for _ in range(2))
    other = LimeSequence(a, seed=1).attribute(x.inputs, target=0, n_samples=50)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_dropout_of_an_adapter_is_off_and_comes_back():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(STEPS * SERIES, 2)).train()
    a = SequenceAdapter(model, training_data=data())
    x = a.encode(SEQUENCE)
    one, two = (LimeSequence(a).attribute(x.inputs, target=0, n_samples=60) for _ in range(2))
    assert torch.equal(one, two)
    assert all(m.training for m in model.modules())


def test_side_by_side_with_rollout_and_integrated_gradients():
    a = adapter(Steps())
    x = a.encode(SEQUENCE)
    lime = LimeSequence(a, semantics="times_input")
    explanation = LimeSequence(a).explain(SEQUENCE, 1, num_samples=100, output="logits")
    methods = {
        "rollout": AttentionAttribution(a),
        "lime": lime,
        "gradients": captum.attr.InputXGradient(a),
        "explanation": explanation,
    }
    x.inputs.requires_grad_()
    found = compare(methods, x, target=1)
    assert list(found.scores.index) == [f"{n}_t-{3 - t}" for n in NAMES for t in range(STEPS)]
    tensor = lime.attribute(**x.arguments(lime), target=1)[0]
    gradients = captum.attr.InputXGradient(a).attribute(x.inputs, target=1)[0].detach()
    weights = explanation_weights(explanation)
    for t in range(STEPS):
        for f in range(SERIES):
            row = found.scores.iloc[f * STEPS + t]
            assert row["lime"] == pytest.approx(float(tensor[t, f]), abs=1e-6)
            assert row["gradients"] == pytest.approx(float(gradients[t, f]), abs=1e-6)
            assert row["explanation"] == pytest.approx(weights[f * STEPS + t])
    # Each step's attention, shared among its cells.
    np.testing.assert_allclose(found.scores["rollout"].sum(), 1.0, atol=1e-5)
    assert len(found.agreement) == 6
    assert "u_t-3" in found.to_html()


def test_side_by_side_on_steps():
    a = adapter(Steps())
    x = a.encode(SEQUENCE, features="step")
    lime = LimeSequence(a, semantics="times_input")
    x.inputs.requires_grad_()
    found = compare(
        {"rollout": AttentionAttribution(a), "lime": lime, "ixg": captum.attr.InputXGradient(a)}, x, target=1
    )
    assert list(found.scores.index) == ["t-3", "t-2", "t-1", "t-0"]
    cells = lime.attribute(x.inputs, target=1)[0]
    np.testing.assert_allclose(found.scores["lime"], cells.sum(dim=1), atol=1e-6)
    gradients = captum.attr.InputXGradient(a).attribute(x.inputs, target=1)[0].detach()
    np.testing.assert_allclose(found.scores["ixg"], gradients.sum(dim=1), atol=1e-6)
    np.testing.assert_allclose(found.scores["rollout"].sum(), 1.0, atol=1e-5)
    explanation = LimeSequence(a).explain(SEQUENCE, 1, num_samples=50)
    with pytest.raises(InputError, match="over 12 cells, but the encoding has 4 other features"):
        compare({"lime": explanation}, x, target=1)


def test_explanations_of_another_sequence_are_not_compared():
    a = adapter()
    explanation = LimeSequence(a).explain(data()[8], 1, num_samples=50)
    with pytest.raises(InputError, match="of another row"):
        compare({"lime": explanation}, a.encode(SEQUENCE), target=1)


def test_noise_tunnel_runs_around_it():
    sequences = np.random.RandomState(0).normal(size=(80, STEPS, 2))
    a = SequenceAdapter(nn.Sequential(nn.Flatten(), nn.Linear(8, 2)), training_data=sequences)
    method = LimeSequence(a)
    x = a.encode(sequences[:2])
    still = captum.attr.NoiseTunnel(method).attribute(x.inputs, nt_samples=2, stdevs=0.0, target=0, n_samples=40)
    torch.testing.assert_close(still, method.attribute(x.inputs, target=0, n_samples=40))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(semantics="slope"), "semantics must be"),
        (dict(semantics="gradient", discretizer="decile"), "discretizer has no effect"),
        (dict(sample_around_instance=True), "sample_around_instance has no effect"),
        (dict(training_labels=[1]), "training_labels"),
        (dict(discretizer="entropy"), "needs training_labels"),
        (dict(categorical_features=[9]), "got 9"),
        (dict(categorical_features=["u"]), "'u_t-3' has the value .* categories are integers"),
        (dict(categorical_names={"size": ["a"]}), "names 'size'"),
        (dict(categorical_names={"u": ["a"]}), "'u', which is not one of categorical_features"),
        (dict(training_data=data()[0]), "several sequences"),
        (dict(training_data=data()[:, :2]), "expected 4 steps"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        LimeSequence(adapter(), **options)


def test_entropy_bins():
    labels = (data()[:, 0, 0] > 1).astype(int)
    a = adapter()
    method = LimeSequence(a, discretizer="entropy", training_labels=labels)
    assert method.attribute(a.encode(SEQUENCE).inputs, target=0, n_samples=50).abs().sum() > 0


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        (torch.ones(1, 3, 4), {}, InputError, r"4 steps of 3 series, but the inputs have shape \(1, 3, 4\)"),
        (torch.ones(4, 3), {}, InputError, r"\(4, 3\)"),
        ((torch.ones(1, 4, 3), torch.ones(1)), {}, InputError, "additional_forward_args"),
        (torch.full((1, 4, 3), float("nan")), {}, InputError, "series 'u' at step 0 of sequence 0 is nan"),
        (torch.full((1, 4, 3), 0.5), {}, InputError, "'kind_t-3' has the value 0.5"),
        (None, dict(target=4), TargetError, "target 4"),
        (None, dict(target=None), TargetError, "does not select one number"),
        (None, dict(n_samples=0), InputError, "n_samples"),
        (None, dict(perturbations_per_eval=0), InputError, "perturbations_per_eval"),
        (None, dict(feature_mask=torch.zeros(1, 5, 3).long()), InputError, "does not broadcast"),
        (None, dict(feature_mask=torch.zeros(1, 4, 3)), InputError, "integer ids"),
    ],
)
def test_bad_arguments(inputs, options, error, message):
    a = adapter()
    inputs = a.encode(SEQUENCE).inputs if inputs is None else inputs
    with pytest.raises(error, match=message):
        LimeSequence(a).attribute(inputs, **{"target": 0, "n_samples": 20, **options})


def test_a_category_that_never_stands_at_that_step():
    # lime would take it for a feature that only the sequence itself has, whatever the model makes of it.
    training = data()
    training[:, 0, 1] = 0
    other = SEQUENCE.copy()
    other[0, 1] = 1  # known at other steps
    a = adapter(training_data=training)
    x = a.encode(other)
    method = LimeSequence(a)
    for run in (lambda: method.explain(other), lambda: method.attribute(x.inputs, target=0)):
        with pytest.raises(
            InputError, match=r"'kind_t-3' has the value 1, which the training data has not: it has 0\."
        ):
            run()


def test_what_cannot_be_explained():
    with pytest.raises(InputError, match="draws its rows from training data"):
        LimeSequence(lambda x: x.sum((1, 2)))
    with pytest.raises(InputError, match="draws its rows from training data"):
        LimeSequence(SequenceAdapter(Additive()))
    with pytest.raises(InputError, match="a function"):
        LimeSequence("model")
    with pytest.raises(InputError, match="SequenceAdapter around the model"):
        LimeSequence(lambda x: x.sum((1, 2)), data()).explain(SEQUENCE)
    with pytest.raises(InputError, match="one sequence, but got 2"):
        LimeSequence(adapter()).explain(data()[:2])
    with pytest.raises(TargetError, match="target 2"):
        LimeSequence(adapter()).explain(SEQUENCE, 2)
    with pytest.raises(InputError, match="output must be"):
        LimeSequence(adapter()).explain(SEQUENCE, 0, output="odds")
    with pytest.raises(ForwardError, match="predicts at each step"):
        LimeSequence(adapter(nn.Identity())).explain(SEQUENCE, 0)
    with pytest.raises(ForwardError, match="NaN"):
        LimeSequence(lambda x: x.sum((1, 2)).log(), data()).attribute(torch.tensor(SEQUENCE[None]))


def test_progress_is_shown(capsys):
    a = adapter()
    method = LimeSequence(a)
    method.attribute(a.encode(data()[:2]).inputs, target=0, n_samples=20, show_progress=True)
    assert "40/40" in capsys.readouterr().err
    method.explain(SEQUENCE, 0, num_samples=30, show_progress=True)
    assert "30/30" in capsys.readouterr().err


def test_it_is_a_captum_perturbation_attribution():
    method = LimeSequence(adapter())
    assert isinstance(method, captum.attr.PerturbationAttribution)
    assert method.get_name() == "Lime Sequence"
    assert method.multiplies_by_inputs
    assert not LimeSequence(adapter(), semantics="gradient").multiplies_by_inputs
    captums = [name for name in signature(captum.attr.Lime.attribute).parameters if name != "baselines"]
    assert list(signature(LimeSequence.attribute).parameters) == captums


def test_rows_explained_as_logits_and_as_labels():
    """What rows and sequences share: a sequence of one step is a row."""
    rows = data()[:, 0]
    torch.manual_seed(0)
    flat = nn.Linear(SERIES, 3).double()
    one_step = nn.Sequential(nn.Flatten(), flat)
    for task, output in (("classification", "logits"), ("multi_label", "probability")):
        table = TabularAdapter(flat, training_data=rows, categorical_features=[1], task=task)
        sequence = SequenceAdapter(one_step, training_data=rows[:, None], categorical_features=[1], task=task)
        as_row = LimeTabular(table).explain(rows[7], 2, num_samples=100, output=output)
        as_sequence = LimeSequence(sequence).explain(rows[7][None], 2, num_samples=100, output=output)
        one, two = explanation_weights(as_row), explanation_weights(as_sequence)
        assert min(abs(w) for w in one.values()) > 1e-3
        np.testing.assert_allclose([one[k] for k in range(3)], [two[k] for k in range(3)], atol=1e-9)
