"""One film review explained four ways: raw attention, rollout, integrated gradients and LIME, side by side."""

# %% [markdown]
# # Quickstart
#
# A classifier decides whether a critic liked a film. We take one sentence from a film that is not in the training data,
# and ask four methods which words the prediction depends on:
#
# * **raw attention**: what the last layer attends to,
# * **attention rollout**: attention traced back through all layers to the words,
# * **integrated gradients**, one of Captum's methods,
# * **LIME**, the official package, used through the same adapter.
#
# Run it with `make quickstart`, or `python examples/quickstart.py`. The first run embeds 6,000 reviews (about a minute
# on one CPU core) and caches the result; later runs take seconds.

# %%
from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from captum.attr import LayerIntegratedGradients
from film_reviews import CLASS_NAMES, load_or_fit

from captum_attn_lime import AttentionAttribution, LimeText, TextAdapter, compare, plot

OUTPUT = Path("output")
OUTPUT.mkdir(exist_ok=True)

# %% [markdown]
# ## The model
# MiniLM with a linear head, fitted on real reviews. The train and test sets share no films: the accuracy measures
# whether the model understands reviews, not whether it knows the films.

# %%
reviews = load_or_fit()
print(
    f"\nFresh or rotten? {reviews.accuracy:.1%} of {len(reviews.test):,} reviews of "
    f"{reviews.test['film'].nunique()} unseen films are classified correctly (always answering the more frequent "
    f"class: {reviews.majority:.1%}). The head was fitted on {reviews.n_train:,} reviews"
    f"{' and comes from the cache' if reviews.from_cache else ''}."
)

# %% [markdown]
# ## The input
# One of the unseen reviews. It begins with praise and ends with criticism, so there is something to explain.

# %%
chosen = reviews.test[reviews.test["text"].str.startswith("The film starts promisingly")].iloc[0]
text = chosen["text"]

# %% [markdown]
# An adapter makes the model an ordinary Captum `forward_func` (tensors in, logits out) and, at the same time, the
# `predict_proba` that LIME needs (texts in, probabilities out). Both see the same words and the same class.
#
# Integrated gradients compare the text with a neutral *baseline*. Here that is a text of padding tokens, on which this
# model is nearly undecided. A text of [MASK] tokens would be a poor baseline: the model classifies it as rotten.

# %%
adapter = TextAdapter(reviews.model, reviews.tokenizer, class_names=CLASS_NAMES)
x = adapter.encode(text, baselines="pad")
probabilities = adapter.predict_proba([text])[0]
target = int(probabilities.argmax())
print(f"\n  “{text}”\n")
print(
    f"Predicted {CLASS_NAMES[target]} with probability {probabilities[target]:.2f}; "
    f"the critic's own verdict: {CLASS_NAMES[chosen['label']]}."
)

# %% [markdown]
# ## Four explanations
# Attention methods are Captum attributions like any other: `attribute(inputs, target, ...)`. `x.arguments(method)`
# returns the arguments that a method accepts: inputs, baselines, attention mask, feature mask. `compare` runs the
# methods and makes all of them explain the same number: here the logit, since a probability near 1 hardly changes.

# %%
raw = AttentionAttribution(adapter, method="raw")
rollout = AttentionAttribution(adapter, method="rollout")
gradients = LayerIntegratedGradients(adapter, adapter.embedding)
lime = LimeText(adapter, class_names=CLASS_NAMES)

_, delta = gradients.attribute(**x.arguments(gradients), target=target, n_steps=50, return_convergence_delta=True)
explanation = lime.explain(text, target=target, num_samples=2000, output="logits")
comparison = compare(
    {"raw attention": raw, "rollout": rollout, "integrated gradients": gradients, "LIME": explanation},
    x,
    target=target,
)

# %% [markdown]
# Integrated gradients must add up to the difference between the logit of the text and that of the baseline. The
# remaining error is the convergence delta; if it is not small, use more steps.

# %%
with torch.no_grad():
    logits, blank = adapter(x.inputs, *x.forward_args), adapter(x.baselines, *x.forward_args)
difference, undecided = float((logits - blank)[0, target]), float(blank.softmax(dim=1)[0, target])
print(
    f"\nIntegrated gradients add up to the logit's difference from the baseline, {difference:+.3f} (there "
    f"{CLASS_NAMES[target]} has probability {undecided:.2f}); convergence delta {float(delta):+.1e}."
)

# %% [markdown]
# LIME's weights are estimates from random samples. The diagnostics, computed from the same samples, show how well the
# linear model fits, and how certain the weights and their order are.

# %%
print(f"\n{explanation.diagnostics}")

# %% [markdown]
# ## Side by side

# %%
with pd.option_context("display.width", 120, "display.max_rows", None, "display.float_format", "{:+.3f}".format):
    print(f"\nExplained: {comparison.explained}")
    print(f"\nWord by method (integrated gradients and LIME: + speaks for {CLASS_NAMES[target]}, - against it)\n")
    print(comparison.scores)
    print("\nAgreement of the methods\n")
    print(comparison.agreement)

# %% [markdown]
# ## What the numbers mean, and what they do not mean

# %%
print(
    """
How to read this
* Raw attention and rollout are shares of attention: never negative, the same for every class. They show where the model
  attends, not whether a word speaks for or against the class. Function words and punctuation often get a large share.
* Integrated gradients and LIME have a sign and explain the logit of this class. Integrated gradients accumulate its
  gradient from a baseline without words to this text; LIME removes words at random and fits a linear model.
* Agreement is not quality. Two methods can agree and both be wrong; which one describes the model better is a question
  of faithfulness, which needs other metrics.
* All methods explain the model, which misclassifies about one unseen review in five; they do not explain the critic."""
)

# %% [markdown]
# ## A figure and a page

# %%
title = f"“{CLASS_NAMES[target]}”, with probability {probabilities[target]:.2f}: which words move its logit?"
plot.save(comparison.plot(title=title), OUTPUT / "quickstart.png", dpi=110, bbox_inches="tight")
comparison.save_html(
    OUTPUT / "quickstart.html",
    title="One film review, four explanations",
    prediction=f"{CLASS_NAMES[target]} ({probabilities[target]:.2f})",
)
print(f"\nWritten: {OUTPUT / 'quickstart.png'} and {OUTPUT / 'quickstart.html'} (open the page in a browser).")
