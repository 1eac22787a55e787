"""Models of numbers: a net over the last axis, its mean over others, and a stack of layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Sequential):
    """Two classes from a row of numbers."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, 2))


class Mean(nn.Module):
    """Two classes: the mean of a net over the steps of a series (B, T, C) or the pixels of a picture (B, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = Net(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.movedim(1, -1)).mean((1, 2)) if x.dim() == 4 else self.inner(x).mean(1)


class Stack(nn.Module):
    """Layers over states (B, N, width) in residual blocks, and two classes from the mean token or the first."""

    def __init__(self, *layers: nn.Module, width: int, reads: str = "mean") -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(layers), nn.Linear(width, 2)
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(F.layer_norm(x, x.shape[-1:]))
        return self.head(x.mean(1) if self.reads == "mean" else x[:, 0])
