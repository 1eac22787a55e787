"""A model's task, looked up in transformers' tables."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor, nn

from captum_attn_lime.adapters._wrappers import innermost
from captum_attn_lime.errors import ForwardError, InputError

Task = Literal["classification", "tokens", "spans", "next_token"]

# The tables of transformers' AutoModel classes, the most specific first. A masked language model classifies each token
# over the vocabulary. Its table also lists some encoder-decoders, which generate text and have none of these tasks.
_TABLES: tuple[tuple[str, Task], ...] = (
    ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", "classification"),
    ("MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES", "classification"),
    ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES", "tokens"),
    ("MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES", "spans"),
    ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "next_token"),
    ("MODEL_FOR_MASKED_LM_MAPPING_NAMES", "tokens"),
)
_WRITES_TEXT = "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"
# Classes of remote code are in no table, but follow the same naming.
_ENDINGS: tuple[tuple[str, Task], ...] = (
    ("ForTokenClassification", "tokens"),
    ("ForQuestionAnswering", "spans"),
    ("ForCausalLM", "next_token"),
    ("LMHeadModel", "next_token"),
    ("ForMaskedLM", "tokens"),
)


def find_task(model: nn.Module) -> Task:
    """Return the task of a model: by its class for a HuggingFace model, ``"classification"`` for any other.

    Raises:
        InputError: It is an encoder-decoder that generates text.

    Example:
        >>> find_task(nn.Linear(2, 2))
        'classification'
    """
    model = innermost(model)
    classes = type(model).__mro__
    if not any(c.__module__.startswith("transformers.") for c in classes):
        return "classification"
    from transformers.models.auto import modeling_auto

    for name in (c.__name__ for c in classes):
        if name in _names(modeling_auto, _WRITES_TEXT):
            raise InputError(
                f"{type(model).__name__} generates text with a decoder; TextAdapter needs a model that predicts from "
                "the text alone. For generated text use GenerationAttribution, or name the task with task=."
            )
        for table, task in _TABLES:
            if name in _names(modeling_auto, table):
                return task
    for ending, task in _ENDINGS:
        if type(model).__name__.endswith(ending):
            return task
    return "classification"


def check_task(task: Any) -> Task:
    """Return a valid task.

    Raises:
        InputError: There is no such task.
    """
    if task not in get_args(Task):
        raise InputError(f"task must be one of {', '.join(map(repr, get_args(Task)))}, or None, but is {task!r}.")
    found: Task = task
    return found


def unpacked(output: Any, name: str) -> Any:
    """Return the output, with the scores of a sentence-transformers cross-encoder as logits.

    Raises:
        ForwardError: It holds an embedding of the text and no number to explain.
    """
    if not isinstance(output, dict) or "logits" in output:
        return output
    if isinstance(output.get("scores"), Tensor):
        return output["scores"]
    if "sentence_embedding" in output:
        raise ForwardError(
            f"{name} returns an embedding of the text, 'sentence_embedding', and no number to explain; wrap it in a "
            "module whose forward returns one, (n, 1): a head over the embedding, or its similarity to another."
        )
    return output


def _names(module: Any, table: str) -> set[str]:
    """Return the class names of one table; an entry is a name or several."""
    names: set[str] = set()
    for entry in getattr(module, table, {}).values():
        names.update([entry] if isinstance(entry, str) else entry)
    return names
