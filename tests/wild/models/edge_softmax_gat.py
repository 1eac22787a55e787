"""A graph classifier on a flat edge list: edge softmax by scatter, and a gated readout whose weights never exist."""

import torch
from torch import Tensor, nn

N_HEADS = 3
WIDTH = 5


class BondNet(nn.Module):
    """Node features (B, N, F) and typed edges (B, E, 3) as (source, target, type), padded with -1, to class logits.

    All graphs of a batch are glued into one big graph of B * N nodes; nothing below the first lines knows of a batch.
    Edges may be given twice, in which case they count twice.
    """

    def __init__(self, n_feat: int, n_types: int, n_classes: int, slope: float = 0.2) -> None:
        super().__init__()
        self.slope = slope
        hd = N_HEADS * WIDTH
        shapes = {
            "0.lift": (n_feat, hd),
            "0.src": (N_HEADS, WIDTH),
            "0.dst": (N_HEADS, WIDTH),
            "0.type": (n_types + 1, N_HEADS),
            "1.from": (hd, hd),
            "1.to": (hd, hd),
            "1.type": (n_types + 1, hd),
            "1.a": (N_HEADS, WIDTH),
            "gate": (WIDTH, 1),
            "read": (WIDTH, n_classes),
        }
        # a ParameterDict refuses dots in names
        self.w = nn.ParameterDict({k.replace(".", "_"): nn.Parameter(torch.randn(s) * 0.6) for k, s in shapes.items()})
        self.w["gate"].data.mul_(4)

    @staticmethod
    def glue(x: Tensor, edges: Tensor, loop_type: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        b, n = x.shape[:2]
        shift = torch.arange(b).mul_(n)[:, None].expand(-1, edges.shape[1])
        keep = edges[..., 0] >= 0
        src, dst, kind = (edges[..., 0] + shift)[keep], (edges[..., 1] + shift)[keep], edges[..., 2][keep]
        me = torch.arange(b * n)
        kind = torch.cat((kind, torch.full_like(me, loop_type)))
        return x.reshape(b * n, -1), torch.cat((src, me)), torch.cat((dst, me)), kind

    @staticmethod
    def edge_softmax(score: Tensor, dst: Tensor, n: int) -> Tensor:
        where = dst[:, None].expand_as(score)
        top = score.new_full((n, score.shape[1]), -torch.inf).scatter_reduce_(0, where, score.detach(), "amax")
        e = (score - top[dst]).exp_()
        total = torch.zeros_like(top).index_add_(0, dst, e)
        return e.div(total.index_select(0, dst))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        w, b = self.w, len(x)
        h, src, dst, kind = self.glue(x, edges, len(w["0_type"]) - 1)
        n = len(h)

        # first layer: the score is a sum of a source part, a target part and a part for the kind of edge
        z = (h @ w["0_lift"]).unflatten(-1, (N_HEADS, WIDTH))
        left, right = (z * w["0_src"]).sum(-1), (z * w["0_dst"]).sum(-1)
        score = torch.where((s := left[src] + right[dst] + w["0_type"][kind]) > 0, s, self.slope * s)
        alpha = self.edge_softmax(score, dst, n)
        h = torch.zeros_like(z).index_add_(0, dst, z[src] * alpha.unsqueeze(-1))
        h = nn.functional.elu_(h.flatten(-2))

        # second layer: the nonlinearity comes before the dot product, and the heads are averaged
        there, here = h @ w["1_from"], h @ w["1_to"]
        mix = nn.functional.leaky_relu(there[src] + here[dst] + w["1_type"][kind], self.slope)
        score = torch.einsum("ehd,hd->eh", mix.view(-1, N_HEADS, WIDTH), w["1_a"])
        alpha = self.edge_softmax(score, dst, n)
        msg = there.view(n, N_HEADS, WIDTH)[src].mul(alpha[..., None]).mean(dim=-2)
        h = torch.zeros(n, WIDTH, dtype=msg.dtype).index_add(0, dst, msg).tanh()

        # readout: numerator and denominator are collected per graph and divided at the end
        graph = torch.arange(b).repeat_interleave(n // b)
        g = (h @ w["gate"]).exp()
        both = torch.zeros(b, WIDTH + 1, dtype=h.dtype).index_add_(0, graph, torch.cat((h * g, g), 1))
        return both[:, :-1] / both[:, -1:] @ w["read"]


def example() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(11)
    model = BondNet(n_feat=6, n_types=3, n_classes=4).eval()
    x = torch.randn(2, 7, 6)
    edges = torch.cat((torch.randint(0, 7, (2, 14, 2)), torch.randint(0, 3, (2, 14, 1))), dim=-1)
    edges[0, 5] = edges[0, 4]  # a double edge
    edges[1, -4:] = -1
    return model, (x, edges)


def reference(model: nn.Module, x: Tensor, edges: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and weights in float64, one graph and one node after another, on dense (N, N) tables."""
    w = {k: v.detach().double() for k, v in model.w.items()}
    b, n = x.shape[:2]
    loop = len(w["0_type"]) - 1
    maps = [torch.zeros(b, N_HEADS, n, n, dtype=torch.float64) for _ in range(2)]
    pool = torch.zeros(b, 1, 1, n, dtype=torch.float64)
    logits = []
    for i in range(b):
        triples = [t for t in edges[i].tolist() if t[0] >= 0] + [[k, k, loop] for k in range(n)]
        h = x[i].double()
        for layer in range(2):
            if layer == 0:
                k = v = h @ w["0_lift"]
                q, kinds = k, w["0_type"]
            else:
                k = v = h @ w["1_from"]
                q, kinds = h @ w["1_to"], w["1_type"]
            for head in range(N_HEADS):
                cut = slice(head * WIDTH, (head + 1) * WIDTH)
                for node in range(n):
                    come = [(s, t) for s, d, t in triples if d == node]
                    scores = []
                    for s, t in come:
                        if layer == 0:
                            e = k[s, cut] @ w["0_src"][head] + q[node, cut] @ w["0_dst"][head] + kinds[t, head]
                            scores.append(nn.functional.leaky_relu(e, model.slope))
                        else:
                            e = nn.functional.leaky_relu(k[s, cut] + q[node, cut] + kinds[t, cut], model.slope)
                            scores.append(e @ w["1_a"][head])
                    for (s, _), p in zip(come, torch.stack(scores).softmax(0), strict=True):
                        maps[layer][i, head, node, s] += p
            out = [maps[layer][i, head] @ v[:, head * WIDTH : (head + 1) * WIDTH] for head in range(N_HEADS)]
            h = nn.functional.elu(torch.cat(out, -1)) if layer == 0 else (sum(out) / N_HEADS).tanh()
        pool[i, 0, 0] = (h @ w["gate"]).flatten().softmax(0)
        logits.append(pool[i, 0, 0] @ h @ w["read"])
    return torch.stack(logits), [*maps, pool]


def attention(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Two node-to-node maps (B, 3, N, N), query = target node, a double edge summed; then the readout (B, 1, 1, N)."""
    return reference(model, *inputs)[1]
