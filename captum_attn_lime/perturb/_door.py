"""`perturbed`: the one door from an example and its features to a value function, for every kind of input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from captum_attn_lime._explained import Explained, Unit
from captum_attn_lime._util.captum import TensorOrTuple, as_tuple
from captum_attn_lime.adapters import Adapter, Encoding, ImageAdapter, SequenceAdapter, TabularAdapter, TextAdapter
from captum_attn_lime.errors import InputError
from captum_attn_lime.perturb._asking import Answers, Ask, first_answers, target_scalars
from captum_attn_lime.perturb._patches import PerturbedPicture
from captum_attn_lime.perturb._perturbed import Perturbed
from captum_attn_lime.perturb._stand_ins import stand_ins
from captum_attn_lime.perturb._tensors import PerturbedTensors, Removable
from captum_attn_lime.perturb._text import perturbed_text

_BATCH = 64  # copies of tensors at once, where no adapter says how many


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
    """Return one example whose features can be taken out.

    ================= ==================================================================================================
    ``removal``       what becomes of the cells of a removed feature
    ================= ==================================================================================================
    ``"baseline"``    any input: the encoding's baselines, or ``baselines``, stand in their place
    ``"delete"``      texts: its tokens are left out, and what follows moves up
    ``"mask"``        texts: the adapter's baseline token, by default the mask token, stands in each one's place
    ``"pad"``         texts: the padding token stands in each one's place
    ``"attention"``   texts: they stay, and the attention mask hides them, as it hides padding
    ``"mean"``        rows and sequences: the training data's mean, of categories the most frequent one; pictures: their
                      mean colour
    ``"marginal"``    rows and sequences: the values of ``n_draws`` examples drawn from the training data; the score is
                      the mean over them
    ``"segment"``     pictures: the mean colour of each segment
    ``"blur"``        pictures: the blurred picture
    ``"black"``       pictures: black; or a number, a colour or a picture, in the picture's own values
    ================= ==================================================================================================

    Args:
        forward_func: An adapter, or any other function of tensors.
        inputs: What ``adapter.encode`` gave, or tensors as Captum's methods take them, (B, ...).
        target: What is explained: for an encoding the class, by its index or name, (position, class), or None for the
            class that is predicted; for tensors an index of the output, in any of Captum's forms. Or an
            :class:`Explained`, of which the index and the unit count.
        removal: What becomes of removed features, as above.
        unit: The unit of an adapter's answers; by default that of its model's own outputs.
        baselines: For tensors: what stands for removed cells, as in Captum; 0 by default.
        additional_forward_args: For tensors: further arguments of the function.
        feature_mask: For tensors: feature ids from 0; by default each position along dimension 1 is a feature.
        example: Which example of several is asked about.
        batch_size: Number of copies in one forward pass; by default the adapter's, of texts what its ``batch_tokens``
            allow, and 64 for other functions.
        n_draws: With ``"marginal"``: number of examples drawn, 20 by default, or all where there are fewer.
        seed: With ``"marginal"``: seed of the draws, 0 by default.
        show_progress: Show a bar over the distinct copies.

    Raises:
        InputError: Something does not fit the inputs, or the model does not allow this removal.
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
    own: dict[str, Any] = dict(batch_size=batch_size, show_progress=show_progress)
    if not isinstance(inputs, Encoding):
        _check_function(forward_func, removal, unit)
        tensors = as_tuple(inputs)
        _check_example(example, len(tensors[0]))
        copies = Removable.of(tensors, baselines, feature_mask)
        wanted = target.index if isinstance(target, Explained) else target
        scalar = target_scalars(forward_func, tensors, wanted, additional_forward_args)[example]
        explained = replace(target, value=scalar.value) if isinstance(target, Explained) else scalar.explained
        names = tuple(map(str, range(copies.n_features)))
        return perturbed_tensors(forward_func, names, explained, copies.example(example), scalar, **own)
    if not isinstance(forward_func, Adapter):
        raise InputError(
            f"an encoding came with {type(forward_func).__name__}, which is no adapter; pass the adapter, or the "
            "encoding's inputs, baselines, forward_args and feature_mask."
        )
    if baselines is not None or additional_forward_args is not None or feature_mask is not None:
        raise InputError("an encoding has its own baselines, arguments and features; leave these out.")
    _check_example(example, len(inputs))
    row = slice(example, example + 1)
    tensors, masks, bases = (
        tuple(t[row] for t in as_tuple(group)) for group in (inputs.inputs, inputs.feature_mask, inputs.baselines)
    )
    names, further = inputs.feature_names[example], tuple(t[row] for t in inputs.forward_args)
    answers, explained = _answers(forward_func, (*tensors, *further), target, unit)
    if isinstance(forward_func, TextAdapter):
        how = bases[0] if _is_baseline(removal) else removal
        return perturbed_text(answers, (*tensors, *further), masks[0], names, explained, removal=how, **own)
    if not _is_baseline(removal):
        draws = (20 if n_draws is None else n_draws, 0 if seed is None else seed)
        bases = stand_ins(forward_func, inputs, example, removal, *draws)
    return perturbed_tensors(forward_func, names, explained, Removable(tensors, bases, masks), answers, **own)


def _check_options(
    forward_func: Any, removal: Any, batch_size: int | None, n_draws: int | None, seed: int | None
) -> None:
    """Raise for options that are none, or would be ignored."""
    if not callable(forward_func):
        raise InputError(f"forward_func must be an adapter or a function, but is {type(forward_func).__name__}.")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f"batch_size must be a positive number of copies, but is {batch_size!r}.")
    is_marginal = isinstance(removal, str) and removal == "marginal"
    if not is_marginal and (n_draws is not None or seed is not None):
        raise InputError(f"n_draws and seed are for removal='marginal', and removal is {removal!r}; leave them out.")


def _check_function(forward_func: Any, removal: Any, unit: Any) -> None:
    """Raise where tensors came, and something that goes with encodings alone."""
    if isinstance(forward_func, Adapter):
        raise InputError(
            f"tensors came with {type(forward_func).__name__}; pass what its encode gave, or adapter.forward, whose "
            "output is then explained as that of any function."
        )
    if not _is_baseline(removal) or unit is not None:
        raise InputError(
            "tensors are explained in their function's own unit, with removal='baseline' and baselines=; for others "
            "pass an adapter and what its encode gave."
        )


def _check_example(example: int, n: int) -> None:
    if not 0 <= example < n:
        raise InputError(f"{n} example(s) came, so there is no example {example!r}; they count from 0.")


def _is_baseline(removal: Any) -> bool:
    return isinstance(removal, str) and removal == "baseline"


def _answers(
    adapter: Adapter, tensors: tuple[Tensor, ...], target: Any, unit: Unit | None
) -> tuple[Answers, Explained]:
    """Return what an adapter is asked of copies of an example, and the number that is explained.

    Args:
        adapter: The adapter.
        tensors: The example's inputs and further arguments, each (1, ...).
        target: The class, or the explained number.
        unit: The unit; by default the explained number's, or that of the model's own outputs.
    """
    given = target if isinstance(target, Explained) else None
    if given is not None:
        if unit not in (None, given.unit):
            raise InputError(f"unit={unit!r} was asked for, and the target is the {given.label}; leave unit out.")
        target, unit = given.index, given.unit
    answers, first = first_answers(adapter, tensors, unit)
    is_next_token = isinstance(adapter, TextAdapter) and adapter.task == "next_token"
    explained = adapter.choose(first[0], target, answers.unit, answers.kind, answers.columns)
    if given is not None:
        explained = replace(given, value=explained.value)
    if is_next_token:
        answers = replace(answers, token=explained.column)
    elif isinstance(explained.index, tuple):
        answers = replace(answers, place=explained.index)
    return answers, explained


def perturbed_tensors(
    forward_func: Callable[..., Any],
    names: tuple[str, ...],
    explained: Explained,
    example: Removable,
    ask: Ask,
    *,
    batch_size: int | None = None,
    show_progress: bool = False,
) -> PerturbedTensors:
    """Return one example as tensors whose features are replaced in place.

    Args:
        forward_func: The adapter or function; of a model of pictures patches are embedded once.
        names: The names of the features.
        explained: The number that is asked for.
        example: The example.
        ask: What is asked about copies.
        batch_size: Number of copies in one forward pass.
        show_progress: Show a bar over the distinct copies.
    """
    own: dict[str, Any] = dict(example=example, ask=ask, show_progress=show_progress)
    if isinstance(forward_func, ImageAdapter):
        own.update(batch_size=batch_size or forward_func.batch_size, noun="picture", model=forward_func.model)
        return PerturbedPicture(names, explained, **own)
    if isinstance(forward_func, (TabularAdapter, SequenceAdapter)):
        own.update(batch_size=batch_size or forward_func.batch_size, noun=forward_func.example)
        return PerturbedTensors(names, explained, **own)
    return PerturbedTensors(names, explained, batch_size=batch_size or _BATCH, **own)
