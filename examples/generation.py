"""Attention behind generated text: a tiny language model that reverses a list of words, and where it attends."""

# %% [markdown]
# # Where does a language model look while it writes?
#
# A tiny GPT-2 learns one task: read six words and write them backwards. Each generated word depends on a single word of
# the prompt, so we know what the attention should be: the first generated word comes from the last word of the prompt,
# the second from the last but one, and so on.

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
    """Return n texts as ids: six words, "backwards", and the six words in reverse order."""
    words = torch.randint(2, len(tokenizer), (n, LENGTH))
    return torch.cat([words, torch.ones(n, 1, dtype=torch.int64), words.flip(1)], dim=1)


# %% [markdown]
# ## 2. A few seconds of training
# Only the words after "backwards" can be predicted, so the loss covers only these.

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
# ## 3. Generate, and explain
#
# `GenerationAttribution` wraps an `AttentionAttribution` of the language model and its tokenizer, like Captum's
# `LLMAttribution`. The model generates as usual; then one forward pass over the whole text is captured.

# %%
explain = GenerationAttribution(AttentionAttribution(model, method="raw"), tokenizer)
result = explain.attribute("fox owl cat elk hen yak backwards", gen_args={"max_new_tokens": LENGTH, "do_sample": False})
print(f"\nprompt: {' '.join(result.input_tokens)}\nwritten: {' '.join(result.output_tokens)}\n")

for word, row in zip(result.output_tokens, result.token_attr, strict=True):
    top = int(row.argmax())
    print(f"{word:>5} attended to {result.input_tokens[top]!r} with {float(row[top]):.0%} of its attention")
hits = sum(
    result.input_tokens[int(row.argmax())] == word
    for word, row in zip(result.output_tokens, result.token_attr, strict=True)
)
print(f"\n{hits} of {LENGTH} words got the most attention when they were generated.")

# %% [markdown]
# The result is Captum's `LLMAttributionResult`, so its plots work. The figure shows a diagonal from the upper right to
# the lower left: backwards, as expected.

# %%
figure, ax = result.plot_token_attr()
plot.save(figure, OUTPUT / "generation.png", dpi=110, bbox_inches="tight")
plt.close(figure)

# %% [markdown]
# A generated word may also attend to earlier generated words. Captum's result has no columns for those, so the rows of
# `token_attr` sum to less than one. `output_attr` holds the rest, and `full_attr` both.

# %%
print("share of attention on the prompt:  ", [f"{x:.2f}" for x in result.token_attr.sum(dim=1).tolist()])
print("share on earlier generated words:   ", [f"{x:.2f}" for x in result.output_attr.sum(dim=1).tolist()])

# %% [markdown]
# To explain a text that the model has *not* generated, pass it as `target`. Attention shows where the model attends
# while it reads that text, not how likely the text is.

# %%
given = explain.attribute("fox owl cat elk hen yak backwards", target="yak hen elk")
same = torch.allclose(given.token_attr, result.token_attr[:3], atol=1e-6)
print(f"\nThe first three words, given as a target, have the same rows as when they were generated: {same}.")
print(f"Written: {OUTPUT / 'generation.png'}.")
