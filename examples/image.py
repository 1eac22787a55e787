"""Attention over the patches of an image: a vision transformer that detects faces, explained four ways."""

# %% [markdown]
# # An image
#
# A vision transformer splits an image into patches, turns each into a token, applies self-attention, and predicts from
# a class token. Attention therefore attributes to *patches*, which LIME and Captum can use as features as well.
#
# Here the right answer is known. Each image consists of four tiles, and the question is whether one of them is a face.
# The tiles are 100 faces and 100 other crops of photographs (Labelled Faces in the Wild, included in scikit-image). An
# explanation of "there is a face" should point at that tile.

# %%
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from captum.attr import IntegratedGradients
from skimage import data
from torch import Tensor, nn
from tqdm import tqdm
from transformers import ViTConfig, ViTForImageClassification

from captum_attn_lime import AttentionAttribution, ImageAdapter, LimeImage, compare, plot

OUTPUT = Path("output")
OUTPUT.mkdir(exist_ok=True)

CLASSES = ("no face", "a face")
TILE, PATCH = 24, 8  # pixels
MEAN, STD = 0.5, 0.25

# %% [markdown]
# ## The images
# A quarter of the tiles, with faces of other people, is held out for testing.

# %%
tiles = torch.tensor(data.lfw_subset()[:, :TILE, :TILE], dtype=torch.float32)  # faces first, values from 0 to 1
order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
train_tiles = (tiles[:100][order[:75]], tiles[100:][order[:75]])
test_tiles = (tiles[:100][order[75:]], tiles[100:][order[75:]])


def draw(n: int, faces: Tensor, others: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return images (n, H, W), whether each has a face, and the index of the tile that has or would have it."""

    def choose(most: int, *shape: int) -> Tensor:
        return torch.randint(most, (n, *shape), generator=generator)

    chosen = others[choose(len(others), 4)]  # (n, 4, TILE, TILE)
    label, place = choose(2), choose(4)
    rows = label.nonzero().flatten()
    chosen[rows, place[rows]] = faces[choose(len(faces))[rows]]
    chosen = torch.where(choose(2, 4, 1, 1) == 1, chosen.flip(-1), chosen)  # mirrored at random
    pictures = chosen.reshape(n, 2, 2, TILE, TILE).transpose(2, 3).reshape(n, 2 * TILE, 2 * TILE)
    return pictures, label, place


# %% [markdown]
# ## The model
# A small, untrained vision transformer from HuggingFace. Nine of its 36 patches form a tile.


# %%
def fit(*, steps: int = 300, seed: int = 0) -> ViTForImageClassification:
    """Return a fitted model; takes about 15 seconds on one CPU core."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=2 * TILE,
        patch_size=PATCH,
        num_channels=1,
        hidden_dropout_prob=0.1,
        label2id={name: k for k, name in enumerate(CLASSES)},
        id2label=dict(enumerate(CLASSES)),
    )
    model = ViTForImageClassification(config)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in tqdm(range(steps), desc="training", unit=" steps"):
        pictures, label, _ = draw(64, *train_tiles, generator)
        loss = nn.functional.cross_entropy(model((pictures[:, None] - MEAN) / STD).logits, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


model = fit()

# %% [markdown]
# An adapter turns images (here arrays; PIL images and files work as well) into tensors for Captum and into
# probabilities for LIME. With a HuggingFace processor or a timm model, it would read size, mean and standard deviation
# from there. It detects the patches from the model.

# %%
adapter = ImageAdapter(model, mean=(MEAN,), std=(STD,), size=2 * TILE)
pictures, labels, places = draw(400, *test_tiles, torch.Generator().manual_seed(1))
probabilities = adapter.predict_proba([picture.numpy() for picture in pictures])
accuracy = float((probabilities.argmax(axis=1) == labels.numpy()).mean())
print(f"\nAccuracy on {len(labels)} images of unseen tiles: {accuracy:.3f} (half of them have a face).")

# %% [markdown]
# ## One image
# The first image whose face is detected. As in lime, the baseline is each patch's mean colour: a removed patch has no
# contrast.

# %%
target = 1
chosen = int(np.flatnonzero((labels.numpy() == target) & (probabilities[:, target] > 0.9))[0])
x = adapter.encode(pictures[chosen].numpy())
print(f"One image: {CLASSES[target]}, with probability {probabilities[chosen, target]:.3f}.")

# %% [markdown]
# ## Four explanations
# Rollout traces attention from the class token back to the patches; relevance weights attention by its gradient for the
# class. LIME is the official `LimeImageExplainer`, with the patches as its segments, and explains the logit, since a
# probability near 1 hardly changes.

# %%
rollout = AttentionAttribution(adapter, method="rollout")
relevance = AttentionAttribution(adapter, method="relevance")
gradients = IntegratedGradients(adapter)
lime = LimeImage(adapter)

explanation = lime.explain(x, target, num_samples=2000, output="logits")
comparison = compare(
    {
        "rollout": rollout.attribute(**x.arguments(rollout)),
        "relevance": relevance.attribute(**x.arguments(relevance), target=target),
        "integrated gradients": gradients.attribute(**x.arguments(gradients), target=target, n_steps=200),
        "LIME": explanation,
    },
    x,
    target=target,
)

# %% [markdown]
# ## Who points at the face?
# Of the nine patches with the highest scores, how many belong to the face's tile? By chance it would be a quarter.


# %%
def tile_of(name: str) -> int:
    """Return the tile of a patch named "patch row,column"."""
    row, column = map(int, name.removeprefix("patch ").split(","))
    return row * PATCH // TILE * 2 + column * PATCH // TILE


inside = np.array([tile_of(name) == places[chosen] for name in comparison.scores.index])
hits = {name: int(inside[scores.argsort()[::-1][:9]].sum()) for name, scores in comparison.scores.items()}
print("\nHow many of each method's nine highest patches belong to the face (2 or 3 by chance):\n")
for name, count in hits.items():
    print(f"  {count}  {name}")
print("\nAgreement of the methods (agreement is not quality)\n")
print(comparison.agreement.to_string(float_format="{:+.2f}".format))
print(
    """
How to read this
* In this image the right tile is known. In most images nobody knows what the model should look at, and an explanation
  that looks right may be wrong about the model.
* Rollout is the same for every class: it shows what was read, also if a tile was read to rule it out.
* LIME's weights are estimates. The effect of a patch depends on which others are present, which a linear model cannot
  express: explanation.diagnostics says how well it fits. Other segments may fit better:
  adapter.encode(picture, features="slic").
* Integrated gradients go from flat patches to this image along a straight path. A model this confident changes its
  prediction within a short part of the path, and the attribution goes to what tips it there: often a single patch."""
)

# %%
title = f"{CLASSES[target]}: which patches?"
plot.save(comparison.plot(title=title, width=12), OUTPUT / "image.png", dpi=100, bbox_inches="tight")
print(f"\nWritten: {OUTPUT / 'image.png'}.")
