"""Attention behind generated text: a tiny language model that writes a list of words backwards, and where it looks."""

# %% [markdown]
# # Where does a language model look while it writes?
#
# A tiny GPT-2 learns one task: read six words and write them backwards. For each word that it writes there is only one
# word of the prompt worth looking at, so we know beforehand what its attention should be: the first word written comes
# from the last word read, the second from the last but one, and so on.

# %%
from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from captum_attn_lime import AttentionAttribution, GenerationAttribution, WordTokenizer, plot

OUTPUT = Path("output")
OUTPUT.mkdir(exist_ok=True)
torch.manual_seed(0)

# %% [markdown]
# ## 1. Task and model

# %%
WORDS = ["ant", "bat", "cat", "cow", "doe", "eel", "elk", "fox", "gnu", "hen", "owl", "pig", "ram", "rat", "yak"]
LENGTH = 6
tokenizer = WordTokenizer({word: i for i, word in enumerate(["<pad>", "backwards", *WORDS])})
config = GPT2Config(
    vocab_size=len(tokenizer), n_positions=2 * LENGTH + 1, n_embd=64, n_layer=1, n_head=2, bos_token_id=None,
    eos_token_id=None, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
)  # fmt: skip
model = GPT2LMHeadModel(config)


def examples(n: int) -> torch.Tensor:
    """Return n texts as ids: six words, "backwards", and the six words from the last to the first."""
    words = torch.randint(2, len(tokenizer), (n, LENGTH))
    return torch.cat([words, torch.ones(n, 1, dtype=torch.int64), words.flip(1)], dim=1)


# %% [markdown]
# ## 2. A few seconds of training
# Only what comes after "backwards" can be known, so only that is learned.

# %%
STEPS = 600
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=STEPS)
for _ in tqdm(range(STEPS), desc="training"):
    ids = examples(64)
    logits = model(input_ids=ids[:, :-1]).logits[:, LENGTH:]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, LENGTH + 1 :].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
model.eval().requires_grad_(False)

unseen = examples(200)
written = model.generate(
    unseen[:, : LENGTH + 1], attention_mask=torch.ones(200, LENGTH + 1), max_new_tokens=LENGTH, do_sample=False
)
accuracy = float((written == unseen).all(dim=1).float().mean())
print(f"\n{accuracy:.1%} of 200 unseen lists are written backwards without a mistake.")

# %% [markdown]
# ## 3. Let it write, and ask where it looked
#
# `GenerationAttribution` takes an `AttentionAttribution` over the language model, and the tokenizer, as Captum's own
# `LLMAttribution` does. The model generates as always; then one pass over the whole text is captured.

# %%
explain = GenerationAttribution(AttentionAttribution(model, method="raw"), tokenizer)
result = explain.attribute("fox owl cat elk hen yak backwards", gen_args={"max_new_tokens": LENGTH, "do_sample": False})
print(f"\nprompt: {' '.join(result.input_tokens)}\nwritten: {' '.join(result.output_tokens)}\n")

for word, row in zip(result.output_tokens, result.token_attr, strict=True):
    top = int(row.argmax())
    print(f"{word:>5} looked at {result.input_tokens[top]!r} with {float(row[top]):.0%} of its attention")
hits = sum(
    result.input_tokens[int(row.argmax())] == word
    for word, row in zip(result.output_tokens, result.token_attr, strict=True)
)
print(f"\n{hits} of {LENGTH} words were looked at most when they were written.")

# %% [markdown]
# The result is Captum's `LLMAttributionResult`, so its plots work. The picture is a diagonal from the upper right to
# the lower left: backwards, as it should be.

# %%
figure, ax = result.plot_token_attr()
plot.save(figure, OUTPUT / "generation.png", dpi=110, bbox_inches="tight")
plt.close(figure)

# %% [markdown]
# A generated word may also look at the words generated before it. Captum's form has no columns for those, so the rows
# of `token_attr` sum to less than one. `output_attr` has the rest, and `full_attr` both.

# %%
print("share of attention on the prompt:  ", [f"{x:.2f}" for x in result.token_attr.sum(dim=1).tolist()])
print("share on what was written before it:", [f"{x:.2f}" for x in result.output_attr.sum(dim=1).tolist()])

# %% [markdown]
# What a text draws on that the model has *not* written can be asked as well: pass it as `target`. Attention says where
# the model looks while it reads that text; it says nothing of how likely the text is.

# %%
given = explain.attribute("fox owl cat elk hen yak backwards", target="yak hen elk")
same = torch.allclose(given.token_attr, result.token_attr[:3], atol=1e-6)
print(f"\nThe first three words given as a target have the rows that they had when generated: {same}.")
print(f"Written: {OUTPUT / 'generation.png'}.")
