"""Attention over the patches of a picture: a vision transformer that looks for faces, explained four ways."""

# %% [markdown]
# # A picture
#
# A vision transformer cuts a picture into patches, turns each into a token, lets the tokens attend to one another, and
# reads the answer from a class token. So attention has something to say about *patches*: a unit that LIME and Captum
# can be asked about as well.
#
# Here the right answer is known. Each picture is made of four tiles, and the question is whether one of them is a face.
# Tiles are 100 faces and 100 other cut-outs from photographs (Labelled Faces in the Wild, which scikit-image
# carries). An explanation of "there is a face" should point at that tile.

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
# ## The pictures
# A quarter of the tiles, faces of other people among them, is kept for testing.

# %%
tiles = torch.tensor(data.lfw_subset()[:, :TILE, :TILE], dtype=torch.float32)  # faces first, values from 0 to 1
order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
train_tiles = (tiles[:100][order[:75]], tiles[100:][order[:75]])
test_tiles = (tiles[:100][order[75:]], tiles[100:][order[75:]])


def draw(n: int, faces: Tensor, others: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures (n, H, W), whether there is a face in each, and in which tile it is or would be."""

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
# A vision transformer of HuggingFace, small and untrained. Nine of its 36 patches make a tile.


# %%
def fit(*, steps: int = 300, seed: int = 0) -> ViTForImageClassification:
    """Return a fitted model; some 15 seconds on one CPU core."""
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
# An adapter turns pictures (here arrays; PIL images and files work as well) into tensors for Captum and into
# probabilities for LIME. Size, mean and standard deviation it would take from a HuggingFace processor or a timm model
# itself; the patches it reads off the model.

# %%
adapter = ImageAdapter(model, mean=(MEAN,), std=(STD,), size=2 * TILE)
pictures, labels, places = draw(400, *test_tiles, torch.Generator().manual_seed(1))
probabilities = adapter.predict_proba([picture.numpy() for picture in pictures])
accuracy = float((probabilities.argmax(axis=1) == labels.numpy()).mean())
print(f"\nAccuracy on {len(labels)} pictures of unseen tiles: {accuracy:.3f} (half of them have a face).")

# %% [markdown]
# ## One picture
# The first one with a face that is found. What stands for "nothing there" is each patch's mean colour, as in
# lime, so that a patch without contrast is no patch.

# %%
target = 1
chosen = int(np.flatnonzero((labels.numpy() == target) & (probabilities[:, target] > 0.9))[0])
x = adapter.encode(pictures[chosen].numpy())
print(f"One picture: {CLASSES[target]}, with probability {probabilities[chosen, target]:.3f}.")

# %% [markdown]
# ## Four explanations
# Rollout follows attention from the class token down to the patches; relevance weighs attention by its gradient for the
# class. LIME is the official `LimeImageExplainer`, with the patches as its segments, and explains the logit, since a
# probability near 1 hardly moves.

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
# Of the nine patches with the highest scores, how many are of the face's tile? By chance a quarter of them would be.


# %%
def tile_of(name: str) -> int:
    """Return the tile of a patch that is called "patch row,column"."""
    row, column = map(int, name.removeprefix("patch ").split(","))
    return row * PATCH // TILE * 2 + column * PATCH // TILE


inside = np.array([tile_of(name) == places[chosen] for name in comparison.scores.index])
hits = {name: int(inside[scores.argsort()[::-1][:9]].sum()) for name, scores in comparison.scores.items()}
print("\nOf each method's nine highest patches, so many are of the face (2 or 3 by chance):\n")
for name, count in hits.items():
    print(f"  {count}  {name}")
print("\nHow far the methods agree (agreement is not quality)\n")
print(comparison.agreement.to_string(float_format="{:+.2f}".format))
print(
    """
How to read this
* That the right tile is known is the point of this picture: in most pictures nobody knows what the model should look
  at, and an explanation that looks right may be wrong about the model.
* Rollout is the same for every class: it says what was read, also where a tile was read to rule it out.
* LIME's weights are estimates. What a patch does depends on which others are there, and a linear model misses
  that: explanation.diagnostics says how well it fits. Other segments may fit better:
  adapter.encode(picture, features="slic").
* Integrated gradients go from flat patches to this picture, all at once. A model that is so sure changes its mind
  within a short piece of that way, and the credit goes to what tips it there: often a single patch."""
)

# %%
title = f"{CLASSES[target]}: which patches?"
plot.save(comparison.plot(title=title, width=12), OUTPUT / "image.png", dpi=100, bbox_inches="tight")
print(f"\nWritten: {OUTPUT / 'image.png'}.")
