"""A click model on tables: columns interact with heads in front, and once the rows of the batch see each other."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class InteractingLayer(nn.Module):
    """A Layer used in AutoInt that models the correlations between different feature fields by multi-head attention.

    Input shape
        - A 3D tensor with shape: ``(batch_size, field_size, embedding_size)``.
    Output shape
        - 3D tensor with shape: ``(batch_size, field_size, embedding_size)``.
    """

    def __init__(
        self,
        embedding_size: int,
        head_num: int = 2,
        use_res: bool = True,
        scaling: bool = False,
        seed: int = 1024,
    ) -> None:
        super().__init__()
        if head_num <= 0:
            raise ValueError("head_num must be a int > 0")
        if embedding_size % head_num != 0:
            raise ValueError("embedding_size is not an integer multiple of head_num!")
        self.att_embedding_size = embedding_size // head_num
        self.head_num = head_num
        self.use_res = use_res
        self.scaling = scaling
        self.seed = seed

        self.W_Query = nn.Parameter(torch.Tensor(embedding_size, embedding_size))
        self.W_key = nn.Parameter(torch.Tensor(embedding_size, embedding_size))
        self.W_Value = nn.Parameter(torch.Tensor(embedding_size, embedding_size))
        if self.use_res:
            self.W_Res = nn.Parameter(torch.Tensor(embedding_size, embedding_size))
        for tensor in self.parameters():
            nn.init.normal_(tensor, mean=0.0, std=0.4)

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs.shape) != 3:
            raise ValueError(f"Unexpected inputs dimensions {len(inputs.shape)}, expect to be 3 dimensions")

        # None F D
        querys = torch.tensordot(inputs, self.W_Query, dims=([-1], [0]))
        keys = torch.tensordot(inputs, self.W_key, dims=([-1], [0]))
        values = torch.tensordot(inputs, self.W_Value, dims=([-1], [0]))

        # head_num None F D/head_num
        querys = torch.stack(torch.split(querys, self.att_embedding_size, dim=2))
        keys = torch.stack(torch.split(keys, self.att_embedding_size, dim=2))
        values = torch.stack(torch.split(values, self.att_embedding_size, dim=2))

        inner_product = torch.matmul(querys, keys.transpose(-2, -1))  # head_num None F F
        if self.scaling:
            inner_product /= self.att_embedding_size**0.5
        normalized_att_scores = F.softmax(inner_product, dim=-1)  # head_num None F F
        result = torch.matmul(normalized_att_scores, values)  # head_num None F D/head_num

        result = torch.cat(torch.split(result, 1), dim=-1)
        result = torch.squeeze(result, dim=0)  # None F D
        if self.use_res:
            result += torch.tensordot(inputs, self.W_Res, dims=([-1], [0]))
        return F.relu(result)


class RowAttention(nn.Module):
    """The batch is the sequence: every row, with all its columns in one long vector, looks at the other rows."""

    def __init__(self, dim: int, heads: int = 3, dim_head: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.scale = dim_head**-0.5
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, heads * dim_head * 3, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        rows = x.reshape(1, b, n * d)
        qkv = self.to_qkv(self.norm(rows)).reshape(1, b, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # 1 h b d
        sim = (q @ k.transpose(-2, -1)) * self.scale
        out = sim.softmax(dim=-1) @ v
        rows = rows + self.to_out(out.transpose(1, 2).reshape(1, b, -1))
        return rows.reshape(b, n, d)


class AutoIntRows(nn.Module):
    def __init__(
        self,
        vocabulary_sizes: tuple[int, ...] = (7, 4, 11, 3),
        dense_size: int = 2,
        embedding_dim: int = 8,
        att_layer_num: int = 3,
        att_head_num: int = 2,
        row_layer: int = 1,
        num_classes: int = 3,
    ) -> None:
        super().__init__()
        self.embedding_dict = nn.ModuleDict(
            {f"C{i + 1}": nn.Embedding(size, embedding_dim) for i, size in enumerate(vocabulary_sizes)}
        )
        self.dense_embedding = nn.Parameter(torch.randn(dense_size, embedding_dim))
        self.dense_bias = nn.Parameter(torch.randn(dense_size, embedding_dim))
        field_num = len(vocabulary_sizes) + dense_size
        self.int_layers = nn.ModuleList([InteractingLayer(embedding_dim, att_head_num) for _ in range(att_layer_num)])
        self.row_layer = row_layer
        self.rows = RowAttention(field_num * embedding_dim)
        self.dnn_linear = nn.Linear(field_num * embedding_dim, num_classes, bias=False)

    def forward(self, sparse: Tensor, dense: Tensor) -> Tensor:
        embedding_list = [emb(sparse[:, i : i + 1]) for i, emb in enumerate(self.embedding_dict.values())]
        att_input = torch.cat([*embedding_list, dense.unsqueeze(-1) * self.dense_embedding + self.dense_bias], dim=1)

        for i, layer in enumerate(self.int_layers):
            att_input = layer(att_input)
            if i == self.row_layer:
                att_input = self.rows(att_input)

        att_output = torch.flatten(att_input, start_dim=1)
        return self.dnn_linear(att_output)


def example() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(43)
    model = AutoIntRows()
    model.rows.to_qkv.weight.data.mul_(2.5)
    sparse = torch.stack([torch.randint(0, n, (5,)) for n in (7, 4, 11, 3)], dim=1)
    return model.eval(), (sparse, torch.randn(5, 2))


def reference(model: nn.Module, sparse: Tensor, dense: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and weights in float64, one table row and one head at a time."""
    w = {k: v.detach().double() for k, v in model.state_dict().items()}
    fields = [w[f"embedding_dict.C{i + 1}.weight"][sparse[:, i]] for i in range(sparse.shape[1])]
    fields += [
        torch.outer(dense[:, i].double(), w["dense_embedding"][i]) + w["dense_bias"][i] for i in range(dense.shape[1])
    ]
    x = torch.stack(fields, 1)
    b, n, d = x.shape
    found = []
    for i, layer in enumerate(model.int_layers):
        heads, name = layer.head_num, f"int_layers.{i}."
        part = d // heads
        a = torch.zeros(b, heads, n, n, dtype=torch.float64)
        y = torch.zeros_like(x)
        for r in range(b):
            for h in range(heads):
                cut = slice(h * part, (h + 1) * part)
                q, k, v = (x[r] @ w[name + t][:, cut] for t in ("W_Query", "W_key", "W_Value"))
                a[r, h] = (q @ k.T).softmax(-1)
                y[r, :, cut] = a[r, h] @ v
        x = (y + x @ w[name + "W_Res"]).relu()
        found.append(a)
        if i != model.row_layer:
            continue
        rows = x.reshape(b, n * d)
        y = F.layer_norm(rows, (n * d,), w["rows.norm.weight"], w["rows.norm.bias"])
        heads = model.rows.heads
        q, k, v = (t.chunk(heads, -1) for t in (y @ w["rows.to_qkv.weight"].T).chunk(3, -1))
        a = torch.stack([(q[h] @ k[h].T / q[h].shape[-1] ** 0.5).softmax(-1) for h in range(heads)])
        found.append(a[None])
        out = torch.cat([a[h] @ v[h] for h in range(heads)], -1)
        x = (rows + out @ w["rows.to_out.weight"].T + w["rows.to_out.bias"]).reshape(b, n, d)
    return x.reshape(b, -1) @ w["dnn_linear.weight"].T, found


def attention(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Columns (B, 2, N, N) twice, rows of the batch (1, 3, B, B), columns (B, 2, N, N) once more."""
    return reference(model, *inputs)[1]
