"""The public errors and warnings: each says what came, what is needed and what to do."""

from __future__ import annotations


class ExplanationError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(ExplanationError, ValueError):
    """An input (text, row, tensor, option) that cannot be explained as it is."""


class TextError(InputError):
    """A text that is empty, blank, or has no word to attribute to."""


class TokenizerError(InputError):
    """A tokenizer that does not match the model."""


class ForwardError(ExplanationError, TypeError):
    """A forward function that did not return one tensor with the batch in dimension 0."""


class TargetError(ExplanationError, ValueError, IndexError, AssertionError):
    """A target that the output does not have.

    It is a ``ValueError``, an ``IndexError`` and an ``AssertionError`` because Captum's own methods raise one or
    another of these for the same mistake, and callers catch them.
    """


class SelectionError(ExplanationError, ValueError, IndexError):
    """A layer, head or query that the model does not have."""


class NoAttentionError(ExplanationError, RuntimeError):
    """A forward pass in which no attention was seen."""


class UnreadableAttentionError(ExplanationError, RuntimeError):
    """Attention that was recognised but whose weights cannot be read with certainty."""


class AttentionKindError(ExplanationError, ValueError):
    """A method applied to attention maps it is not defined for, such as a product of cross-attention maps."""


class ReadoutError(ExplanationError, RuntimeError):
    """A model whose output does not tell which tokens it reads; pass ``query=``."""


class TokenMapError(ExplanationError, ValueError):
    """Attended tokens that cannot be placed on the input's cells with certainty; pass ``token_map=``."""


class CompilerError(ExplanationError, RuntimeError):
    """An optional kernel that cannot be compiled or loaded on this machine; everything works without it, slower."""


class FileError(ExplanationError, OSError):
    """A file that cannot be written or read; a file that was there before stays as it was."""


class LawError(ExplanationError, AssertionError):
    """A law that `captum_attn_lime.testing.check_attribution` found broken."""


class TruncationWarning(UserWarning):
    """A text was longer than the model takes; the rest was not seen and is not explained."""


class PaddingWarning(UserWarning):
    """A model whose answer to a text depends on padding or on its batch: texts then run without, which is slower."""


class TrainingModeWarning(UserWarning):
    """A model is explained in training mode, where it computes something else than when it is used."""


class DropoutWarning(TrainingModeWarning):
    """A model is explained while its dropout is active: each run gives other scores."""


class OutputsWarning(UserWarning):
    """What a model puts out, logits or probabilities, had to be guessed from its values."""


class LimeWarning(UserWarning):
    """A LIME explanation that does not say what it seems to say: empty, badly fitted or unsteady."""
