"""Attention and LIME from scratch: a hand-written attention layer, trained on film reviews, explained in two ways."""

# %% [markdown]
# # Attention from scratch, and LIME beside it
#
# This page assumes no knowledge of attention or LIME. We write an attention layer by hand, train it for a few seconds
# to predict whether a critic liked a film, look at what it attends to, and then ask LIME the same question: *which
# words mattered?*

# %%
from __future__ import annotations

import math
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from film_reviews import CLASS_NAMES, load_reviews, split_by_film
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from captum_attn_lime import AttentionAttribution, LimeText, TextAdapter, WordTokenizer, capture, compare, plot

OUTPUT = Path("output")
OUTPUT.mkdir(exist_ok=True)

# %% [markdown]
# ## 1. Attention, in one formula
#
# The input is a text of N words as N vectors of length d, the rows of a matrix X. Three learned matrices project each
# word's vector:
#
# * a **query** q = x W_q: what this word looks for,
# * a **key** k = x W_k: what this word offers,
# * a **value** v = x W_v: what this word contributes when attended to.
#
# Word i compares its query with every key: the dot product q_i · k_j is large if word j offers what word i looks for. A
# softmax turns the N numbers of word i into shares that sum to 1, and the word's new vector is the average of all
# values, weighted by these shares. For all words at once:
#
#     A = softmax(Q Kᵀ / √d)        (N, N)   the attention weights
#     output = A V                  (N, d)
#
# **What a row means.** Row i of A is how word i distributes its attention over the words of the text: `A[i, j]` is the
# share of word j in the new vector of word i.
#
# **Why √d.** If the entries of q and k are independent with variance 1, then q · k is a sum of d products and has
# variance d. For d = 64 the scores would differ by about 8, the softmax would give nearly everything to one word, and
# gradients would almost vanish. Divided by √d, the variance is 1 for any d.
#
# **Why several heads.** One softmax gives one set of shares. With H heads the vectors are split into H pieces with
# separate weights, so that a word can look for several things at once.


# %%
class HandWrittenAttention(nn.Module):
    """Multi-head self-attention: softmax(QKᵀ/√d)V in each head."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Return the new vectors (B, N, D); ``real`` (B, N) is False at padding."""
        q, k, v = (self._heads(project(x)) for project in (self.query, self.key, self.value))  # (B, H, N, d)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, N, N)
        # exp(-inf) is 0: no word attends to padding.
        scores = scores.masked_fill(~real[:, None, None, :], -math.inf)
        weights = scores.softmax(dim=-1)  # each row sums to 1
        mixed = weights @ v  # (B, H, N, d)
        return self.output(mixed.transpose(1, 2).flatten(start_dim=2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, N, D) -> (B, H, N, d)


# %% [markdown]
# ## 2. A small classifier around it
# An extra vector, [CLS], precedes the words. It represents no word; its new vector is the average of what it attends
# to, and the prediction (rotten or fresh) depends on it alone. So the [CLS] row of A is the one to look at.


# %%
class TinyClassifier(nn.Module):
    """Word vectors, one attention layer with a residual connection, and a linear classifier on [CLS]."""

    def __init__(self, vocabulary: int, *, width: int = 64, n_heads: int = 2, longest: int = 96) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(longest, width)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        for start in (self.words.weight, self.cls):
            nn.init.normal_(start, std=0.1)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.attention = HandWrittenAttention(width, n_heads)
        self.normalise = nn.LayerNorm(width)
        self.answer = nn.Linear(width, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return logits (B, 2) for word ids (B, N); ``attention_mask`` (B, N) is 0 at padding."""
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        real = nn.functional.pad(real.bool(), (1, 0), value=True)  # (B, 1 + N): [CLS] is always there
        x = self.words(input_ids) + self.positions.weight[: input_ids.shape[1]]
        x = self.dropout(torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1))
        x = x + self.attention(x, real)  # the residual connection: each word also keeps its vector
        return self.answer(self.dropout(self.normalise(x[:, 0])))


# %% [markdown]
# ## 3. Real data, and a real test
# One-sentence film reviews, fresh or rotten. Sixty films are held out with all their reviews: the accuracy is measured
# on films that do not occur in the training data.

# %%
train, test = split_by_film(load_reviews(), n_test_films=60, seed=0)
tokenizer = WordTokenizer.fit(train["text"], max_size=8000)


def fit(texts: list[str], labels: Tensor, *, epochs: int = 4, seed: int = 0) -> TinyClassifier:
    """Return a trained classifier; takes about ten seconds on one CPU core."""
    torch.manual_seed(seed)
    model = TinyClassifier(len(tokenizer))
    ids = pad_sequence([torch.tensor(tokenizer.encode(text)) for text in texts], batch_first=True)  # 0 is padding
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    for batch in tqdm([b for _ in range(epochs) for b in torch.randperm(len(ids)).split(64)], desc="training"):
        real = ids[batch] != tokenizer.pad_token_id
        # Words are dropped at random, so that the model does not depend on a single one. Texts with missing words, as
        # LIME creates them, are then in distribution.
        forgotten = (torch.rand(real.shape) < 0.3) & real
        logits = model(ids[batch].masked_fill(forgotten, tokenizer.unk_token_id), real)
        loss = nn.functional.cross_entropy(logits, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


model = fit(list(train["text"]), torch.tensor(train["label"].to_numpy()))
adapter = TextAdapter(model, tokenizer, class_names=CLASS_NAMES)
predicted = adapter.predict_proba(list(test["text"])).argmax(axis=1)
accuracy = float((predicted == test["label"]).mean())
majority = float(max(test["label"].mean(), 1 - test["label"].mean()))
print(
    f"\n{accuracy:.1%} of {len(test):,} reviews of unseen films are classified correctly "
    f"(always answering the more frequent class: {majority:.1%})."
)

# %% [markdown]
# ## 4. What does it attend to?
# One unseen review. `capture` returns the attention of a running model; the model needs no support for it. With a
# single layer, the result is simple: `weights` is the matrix A of the formula, one per head.

# %%
text = test[test["text"].str.startswith("Though the story  is hackneyed")]["text"].iloc[0]
x = adapter.encode(text)
probabilities = adapter.predict_proba([text])[0]
target = int(probabilities.argmax())
print(f"\n  “{text}”\n\nPredicted {CLASS_NAMES[target]} with probability {probabilities[target]:.2f}.")

with capture(model) as maps:
    model(x.inputs, *x.forward_args)
(attention_map,) = maps
weights = attention_map.dense()[0]  # (H, N, N)
print(f"\nThe weights of {attention_map.name!r} are {tuple(weights.shape)}: heads, queries, keys.")

tokens = ["[CLS]", *x.tokens[0]]
figure, axes = plt.subplots(1, len(weights), figsize=(6.5 * len(weights), 6.2), layout="constrained")
for head, ax in enumerate(axes):
    image = ax.imshow(weights[head].numpy(), vmin=0, vmax=float(weights.max()), cmap="Blues")
    ax.set_xticks(range(len(tokens)), tokens, rotation=60, ha="right")
    ax.set_yticks(range(len(tokens)), tokens)
    ax.set(title=f"head {head}", xlabel="looked at (key)", ylabel="looking (query)")
figure.colorbar(image, ax=axes, label="share of attention (each row sums to 1)", shrink=0.8)
figure.suptitle("softmax(QKᵀ/√d): the answer is read from the first row, [CLS]")
plot.save(figure, OUTPUT / "attention_from_scratch.png", dpi=110)
plt.close(figure)

# %% [markdown]
# How to read the figure: dark columns are words that many words attend to; `<unk>` is a rare word outside the
# vocabulary. The two heads have learned nearly the same, because the training does not require them to differ. Only
# the first row is used, since there is no second layer to read the others.
#
# The [CLS] row, averaged over the heads, is *raw attention*: one number per word. `AttentionAttribution` detects which
# row the prediction depends on, and returns the same numbers.

# %%
raw = AttentionAttribution(adapter, method="raw")
attention = raw.attribute(**x.arguments(raw))  # (1, N)
by_hand = weights.mean(dim=0)[0]  # (1 + N,): what [CLS] attends to, including itself
print(f"The same by hand and by AttentionAttribution: {torch.allclose(attention[0], by_hand[1:], atol=1e-5)}.")
print(f"[CLS] keeps {float(by_hand[0]):.3f} for itself; the words get the rest.")

# %% [markdown]
# ## 5. LIME: querying the model instead of looking inside
#
# LIME never sees Q, K or V. It treats the model f as a black box:
#
# 1. **Sample around x.** Make many texts z from the review x by removing words at random, and compute f(z).
# 2. **Weight by proximity.** A text without two of its words says more about x than one without twelve: each z has the
#    weight π(z) = exp(−distance(x, z)² / width²).
# 3. **Fit a simple local model.** Find the linear function of "is word j present?" (0 or 1) that is closest to f,
#
#        g(z) = w₀ + Σⱼ wⱼ zⱼ,    minimising  Σ_z π(z) (f(z) − g(z))²  plus a small penalty on w.
#
# 4. **Read its weights.** wⱼ is how much the presence of word j raises the probability near this text. A positive
#    weight speaks for the class, a negative one against it.

# %%
lime = LimeText(adapter, class_names=CLASS_NAMES)
explanation = lime.explain(text, target=target, num_samples=2000)
print(f"\nLIME: the five words that matter most for {CLASS_NAMES[target]}")
for word, weight in explanation.as_list(label=target)[:5]:
    print(f"  {weight:+.3f}  {word}")
print(f"  (the linear model explains {float(explanation.score):.0%} of the probability's variance near this text)")

# %% [markdown]
# ## 6. Side by side

# %%
comparison = compare({"raw attention": attention, "LIME": explanation}, x, target=target)
with pd.option_context("display.max_rows", None, "display.float_format", "{:+.3f}".format):
    print(f"\n{comparison.scores}\n\n{comparison.agreement}")
print(
    """
Where and why they may disagree
* Sign. Attention weights are shares: they cannot be negative, and they are the same for every class. A word that speaks
  *against* the predicted class can get much attention. LIME gives it a negative weight.
* Attention is not contribution. Attention weights values: a word can have a large share and a value that does not
  affect the prediction, or a small share and a value that matters a lot.
* Uniform attention says little. If all words get about the same share, the values made the difference.
* LIME describes the neighbourhood of the text, from texts with missing words, and has errors of its own: a linear model
  and a few thousand samples. With another seed the small weights change their order.
* Agreement does not make either of them true. To find out which words the model really needs, remove them one after
  another and look at its output: that is what faithfulness metrics do."""
)
plot.save(comparison.plot(), OUTPUT / "attention_beside_lime.png", dpi=110, bbox_inches="tight")
print(f"\nWritten: {OUTPUT / 'attention_from_scratch.png'} and {OUTPUT / 'attention_beside_lime.png'}.")
