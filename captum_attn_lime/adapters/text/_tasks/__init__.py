"""Tasks of text models: one row of classes, one per token, the ends of a span, or the next token."""

from captum_attn_lime.adapters.text._tasks.find import Task
from captum_attn_lime.adapters.text._tasks.head import Head

__all__ = ["Head", "Task"]
