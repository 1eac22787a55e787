"""`Answering`: how an adapter answers within a block of a thread, and the unit of each kind of outputs."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from torch import nn

from captum_attn_lime._explained import Unit
from captum_attn_lime.adapters._outputs import Kind


@dataclass
class Answering:
    """How an adapter answers within a block: one column for each class, in one unit.

    Attributes:
        adapter: The adapter.
        unit: The unit of its answers.
        kind: What its model puts out.
        is_plain: Whether the answers are the model's outputs as they are.
        is_used: Whether the adapter has answered.
    """

    adapter: nn.Module
    unit: Unit
    kind: Kind
    is_plain: bool
    is_used: bool = False

    @property
    def is_linear(self) -> bool:
        """Whether the answers are the model's outputs, or their negative."""
        return OWN_UNIT[self.kind] == self.unit


# What Captum's methods explain of an adapter.
OWN_UNIT: dict[Kind, Unit] = {"logits": "logit", "probabilities": "probability", "predictions": "prediction"}
current: ContextVar[Answering | None] = ContextVar("captum_attn_lime_answering", default=None)
