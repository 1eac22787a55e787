"""Attention over the columns of a table: an FT-Transformer on breast_cancer, explained four ways."""

# %% [markdown]
# # A table
#
# Transformers are not only for text. An FT-Transformer turns each column of a table into a token, applies
# self-attention, and predicts from a class token. Attention therefore attributes to *columns*, just like LIME and
# Captum for tables.
#
# The data are 569 tumours, 30 measurements each, malignant or benign (scikit-learn's breast_cancer).

# %%
from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from captum.attr import IntegratedGradients
from rtdl_revisiting_models import FTTransformer
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from tqdm import tqdm

from captum_attn_lime import AttentionAttribution, LimeTabular, TabularAdapter, compare, plot

OUTPUT = Path("output")
OUTPUT.mkdir(exist_ok=True)

data = load_breast_cancer()
columns = [str(name) for name in data.feature_names]
classes = [str(name) for name in data.target_names]
train, test, train_labels, test_labels = train_test_split(
    data.data, data.target, test_size=0.3, stratify=data.target, random_state=0
)

# %% [markdown]
# The rows are standardised: in each column, 0 is the average tumour, and the unit is one standard deviation.

# %%
scaler = StandardScaler().fit(train)
train, test = scaler.transform(train), scaler.transform(test)

# %% [markdown]
# ## The model


# %%
def fit(rows: np.ndarray, labels: np.ndarray, *, epochs: int = 20, seed: int = 0) -> FTTransformer:
    """Return a fitted classifier; takes a few seconds on one CPU core."""
    torch.manual_seed(seed)
    model = FTTransformer(
        n_cont_features=rows.shape[1],
        cat_cardinalities=[],
        d_out=2,
        n_blocks=2,
        d_block=32,
        attention_n_heads=2,
        attention_dropout=0.2,
        ffn_d_hidden=None,
        ffn_d_hidden_multiplier=1.0,
        ffn_dropout=0.2,
        residual_dropout=0.0,
    )
    x, y = torch.tensor(rows, dtype=torch.float32), torch.tensor(labels)
    optimizer = torch.optim.AdamW(model.make_parameter_groups(), lr=3e-3, weight_decay=1e-2)
    for _ in tqdm(range(epochs), desc="training", unit=" epochs"):
        for batch in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(model(x[batch], None), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


model = fit(train, train_labels)

# %% [markdown]
# An adapter turns rows into tensors for Captum and into probabilities for LIME. It detects that an FT-Transformer
# expects numeric and categorical columns separately, and that there are no categorical ones here.

# %%
adapter = TabularAdapter(model, training_data=train, feature_names=columns, class_names=classes)
probabilities = adapter.predict_proba(test)
predicted = probabilities.argmax(axis=1)
accuracy = float((predicted == test_labels).mean())
linear = LogisticRegression(max_iter=1000).fit(train, train_labels)
print(
    f"\nAccuracy on {len(test)} unseen tumours: {accuracy:.3f} "
    f"(logistic regression {linear.score(test, test_labels):.3f}, "
    f"always answering {classes[1]} {test_labels.mean():.3f})."
)

# %% [markdown]
# ## One tumour
# The unseen tumour, correctly classified as malignant, whose probability is closest to 0.8: confident, but not so
# confident that every explanation is flat.

# %%
target = 0
correct = np.flatnonzero((test_labels == target) & (predicted == target))
row = test[correct[np.abs(probabilities[correct, target] - 0.8).argmin()]]
x = adapter.encode(row)
print(f"\nOne tumour: {classes[target]}, with probability {adapter.predict_proba(row[None])[0, target]:.2f}.")

# %% [markdown]
# ## Four explanations
# Attention needs no settings for tables: the token of each column, and the class token that the prediction depends on,
# are detected automatically. Integrated gradients go from the adapter's baseline, the mean of the training rows, to
# this row. LIME is the official `LimeTabularExplainer`; like the others, it explains the logit.

# %%
raw = AttentionAttribution(adapter, method="raw")
rollout = AttentionAttribution(adapter, method="rollout")
gradients = IntegratedGradients(adapter)
lime = LimeTabular(adapter, train, feature_names=columns, class_names=classes)

explanation = lime.explain(row, target=target, num_samples=3000, output="logits")
comparison = compare(
    {"raw attention": raw, "rollout": rollout, "integrated gradients": gradients, "LIME": explanation},
    x,
    target=target,
)

# %% [markdown]
# ## Side by side

# %%
order = comparison.scores["LIME"].abs().sort_values(ascending=False).index
with pd.option_context("display.width", 120, "display.max_rows", None, "display.float_format", "{:+.3f}".format):
    print(f"\nThe ten columns with the largest LIME weights (+ speaks for {classes[target]}; attention has no sign)\n")
    print(comparison.scores.loc[order[:10]])
    print("\nAgreement of the methods (agreement is not quality)\n")
    print(comparison.agreement)
print("\nLIME's conditions and weights:")
for condition, weight in explanation.as_list(label=target)[:5]:
    print(f"  {weight:+.3f}  {condition}")
shares = comparison.scores["raw attention"]
ratio = float(shares.max() / shares.min())
print(
    f"""
How to read this
* Many of the 30 columns are redundant (radius, perimeter and area of one tumour): a model may use any of them, and
  methods that name different ones can all be right about the model.
* Raw attention says almost nothing here: a uniform share would be 1/31 = 0.032 per column, and the largest share is
  only {ratio:.2f} times the smallest. The prediction depends on the values, not on the attention weights. An attention
  map always looks like an explanation; check that it is not merely uniform.
* Integrated gradients answer "why is this logit not that of the average tumour?"; LIME answers "which conditions on the
  columns change the logit near this tumour?". These are different questions."""
)

# %%
title = f"{classes[target]}: which columns change its logit?"
plot.save(comparison.plot(title=title, max_features=8), OUTPUT / "table.png", dpi=110, bbox_inches="tight")
print(f"\nWritten: {OUTPUT / 'table.png'}.")
