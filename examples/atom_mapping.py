# %% [markdown]
# # Attention that can be checked: which atom went where
#
# RXNMapper is an ALBERT that was trained on chemical reactions written as text (SMILES), with no atom marked. Schwaller
# et al. (Science Advances 2021) found that one of its attention heads nevertheless follows each atom of the product
# back to the reactants. That makes it a rare thing: attention with a known right answer.
#
# The reaction is Fischer's esterification: acetic acid and ethanol give ethyl acetate and water. Textbooks know where
# each atom goes: the ester keeps the alcohol's oxygen, and the water leaves with the acid's.
#
# Run as ``python examples/atom_mapping.py``; it takes a few seconds.

# %%
from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from captum_attn_lime import capture

REACTION = "CC(=O)O.CCO>>CC(=O)OCC.O"
TOKEN = re.compile(r"\[[^\]]+\]|Br|Cl|[A-Za-z]|>>|%\d\d|.")
# The layer and head that the paper found (counted from 0).
LAYER, HEAD = 10, 5
# Which atom of the reactants each atom of the products comes from, by the accepted mechanism, both counted from 0.
RIGHT = [0, 1, 2, 6, 5, 4, 3]

# %% [markdown]
# The package `rxnmapper` carries the trained model; its folder is all that is needed.


# %%
def load():
    """Return the model and its vocabulary."""
    from transformers import AlbertModel, logging

    logging.set_verbosity_error()  # it would list the head for masked tokens, which is not needed
    spec = importlib.util.find_spec("rxnmapper")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("this example needs the trained model: pip install --no-deps rxnmapper")
    folder = next(Path(spec.submodule_search_locations[0]).glob("models/transformers/albert_*"))
    vocabulary = {token: i for i, token in enumerate((folder / "vocab.txt").read_text().split("\n"))}
    return AlbertModel.from_pretrained(folder, add_pooling_layer=False).eval(), vocabulary


# %% [markdown]
# One forward pass under a capture, and the rows of one head. The model runs its own fused attention; only the rows that
# are asked for are ever computed.


# %%
def atom_mapping(reaction: str) -> tuple[list[str], list[int], list[int], torch.Tensor]:
    """Return the tokens, the places of the reactants' and the products' atoms, and the attention between them."""
    model, vocabulary = load()
    tokens = ["[CLS]", *TOKEN.findall(reaction), "[SEP]"]
    ids = torch.tensor([[vocabulary[token] for token in tokens]])
    with torch.no_grad(), capture(model) as maps:
        model(ids)
    arrow = tokens.index(">>")
    atoms = [i for i, token in enumerate(tokens) if token[0].isalpha()]
    reactants, products = [i for i in atoms if i < arrow], [i for i in atoms if i > arrow]
    rows = maps[LAYER].rows(products, heads=HEAD)[0, 0]  # (atoms of the products, tokens)
    return tokens, reactants, products, rows[:, reactants]


def mapped(tokens: list[str], reactants: list[int], products: list[int], attention: torch.Tensor) -> list[int]:
    """Return for each product atom the reactant atom of the same element that it attends to most."""
    same = torch.tensor([[tokens[i] == tokens[j] for j in reactants] for i in products])
    return attention.masked_fill(~same, -1.0).argmax(dim=1).tolist()


# %% [markdown]
# The picture: reactants above, products below. A line's strength is the attention.


# %%
def draw(
    tokens: list[str], reactants: list[int], products: list[int], attention: torch.Tensor, *, ax: Axes | None = None
) -> Axes:
    """Draw the reaction on two lines, with the attention from the products' atoms to the reactants'."""
    ax = ax or plt.subplots(figsize=(8.5, 3.4), layout="constrained")[1]
    arrow = tokens.index(">>")
    above, below = list(range(1, arrow)), list(range(arrow + 1, len(tokens) - 1))
    place = {i: (k - len(above) / 2, 1.0) for k, i in enumerate(above)}
    place |= {i: (k - len(below) / 2, 0.0) for k, i in enumerate(below)}
    best = mapped(tokens, reactants, products, attention)
    for row, i in enumerate(products):
        for column, j in enumerate(reactants):
            (x0, y0), (x1, y1) = place[i], place[j]
            chosen = best[row] == column
            strength = float(attention[row, column])
            ax.plot(
                [x0, x1],
                [y0 + 0.12, y1 - 0.12],
                color="#1f6f8b" if chosen else "#9a9a9a",
                alpha=min(1.0, 0.45 + strength) if chosen else min(1.0, 0.1 + strength),
                linewidth=1 + 3 * strength,
                zorder=1,
            )
    for i, (x, y) in place.items():
        is_atom = tokens[i][0].isalpha()
        ax.text(
            x, y, tokens[i], ha="center", va="center", family="monospace", fontsize=15 if is_atom else 12,
            color="#111111" if is_atom else "#888888",
        )  # fmt: skip
    left = -max(len(above), len(below)) / 2 - 0.6
    ax.text(left, 1.0, "reactants", ha="right", va="center")
    ax.text(left, 0.0, "products", ha="right", va="center")
    ax.set_xlim(left - 2.2, -left)
    ax.set_ylim(-0.3, 1.3)
    ax.set_axis_off()
    ax.set_title(f"Attention of layer {LAYER}, head {HEAD}: where each atom came from")
    return ax


# %%
def main() -> None:
    """Print the mapping and save the picture."""
    tokens, reactants, products, attention = atom_mapping(REACTION)
    found = mapped(tokens, reactants, products, attention)
    names = [f"{tokens[i]}{k}" for k, i in enumerate(reactants)]
    for row, i in enumerate(products):
        share = float(attention[row, found[row]])
        print(f"product {tokens[i]}{row} comes from reactant {names[found[row]]} (attention {share:.2f})")
    right = sum(a == b for a, b in zip(found, RIGHT, strict=True))
    print(f"{right} of {len(RIGHT)} atoms as the mechanism has it")
    draw(tokens, reactants, products, attention)
    picture = Path("output") / "atom_mapping.png"
    picture.parent.mkdir(exist_ok=True)
    plt.savefig(picture, dpi=150)
    print(f"picture: {picture}")


if __name__ == "__main__":
    main()
