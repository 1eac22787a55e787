"""`UnitOverride`: the unit in which an adapter answers within a block of a thread."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from torch import nn

from captum_attn_lime._explained import Unit
from captum_attn_lime.adapters._outputs import Kind

# The unit of a model's unchanged outputs, which Captum's methods explain.
NATIVE_UNIT: dict[Kind, Unit] = {"logits": "logit", "probabilities": "probability", "predictions": "prediction"}


@dataclass
class UnitOverride:
    """How an adapter answers within a block: one column per class, in one unit.

    Attributes:
        adapter: The adapter.
        unit: The unit of its answers.
        kind: What its model returns.
        is_plain: Whether the answers are the model's unchanged outputs.
        is_used: Whether the adapter has answered.
    """

    adapter: nn.Module
    unit: Unit
    kind: Kind
    is_plain: bool
    is_used: bool = False

    @property
    def is_linear(self) -> bool:
        """Whether the answers are the model's outputs or their negative."""
        return NATIVE_UNIT[self.kind] == self.unit


active_override: ContextVar[UnitOverride | None] = ContextVar("captum_attn_lime_unit_override", default=None)
