"""The public errors and warnings. Each message says what came, what is needed and what to do."""

from __future__ import annotations


class ExplanationError(Exception):
    """Base class of all errors that this package raises deliberately."""


class InputError(ExplanationError, ValueError):
    """An invalid input (text, row, tensor, option)."""


class TextError(InputError):
    """A text that is empty, blank, or contains no words."""


class TokenizerError(InputError):
    """A tokenizer that does not match the model."""


class ForwardError(ExplanationError, TypeError):
    """A forward function that did not return a single tensor with the batch in dimension 0."""


class TargetError(ExplanationError, ValueError, IndexError, AssertionError):
    """A target that does not exist in the output.

    It derives from ``ValueError``, ``IndexError`` and ``AssertionError``, since Captum's methods raise any of these for
    the same mistake and callers catch them.
    """


class SelectionError(ExplanationError, ValueError, IndexError):
    """A layer, head or query that does not exist in the model."""


class NoAttentionError(ExplanationError, RuntimeError):
    """A forward pass in which no attention was detected."""


class UnreadableAttentionError(ExplanationError, RuntimeError):
    """Attention that was detected, but whose weights cannot be recovered with certainty."""


class AttentionKindError(ExplanationError, ValueError):
    """A method that is not defined for these attention maps, such as rollout over cross-attention."""


class ReadoutError(ExplanationError, RuntimeError):
    """A model for which the tokens that the prediction depends on are ambiguous; pass ``query=``."""


class TokenMapError(ExplanationError, ValueError):
    """Tokens that cannot be mapped to the input's elements with certainty; pass ``token_map=``."""


class CompilerError(ExplanationError, RuntimeError):
    """An optional kernel that cannot be compiled or loaded; everything works without it, only slower."""


class FileError(ExplanationError, OSError):
    """A file that cannot be written or read; an existing file is left unchanged."""


class LawError(ExplanationError, AssertionError):
    """A law that an attribution violates, found by `captum_attn_lime.testing.check_attribution`."""


class TruncationWarning(UserWarning):
    """A text exceeds the model's maximum length; the rest is truncated and not explained."""


class PaddingWarning(UserWarning):
    """A model's output depends on padding or on the rest of the batch; texts run without padding, which is slower."""


class TrainingModeWarning(UserWarning):
    """A model is explained in training mode, where its outputs differ from those at inference."""


class DropoutWarning(TrainingModeWarning):
    """A model is explained while dropout is active: each run gives different scores."""


class OutputsWarning(UserWarning):
    """Whether a model returns logits or probabilities had to be guessed from its outputs."""


class LimeWarning(UserWarning):
    """A LIME explanation is unreliable: empty, poorly fitted or unstable."""
