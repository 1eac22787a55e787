"""Write docs/models.md: the table of tested model families, with the differences measured for each.

Run with ``make models``. The rows come from tests/families; all entries except the names are detected by the package.
"""

from __future__ import annotations

import os
import sys
import warnings
from itertools import groupby
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import tests.conftest  # noqa: E402, F401  makes torchvision importable where its compiled part does not fit
from captum_attn_lime import AttentionAttribution, capture, describe  # noqa: E402
from captum_attn_lime.errors import AttentionKindError, ReadoutError, TokenMapError  # noqa: E402
from tests.families import FAMILIES, build  # noqa: E402

GROUPS = {
    "text encoder": "Text encoders",
    "text decoder": "Text decoders",
    "encoder-decoder": "Encoder-decoders",
    "vision": "Vision",
    "audio": "Audio",
    "torch": "torch.nn",
    "table": "Tables",
    "hand-written": "Written by hand",
}

HEAD = """# Which models

The package supports any model whose attention uses `scaled_dot_product_attention`, `nn.MultiheadAttention`,
`flex_attention` or a softmax (also one written out with exponentials) whose result weights values. The tests check the
families below as tiny models with random, sharpened weights. This page is generated from the same table
(`make models`); all entries except the names are detected automatically.

* **calls**: the captured attention calls by kind.
* **reads**: the tokens that the prediction depends on, which are explained by default (`query="auto"`).
* **no input**: the number of tokens without a counterpart in the input (CLS, distillation, registers).
* **rollout**: whether the layers form one stack that can be multiplied; if not, rollout over all layers raises.
* **float64**: largest difference between the captured weights and the softmax recomputed in float64, for a float64
  model.
* **float32**: largest difference between the captured weights of the model as loaded (with fused attention if it has
  any) and the weights that its library reports in eager mode, or the recomputed softmax if it reports none.

Where a library rounds the softmax to float32, the float64 column is about 1e-8.

To check your own model:

```python
from captum_attn_lime.testing import check_model

check_model(model, inputs)  # prints what was found, and whether it is right
```

A model whose attention cannot be captured raises an error. Pass its weights with
`register_attention(module, weights)`.
"""


def main() -> None:
    """Write the page."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for make in FAMILIES:
        rows.append(_row(make))
        print(rows[-1][1], flush=True)
    parts = [HEAD]
    order = list(GROUPS)
    rows.sort(key=lambda row: order.index(row[0]))
    for group, members in groupby(rows, key=lambda row: row[0]):
        parts.append(f"## {GROUPS[group]}\n")
        parts.append("| model | calls | causal | reads | no input | rollout | float64 | float32 |")
        parts.append("|---|---|---|---|---|---|---|---|")
        parts += ["| " + " | ".join(row[1:]) + " |" for row in members]
        parts.append("")
    (ROOT / "docs" / "models.md").write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


def _row(make) -> tuple[str, ...]:
    exact, family = build(make, torch.float64), build(make)
    in_double = _difference(exact, exact.recompute())
    reported = None if family.output_attentions is None else [np.asarray(w) for w in family.output_attentions()]
    in_single = _difference(family, family.recompute() if reported is None else reported)
    found = describe(family.forward, family.inputs, family.args)
    kinds = [layer.kind for layer in found.layers]
    calls = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    causal = {layer.causal for layer in found.layers}
    prefix = (
        str(len([t for t in found.prefix if t < found.layers[-1].shape[2]]))
        if found.token_map
        else "needs `token_map=`"
    )
    return (
        family.group,
        family.title or family.name,
        calls,
        "some" if len(causal) > 1 else "yes" if True in causal else "no",
        _reads(found),
        prefix,
        _rollout(family, found),
        *(f"{x:.0e}" if x else "0" for x in (in_double, in_single)),
    )


def _reads(found) -> str:
    if found.query is None:
        return "needs `query=`"
    read = [row.nonzero().flatten().tolist() for row in found.query]
    if all(len(r) == 1 for r in read):
        places = sorted({r[0] for r in read})
        return f"token {places[0]}" if len(places) == 1 else "one token per text: " + ", ".join(str(r[0]) for r in read)
    even = all(float(row[r].max() / row[r].min()) < 1.001 for row, r in zip(found.query, read, strict=True))
    return "mean of tokens" if even else "attention pooling"


def _rollout(family, found) -> str:
    options = {} if found.query is not None else {"query": 0}
    if found.token_map is None:
        options["token_map"] = family.token_of_cell
    try:
        AttentionAttribution(family.forward).attribute(family.inputs, additional_forward_args=family.args, **options)
    except (AttentionKindError, ReadoutError, TokenMapError):
        return "within one stack, with `layers=`"
    return "yes"


def _difference(family, expected) -> float:
    with torch.no_grad(), capture(family.model) as maps:
        family.run()
    worst = 0.0
    for attention, weights in zip(maps, expected, strict=True):
        difference = np.abs(attention.dense().double().numpy() - weights)
        if family.mask is not None and weights.shape[2] == family.mask.shape[1]:
            difference = difference * family.mask.bool().numpy()[:, None, :, None]
        worst = max(worst, float(difference.max()))
    return worst


if __name__ == "__main__":
    main()
