"""A document of 16,384 tokens, explained by attention rollout without a single N x N matrix."""

# %% [markdown]
# # Attention without the N x N matrix
#
# Attention rollout multiplies the attention matrices of all layers. For 16,384 tokens, six layers and twelve heads
# these matrices alone are 77 GB in single precision, which is why attention is rarely explained beyond a few thousand
# tokens. But rollout of *one* prediction needs no matrix, only a vector that is propagated from layer to layer, so that
# the memory grows linearly with the tokens.
#
# Here a small real model reads several hundred film reviews as one long text, and rollout shows how much attention each
# review gets. It takes about a minute on two cores:
#
#     python examples/long_document.py
#     python examples/long_document.py --tokens 4096     # seconds
#     python examples/long_document.py --native          # with the optional compiled kernel
#     python examples/long_document.py --offload /tmp    # stores queries and keys in files

# %%
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from film_reviews import load_encoder, load_reviews
from matplotlib.axes import Axes
from torch import Tensor, nn

from captum_attn_lime import AttentionAttribution, plot
from captum_attn_lime.attention import native
from captum_attn_lime.errors import CompilerError, InputError

OUTPUT = Path("output")
OUTPUT.mkdir(exist_ok=True)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tokens", type=int, default=16384, help="length of the document")
parser.add_argument("--positions", choices=("review", "tiled"), default="review", help="see 'Positions' in the text")
parser.add_argument("--native", action="store_true", help="use the optional compiled kernel")
parser.add_argument("--offload", metavar="FOLDER", help="keep queries and keys in files, or 'cpu'")
options, _ = parser.parse_known_args()
if options.tokens < 100:
    parser.error(f"--tokens must be at least 100 for a document of a few reviews; got {options.tokens}.")


def peak_memory() -> float:
    """Return the peak memory of this process so far, in bytes (Linux and macOS)."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) if sys.platform == "darwin" else 1024.0 * peak


def in_words(n_bytes: float) -> str:
    """Return a number of bytes as a person says it.

    Example:
        >>> in_words(77_309_411_328), in_words(530e6)
        ('77 GB', '530 MB')
    """
    if n_bytes >= 9.95e9:
        return f"{n_bytes / 1e9:.0f} GB"
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


# %% [markdown]
# ## The document
# The reviews film by film, in the order of the data, truncated to the requested number of tokens.


# %%
def make_document(table: pd.DataFrame, tokenizer: Any, n_tokens: int) -> tuple[Tensor, pd.DataFrame]:
    """Return token ids (1, n_tokens) with [CLS] and [SEP], and a table of the reviews with their spans.

    The table has the columns ``text``, ``film``, ``start`` and ``stop``, the last two in tokens.
    """
    ids, spans = [tokenizer.cls_token_id], []
    for text in table["text"]:
        room = n_tokens - 1 - len(ids)  # leaves one for [SEP]
        if room <= 0:
            break
        review = tokenizer(text, add_special_tokens=False)["input_ids"][:room]
        spans.append((len(ids), len(ids) + len(review)))
        ids.extend(review)
    if len(ids) < n_tokens - 1:
        raise SystemExit(f"all reviews together have {len(ids) + 1:,} tokens; lower --tokens, which is {n_tokens}.")
    reviews = table.head(len(spans))[["text", "film"]].assign(
        start=[start for start, _ in spans], stop=[stop for _, stop in spans]
    )
    return torch.tensor([[*ids, tokenizer.sep_token_id]]), reviews


encoder, tokenizer = load_encoder(6)
ids, reviews = make_document(load_reviews(), tokenizer, options.tokens)
print(f"{len(reviews):,} reviews of {reviews['film'].nunique()} films: {ids.shape[1]:,} tokens in one text.")

# %% [markdown]
# ## Positions
# MiniLM has 512 positions. To read more, each review starts again at position 1, and only [CLS] has position 0. The
# model was not trained on such texts: **the following shows the cost of an explanation, not the quality of this model
# on long documents.**
#
# `--positions tiled` repeats the positions 0 to 511 instead. Rollout reveals the effect: tokens that happen to be at
# position 0, where the model was trained on [CLS] only, get far more attention than all others.


# %%
def positions_of(reviews: pd.DataFrame, n_tokens: int, kind: str, n_known: int = 512) -> Tensor:
    """Return the position of each token, (1, n_tokens)."""
    counted = torch.arange(n_tokens)
    if kind == "review":
        for start in [*reviews["start"], n_tokens - 1]:
            counted[start:] = torch.arange(1, n_tokens - start + 1)
    return counted[None] % n_known


positions = positions_of(reviews, ids.shape[1], options.positions)

# %% [markdown]
# ## The model
# MiniLM as it is meant to be used: the mean of its last layer's token vectors represents the text. It also measures its
# run time, to separate the cost of the model from that of the explanation.


# %%
class Reader(nn.Module):
    """MiniLM and the mean over its tokens, with a record of the time and memory of each run."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.runs: list[dict[str, float]] = []

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Return text vectors (B, D) for ids and positions (B, N)."""
        start, start_cpu = time.perf_counter(), time.process_time()
        kinds = torch.zeros_like(input_ids)
        states = self.encoder(input_ids=input_ids, position_ids=position_ids, token_type_ids=kinds).last_hidden_state
        self.runs.append(
            {
                "tokens": input_ids.shape[1],
                "seconds": time.perf_counter() - start,
                "cpu_seconds": time.process_time() - start_cpu,
                "peak": peak_memory(),
            }
        )
        return states.mean(dim=1)


model = Reader(encoder).eval()

# %% [markdown]
# ## The explanation
# One call, as for a sentence. With `offload=`, the layers' queries and keys, which are all that is kept, go to files.

# %%
if options.native:
    try:
        native.enable()
    except CompilerError as error:
        print(f"Without the compiled kernel: {error}")

rollout = AttentionAttribution(model, method="rollout", offload=options.offload)
before = peak_memory()
start, start_cpu = time.perf_counter(), time.process_time()
scores = rollout.attribute(ids, additional_forward_args=(positions,))[0]  # (N,)
seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
after = peak_memory()

whole = [run for run in model.runs if run["tokens"] == ids.shape[1]]
in_model = {what: sum(run[what] for run in whole) for what in ("seconds", "cpu_seconds")}
config = encoder.config
matrices = 4 * config.num_hidden_layers * config.num_attention_heads * ids.shape[1] ** 2
print(
    f"\nIt took {seconds:.1f} s, {in_model['seconds']:.1f} s of it in the model, which ran {len(whole)} "
    f"time{'s' * (len(whole) != 1)} over the whole text. In CPU seconds: {cpu_seconds:.0f} and "
    f"{in_model['cpu_seconds']:.0f} (torch threads: {torch.get_num_threads()}).\n"
    f"The peak memory of the process was {in_words(after)}, and {in_words(before)} before the model ran.\n"
    f"The weights of {config.num_hidden_layers} layers x {config.num_attention_heads} heads x {ids.shape[1]:,} x "
    f"{ids.shape[1]:,} would be {in_words(matrices)}."
)

# %% [markdown]
# The vector that is propagated through the layers starts as the weights of the tokens that the prediction depends on:
# here all tokens equally, as the model averages them. All scores sum to 1.
#
# For each review: how much attention its tokens get on average, where 1 is the document's average. The first words of a
# review get more than the rest, which favours short reviews. So this shows where attention goes, not which review
# matters.

# %%
by_token = scores.double().numpy() * len(scores)
reviews["attention"] = [by_token[a:b].mean() for a, b in zip(reviews["start"], reviews["stop"], strict=True)]
reviews["share"] = [float(scores[a:b].double().sum()) for a, b in zip(reviews["start"], reviews["stop"], strict=True)]
special = float(scores[0] + scores[-1])
# The last review was cut at the end of the document.
most = reviews.iloc[:-1].nlargest(5, "attention")
least = reviews.iloc[:-1].nsmallest(2, "attention")
print(f"\nAll scores sum to {float(scores.double().sum()):.6f}; [CLS] and [SEP] have {special:.2%} of it.\n")
for title, rows in (("Most attention per token", most), ("Least", least)):
    print(f"{title} (1 is the document's average)")
    for row in rows.itertuples():
        print(f"  {row.attention:.2f}  {row.film.replace('_', ' ')}: {row.text[:80]}")
first = torch.cat([scores[a : min(a + 3, b)] for a, b in zip(reviews["start"], reviews["stop"], strict=True)])
in_first = float(first.double().mean() * len(scores))
print(f"The first three tokens of a review get {in_first:.2f} on average.")
top = torch.topk(scores[1:-1], 10).indices + 1
print(f"The ten tokens with the most: {' '.join(tokenizer.convert_ids_to_tokens(ids[0, top]))}")

# %% [markdown]
# ## What is impossible
# `attribution.matrix(...)` returns the scores of every token for every token. That *is* N x N, so it raises beforehand
# and states the memory it would need. One layer is enough to see that.

# %%
one_layer = AttentionAttribution(Reader(load_encoder(1)[0]).eval())
try:
    matrix = one_layer.matrix(ids, additional_forward_args=(positions,))
    refusal = ""
    print(f"\nThe whole matrix is small enough here: {tuple(matrix.shape)}.")
except InputError as error:
    refusal = str(error)
    print(f"\nRefused: {refusal}")

# %% [markdown]
# ## The figure


# %%
BLUES, MARK, QUIET = ("#6b9bc7", "#a9c6e0"), "#c8501e", "#b8b8b8"


def draw_document(ax: Axes, reviews: pd.DataFrame, most: pd.DataFrame) -> None:
    """Draw a bar per review, as wide as the review is long, films in two alternating shades."""
    shade = (reviews["film"] != reviews["film"].shift()).cumsum() % 2
    colors = [MARK if i in most.index else BLUES[s] for i, s in shade.items()]
    width = reviews["stop"] - reviews["start"]
    ax.bar(reviews["start"], reviews["attention"], width, align="edge", color=colors, linewidth=0)
    # The marked bars are few and narrow; a line makes them visible at any length of the document.
    for number, row in enumerate(most.itertuples(), start=1):
        middle = (row.start + row.stop) / 2
        ax.vlines(middle, 0, row.attention, color=MARK, linewidth=1.5)
        ax.annotate(str(number), (middle, row.attention), (0, 2), textcoords="offset points", ha="center", color=MARK)
    ax.axhline(1, color="0.35", linewidth=0.8, linestyle=":")
    ax.set_xlim(0, reviews["stop"].iloc[-1])
    ax.set_ylim(0, 1.15 * reviews["attention"].max())
    ax.set_xlabel("token")
    ax.set_ylabel("attention per token\n(average = 1)")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    films = reviews["film"].nunique()
    ax.set_title(f"Rollout by review: {len(reviews):,} reviews, {films} films in alternating shades", loc="left")


def draw_reviews(ax: Axes, most: pd.DataFrame, limit: int = 52) -> None:
    """Draw the most marked reviews, numbered as in the document, with the start of their texts."""
    for y, row in enumerate(most.itertuples()):
        text = row.text if len(row.text) <= limit else row.text[:limit].rsplit(" ", 1)[0] + " …"
        ax.text(0, y, f"{y + 1}", color=MARK, weight="bold", va="center")
        ax.text(0.05, y - 0.17, f"“{text}”", va="center", parse_math=False)
        ax.text(0.05, y + 0.22, f"{row.film.replace('_', ' ')}, {row.attention:.2f}", va="center", color="0.4", size=9)
    ax.set_ylim(len(most) - 0.5, -0.5)
    ax.set_axis_off()
    ax.set_title("Most attention per token", loc="left")


def draw_bars(ax: Axes, bars: dict[str, tuple[float, str, str]], title: str, unit: str, *, log: bool) -> None:
    """Draw horizontal bars from top to bottom: label -> (value, its text, colour)."""
    for y, (value, text, color) in enumerate(bars.values()):
        ax.barh(y, value, color=color, height=0.62)
        ax.annotate(text, (value, y), (4, 0), textcoords="offset points", va="center")
    if log:
        ax.set_xscale("log")
    ax.set_yticks(range(len(bars)), list(bars))
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    largest = max(value for value, _, _ in bars.values())
    # Room for the text beside the longest bar.
    ax.set_xlim(left=0.1 if log else 0, right=largest * (15 if log else 1.3))
    ax.set_xlabel(unit)
    ax.set_title(title, loc="left")


memory = {
    "before the model": (before / 1e9, in_words(before), QUIET),
    "model has run": (whole[-1]["peak"] / 1e9, in_words(whole[-1]["peak"]), BLUES[0]),
    "explained": (after / 1e9, in_words(after), MARK),
    "the weights alone": (matrices / 1e9, f"{in_words(matrices)}, not made", "none"),
}
# Processor time, which other programs on the machine disturb less than wall-clock time.
added = cpu_seconds - in_model["cpu_seconds"]
clock = {
    "model": (in_model["cpu_seconds"], f"{in_model['cpu_seconds']:.0f} s", BLUES[0]),
    "explanation": (added, f"{added:.0f} s", MARK),
}

with plt.rc_context({"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False}):
    figure, axes = plt.subplot_mosaic(
        [["document", "document"], ["reviews", "memory"], ["reviews", "time"]],
        figsize=(11, 7.2),
        height_ratios=[2.2, 1.7, 1],
        width_ratios=[1.15, 1],
        layout="constrained",
    )
    draw_document(axes["document"], reviews, most)
    draw_reviews(axes["reviews"], most)
    draw_bars(axes["memory"], memory, "Memory of the process at its peak", "GB (log scale)", log=True)
    for patch in axes["memory"].patches[-1:]:
        patch.set(edgecolor="0.4", hatch="///", linewidth=1)
    draw_bars(axes["time"], clock, "Processor time", "CPU seconds", log=False)
    figure.suptitle(f"A document of {ids.shape[1]:,} tokens, explained without the N × N matrix", weight="bold")
    plot.save(figure, OUTPUT / "long_document.png", dpi=110)
    plt.close(figure)

# %% [markdown]
# ## What the numbers mean, and what they do not mean

# %%
print(
    f"""
How to read this
* Rollout is a share of attention: it has no sign, and is the same for any task that the text vector is used for. It
  shows where the model attends, not what it concludes.
* Only the queries, the keys and one number per row and head are kept of each layer. The weights are recomputed in small
  tiles and discarded.
* The model runs its fused attention, and its time grows with the square of the tokens. So does that of the explanation;
  only the memory does not.

Written: {OUTPUT / "long_document.png"}."""
)
