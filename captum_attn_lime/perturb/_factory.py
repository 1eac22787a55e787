"""Defines `perturbed`, which makes the value function of one example and its features, for every kind of input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from captum_attn_lime._explained import Explained, Unit
from captum_attn_lime._util.captum import TensorOrTuple, as_tuple
from captum_attn_lime.adapters import Adapter, Encoding, ImageAdapter, SequenceAdapter, TabularAdapter, TextAdapter
from captum_attn_lime.errors import InputError
from captum_attn_lime.perturb._model_outputs import AdapterScorer, BatchScorer, adapter_scores, target_scalars
from captum_attn_lime.perturb._patches import PerturbedPicture
from captum_attn_lime.perturb._perturbed import Perturbed
from captum_attn_lime.perturb._replacements import replacement_values
from captum_attn_lime.perturb._tensors import MaskedInputs, PerturbedTensors
from captum_attn_lime.perturb._text import perturbed_text

_BATCH = 64  # copies in one forward pass of a function that is no adapter


def perturbed(
    forward_func: Callable[..., Any],
    inputs: Encoding | TensorOrTuple,
    target: Any = None,
    *,
    removal: Any = "baseline",
    unit: Unit | None = None,
    baselines: Any = None,
    additional_forward_args: Any = None,
    feature_mask: TensorOrTuple | None = None,
    example: int = 0,
    batch_size: int | None = None,
    n_draws: int | None = None,
    seed: int | None = None,
    show_progress: bool = False,
) -> Perturbed:
    """Return the value function of one example: scores of its copies with features removed.

    ================= ==================================================================================================
    ``removal``       how the cells of a removed feature change
    ================= ==================================================================================================
    ``"baseline"``    any input: the encoding's baselines, or ``baselines``, replace them
    ``"delete"``      texts: its tokens are deleted, and later tokens move up
    ``"mask"``        texts: the adapter's baseline token, by default the mask token, replaces each token
    ``"pad"``         texts: the padding token replaces each token
    ``"attention"``   texts: the attention mask hides its tokens, as it hides padding
    ``"mean"``        rows and sequences: the mean of the training data, or the most frequent category; pictures: their
                      mean colour
    ``"marginal"``    rows and sequences: the values of ``n_draws`` examples drawn from the training data; the score is
                      the mean over them
    ``"segment"``     pictures: the mean colour of each segment
    ``"blur"``        pictures: the blurred picture
    ``"black"``       pictures: black; or a number, a colour or a picture, in the picture's range of values
    ================= ==================================================================================================

    Args:
        forward_func: An adapter, or any other function of tensors.
        inputs: An encoding from ``adapter.encode``, or tensors as in Captum, (B, ...).
        target: The output to explain: for an encoding a class index or name, (position, class), or None for the
            predicted class; for tensors an index of the output, in any of Captum's forms. Or an :class:`Explained`,
            whose index and unit are used.
        removal: How removed features change, as above.
        unit: The unit of an adapter's scores; by default that of its model's outputs.
        baselines: For tensors: the values of removed cells, as in Captum; 0 by default.
        additional_forward_args: For tensors: further arguments of the function.
        feature_mask: For tensors: feature ids from 0; by default each position along dimension 1 is a feature.
        example: Index of the example in the batch.
        batch_size: Number of copies in one forward pass; by default the adapter's, for texts what its ``batch_tokens``
            allows, and 64 for other functions.
        n_draws: With ``"marginal"``: number of examples drawn, 20 by default, at most all.
        seed: With ``"marginal"``: seed of the draws, 0 by default.
        show_progress: Show a progress bar over the distinct copies.

    Raises:
        InputError: An argument does not fit the inputs, or the model does not support this removal.
        TargetError: There is no such class.

    Example:
        >>> import torch
        >>> from captum_attn_lime import TabularAdapter
        >>> adapter = TabularAdapter(torch.nn.Linear(2, 1), feature_names=["age", "income"], task="regression")
        >>> game = perturbed(adapter, adapter.encode([30, 2.5]))
        >>> game.names, game.scores([[True, False], [False, False]]).shape
        (('age', 'income'), (2,))
    """
    _check_options(forward_func, removal, batch_size, n_draws, seed)
    options: dict[str, Any] = dict(batch_size=batch_size, show_progress=show_progress)
    if not isinstance(inputs, Encoding):
        _check_function(forward_func, removal, unit)
        tensors = as_tuple(inputs)
        _check_example(example, len(tensors[0]))
        masked = MaskedInputs.of(tensors, baselines, feature_mask)
        index = target.index if isinstance(target, Explained) else target
        scalar = target_scalars(forward_func, tensors, index, additional_forward_args)[example]
        explained = replace(target, value=scalar.value) if isinstance(target, Explained) else scalar.explained
        names = tuple(map(str, range(masked.n_features)))
        return perturbed_tensors(forward_func, names, explained, masked.example(example), scalar, **options)
    if not isinstance(forward_func, Adapter):
        raise InputError(
            f"inputs is an encoding, but {type(forward_func).__name__} is no adapter; pass the adapter, or the "
            "encoding's inputs, baselines, forward_args and feature_mask."
        )
    if baselines is not None or additional_forward_args is not None or feature_mask is not None:
        raise InputError(
            "an encoding already has baselines, additional_forward_args and feature_mask; leave these out."
        )
    _check_example(example, len(inputs))
    row = slice(example, example + 1)
    tensors, masks, bases = (
        tuple(t[row] for t in as_tuple(group)) for group in (inputs.inputs, inputs.feature_mask, inputs.baselines)
    )
    names, further = inputs.feature_names[example], tuple(t[row] for t in inputs.forward_args)
    scorer, explained = _scorer(forward_func, (*tensors, *further), target, unit)
    if isinstance(forward_func, TextAdapter):
        how = bases[0] if _is_baseline(removal) else removal
        return perturbed_text(scorer, (*tensors, *further), masks[0], names, explained, removal=how, **options)
    if not _is_baseline(removal):
        draws = (20 if n_draws is None else n_draws, 0 if seed is None else seed)
        bases = replacement_values(forward_func, inputs, example, removal, *draws)
    return perturbed_tensors(forward_func, names, explained, MaskedInputs(tensors, bases, masks), scorer, **options)


def _check_options(
    forward_func: Any, removal: Any, batch_size: int | None, n_draws: int | None, seed: int | None
) -> None:
    """Raise for invalid options and for options that would be ignored."""
    if not callable(forward_func):
        raise InputError(f"forward_func must be an adapter or a function, but is {type(forward_func).__name__}.")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f"batch_size must be a positive number of copies, but is {batch_size!r}.")
    is_marginal = isinstance(removal, str) and removal == "marginal"
    if not is_marginal and (n_draws is not None or seed is not None):
        raise InputError(f"n_draws and seed require removal='marginal', but removal is {removal!r}; leave them out.")


def _check_function(forward_func: Any, removal: Any, unit: Any) -> None:
    """Raise where tensors are combined with options that only encodings support."""
    if isinstance(forward_func, Adapter):
        raise InputError(
            f"inputs are tensors, but {type(forward_func).__name__} needs an encoding; pass one from its encode, or "
            "pass adapter.forward, whose output is explained like that of any function."
        )
    if not _is_baseline(removal) or unit is not None:
        raise InputError(
            "tensors are explained in their function's own unit, with removal='baseline' and baselines=; for other "
            "units and removals pass an adapter and an encoding from its encode."
        )


def _check_example(example: int, n: int) -> None:
    if not 0 <= example < n:
        raise InputError(f"there is no example {example!r} in a batch of {n}; pass an index from 0 to {n - 1}.")


def _is_baseline(removal: Any) -> bool:
    return isinstance(removal, str) and removal == "baseline"


def _scorer(
    adapter: Adapter, tensors: tuple[Tensor, ...], target: Any, unit: Unit | None
) -> tuple[AdapterScorer, Explained]:
    """Return the scorer of copies of an example, and the explained number.

    Args:
        adapter: The adapter.
        tensors: The example's inputs and further arguments, each (1, ...).
        target: The class, or the explained number.
        unit: The unit; by default the explained number's, or that of the model's outputs.
    """
    given = target if isinstance(target, Explained) else None
    if given is not None:
        if unit not in (None, given.unit):
            raise InputError(f"unit={unit!r} contradicts the target, the {given.label}; leave unit out.")
        target, unit = given.index, given.unit
    scorer, scores = adapter_scores(adapter, tensors, unit)
    is_next_token = isinstance(adapter, TextAdapter) and adapter.task == "next_token"
    explained = adapter.choose(scores[0], target, scorer.unit, scorer.kind, scorer.columns)
    if given is not None:
        explained = replace(given, value=explained.value)
    if is_next_token:
        scorer = replace(scorer, token=explained.column)
    elif isinstance(explained.index, tuple):
        scorer = replace(scorer, position=explained.index)
    return scorer, explained


def perturbed_tensors(
    forward_func: Callable[..., Any],
    names: tuple[str, ...],
    explained: Explained,
    example: MaskedInputs,
    score_batch: BatchScorer,
    *,
    batch_size: int | None = None,
    show_progress: bool = False,
) -> PerturbedTensors:
    """Return one example as tensors whose features are replaced in place.

    Args:
        forward_func: The adapter or function; models of pictures embed each patch once.
        names: The features' names.
        explained: The explained number.
        example: The example.
        score_batch: Scores a batch of copies.
        batch_size: Number of copies in one forward pass.
        show_progress: Show a progress bar over the distinct copies.
    """
    options: dict[str, Any] = dict(example=example, score_batch=score_batch, show_progress=show_progress)
    if isinstance(forward_func, ImageAdapter):
        options.update(batch_size=batch_size or forward_func.batch_size, input_kind="picture", model=forward_func.model)
        return PerturbedPicture(names, explained, **options)
    if isinstance(forward_func, (TabularAdapter, SequenceAdapter)):
        options.update(batch_size=batch_size or forward_func.batch_size, input_kind=forward_func.example)
        return PerturbedTensors(names, explained, **options)
    return PerturbedTensors(names, explained, batch_size=batch_size or _BATCH, **options)
