"""What is built on torch.nn's own attention."""

from __future__ import annotations

from torch import Tensor, nn

from tests.families.base import HEADS, IDS, LAYERS, MASK, Family, allowed_keys, to_numpy
from tests.reference.attention import softmax_rows, split_heads


class EncoderClassifier(nn.Module):
    """nn.TransformerEncoder over ids, reading the first token."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, HEADS, 48, batch_first=True)
        self.embed = nn.Embedding(70, 32)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(32, 3)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        padding = None if mask is None else mask == 0
        return self.head(self.encoder(self.embed(ids), src_key_padding_mask=padding)[:, 0])


def torch_encoder() -> Family:
    model = EncoderClassifier().eval()
    names = [f"encoder.layers.{i}.self_attn" for i in range(LAYERS)]

    def oracle(seen):
        out = []
        for name in names:
            x, attention = to_numpy(seen[name][0][0]), model.get_submodule(name)
            weight, bias = to_numpy(attention.in_proj_weight), to_numpy(attention.in_proj_bias)
            query, key = (x @ weight[a : a + 32].T + bias[a : a + 32] for a in (0, 32))
            allowed = allowed_keys(MASK, 7, causal=False)
            out.append(softmax_rows(split_heads(query, HEADS), split_heads(key, HEADS), allowed))
        return out

    return Family("torch_encoder", model, model, IDS, (MASK,), [0, 0], oracle, names)
