"""`compare`: attributions of one input brought to the same features, with a table of agreement."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from captum_attn_lime._compare.comparison import Comparison
from captum_attn_lime._compare.number import Number, number_of
from captum_attn_lime._compare.outside import outside_of, separate_mask, share_table, with_special_tokens
from captum_attn_lime._explained import Output
from captum_attn_lime._util.progress import progress
from captum_attn_lime.adapters import Encoding, TextEncoding
from captum_attn_lime.adapters._captum_methods import over_positions
from captum_attn_lime.adapters._encoding import layer_scores
from captum_attn_lime.adapters.image._adapter import ImageEncoding
from captum_attn_lime.attr._attribution import AttentionAttribution
from captum_attn_lime.errors import InputError
from captum_attn_lime.features import is_repeated, pool
from captum_attn_lime.lime._captum_recipe import check_captum_lime
from captum_attn_lime.metrics import agreement
from captum_attn_lime.metrics._agreement import check_k

Reading = Literal["auto", "sum", "first"]


def compare(
    attributions: Mapping[str, Any],
    encoding: Encoding,
    *,
    target: Any = None,
    output: Output | None = None,
    k: int = 5,
    signed: bool = False,
    reduction: Reading | Mapping[str, Reading] = "auto",
    show_progress: bool = False,
) -> Comparison:
    """Return attributions of one input side by side on the same features.

    Args:
        attributions: Name to attribution. Each is one of

            * a tensor, a tuple of tensors or an array in the shape of the encoding's inputs; one more dimension, as
              layer methods over embeddings have, is summed;
            * one value per feature, a vector; NaN where the method has none, as LIME at punctuation;
            * a lime ``Explanation``, whose units are brought to words by their characters;
            * a Captum attribution, which is run on the encoding.
        encoding: The input, from an adapter's ``encode``; one example.
        target: The class, by its index or name, or (position, class) of a model that predicts for each token. By
            default the class that lime explanations are of, or else the predicted one. Of a model with a single logit
            z class 1 is explained as z and class 0 as -z.
        output: ``"probability"`` or ``"logits"``. By default what lime explanations are of, or else what the model
            puts out. Methods that run an adapter all explain this number.
        k: Size of the top in the agreement's overlap.
        signed: Compare scores instead of their magnitudes; attention has no sign.
        reduction: How cells become features: ``"sum"``, ``"first"`` (all cells repeat their feature's value), or
            ``"auto"``: for attributions that are run, the first if they take a feature mask and else the sum; for
            tensors the first cell where all cells of every feature are equal and there is no further dimension, else
            the sum. For one method or all.
        show_progress: Show a progress bar over the methods, and those of the methods that have one.

    Raises:
        InputError: Nothing to compare, a batch of several examples, an attribution that does not fit the input, or
            methods that explain different numbers.
        TargetError: There is no such class, or it was not explained.

    Warns:
        LimeWarning: A ``captum.attr.Lime`` with Captum's defaults is among them, which gives all zeros on most models.

    Example:
        >>> x = Encoding(torch.ones(1, 3), (), torch.zeros(1, 3), torch.tensor([[0, 1, 1]]), (("old", "rich"),))
        >>> compare({"a": torch.tensor([[1.0, 2.0, 3.0]]), "b": torch.tensor([[1.0, 4.0, 4.0]])}, x, k=1).scores
                a    b
        feature
        old    1.0  1.0
        rich   5.0  4.0
    """
    import pandas as pd

    if not isinstance(attributions, Mapping) or not attributions:
        raise InputError("attributions must be a mapping with at least one entry, name to attribution.")
    unnamed = [name for name in attributions if not isinstance(name, str)]
    if unnamed:
        raise InputError(f"the methods' names must be strings, but {unnamed[0]!r} is {type(unnamed[0]).__name__}.")
    if not isinstance(encoding, Encoding):
        raise InputError(f"encoding must come from an adapter's encode(), but is {type(encoding).__name__}.")
    if len(encoding) != 1:
        raise InputError(f"compare explains one input, but the encoding holds {len(encoding)}; encode one alone.")
    readings = reduction if isinstance(reduction, Mapping) else dict.fromkeys(attributions, reduction)
    _check_readings(readings, attributions)
    check_k(k)  # before any method runs: some take minutes
    number = number_of(attributions, encoding, target, output)
    given = {}
    known: dict[str, Reading] = {}
    totals: dict[str, float] = {}
    over_layers: dict[str, Tensor] = {}
    with progress(len(attributions), show_progress, "compare") as tick:
        for name, value in attributions.items():
            given[name], reading, total = _run(name, value, encoding, number, show_progress)
            totals |= {} if total is None else {name: total}
            asked = readings.get(name, "auto")
            known[name] = reading if asked == "auto" else asked
            if given[name] is not value:
                found = layer_scores(value, given[name], encoding)
                over_layers |= {} if found is None else {name: found}
            tick(1)
    columns = {
        name: _to_features(name, over_layers.get(name, value), encoding, number, known[name])
        for name, value in given.items()
    }
    index = pd.Index(encoding.feature_names[0], name="feature")
    scores = pd.DataFrame(columns, index=index)
    outside = {name: outside_of(encoding, value, known[name], totals.get(name)) for name, value in given.items()}
    return Comparison(
        scores,
        agreement(scores, k=k, signed=signed),
        given,
        encoding,
        number.explained,
        share_table(outside),
        with_special_tokens(scores, outside, encoding),
    )


class _WithTotal:
    """An attention attribution that notes the sum over all tokens."""

    def __init__(self, method: AttentionAttribution) -> None:
        self.attribution_method = method
        self.total: float | None = None

    def attribute(self, **arguments: Any) -> Any:
        cells, total = self.attribution_method.attribute_with_total(**arguments)
        self.total = float(total)
        return cells


def _run(
    name: str, value: Any, encoding: Encoding, number: Number, show_progress: bool
) -> tuple[Any, Reading, float | None]:
    """Return the value, or what it attributes if it is an attribution method, and how its cells are to be read.

    A method that was told the features repeats each one's value in its cells; any other gives every cell its own,
    also where these happen to be equal. Of values that came ready that is to be guessed. Of attention the third is the
    sum over all tokens.
    """
    if not callable(getattr(value, "attribute", None)):
        return value, "auto", None
    if isinstance(value, type):
        raise InputError(
            f"the attribution {name!r} is the class {value.__name__}; pass an instance, {value.__name__}(model)."
        )
    check_captum_lime(getattr(value, "attribution_method", value), encoding.inputs, stacklevel=3)
    arguments = encoding.arguments(value)
    if show_progress and "show_progress" in signature(value.attribute).parameters:
        arguments["show_progress"] = True
    if isinstance(value, AttentionAttribution) and type(value).attribute is AttentionAttribution.attribute:
        counted = _WithTotal(value)
        cells = number.attribute(name, counted, encoding, arguments | {"feature_mask": separate_mask(encoding)})
        return cells, "first", counted.total
    found = number.attribute(name, value, encoding, arguments)
    knows_features = not {"feature_mask", "layer_mask"}.isdisjoint(arguments)
    return found, "first" if knows_features else "sum", None


def _to_features(name: str, value: Any, encoding: Encoding, number: Number, reading: Reading) -> Any:
    """Return one value per real feature, (features,) float64."""
    n = len(encoding.feature_names[0])
    if hasattr(value, "local_exp"):
        return _from_explanation(name, value, encoding, number)
    tensors = tuple(_as_tensor(name, part) for part in (value if isinstance(value, tuple) else (value,)))
    is_vector = len(tensors) == 1 and tuple(tensors[0].shape) == (n,)
    if is_vector:
        _check_values(name, tensors[0])
        return tensors[0].numpy()
    masks = encoding.feature_mask if isinstance(encoding.feature_mask, tuple) else (encoding.feature_mask,)
    if len(tensors) == len(masks):
        if reading == "auto" and any(t.dim() > m.dim() for t, m in zip(tensors, masks, strict=True)):
            reading = "sum"  # Methods that know features do not work on embeddings.
        tensors = tuple(over_positions(t, m, reading == "first") for t, m in zip(tensors, masks, strict=True))
    if tuple(t.shape for t in tensors) != tuple(m.shape for m in masks):
        came = ", ".join(str(tuple(t.shape)) for t in tensors)
        wanted = ", ".join(str(tuple(m.shape)) for m in masks)
        raise InputError(
            f"the attribution {name!r} has shape {came}; the input has {wanted}, and {n} features. Pass the method's "
            "result for this one input as it is, or one value per feature."
        )
    masks = tuple(m.cpu() for m in masks)
    if reading == "auto":
        reading = "first" if is_repeated(tuple(t.nan_to_num() for t in tensors), masks) else "sum"
    lacking = pool(tuple(t.isnan().double() for t in tensors), masks, "mean")[0, :n]
    scores = pool(tensors, masks, reading)[0, :n]
    _check_values(name, scores.masked_fill((lacking > 0) & (lacking < 1), float("inf")))
    return scores.numpy()


def _from_explanation(name: str, explanation: Any, encoding: Encoding, number: Number) -> Any:
    from captum_attn_lime.lime import explanation_numbers, word_weights
    from captum_attn_lime.lime._explanations import row_difference

    label = number.label
    n = len(encoding.feature_names[0])
    if isinstance(encoding, TextEncoding):
        explained = _explained_words(name, explanation, encoding)
        scores = np.full(n, np.nan)  # words of a pair's other text have no value
        own = [encoding.words[0][k] for k in explained]
        scores[explained] = word_weights(explanation, own, label, unselected=np.nan).numpy()
        return scores
    weights = explanation_numbers(explanation, label)
    segments: Any = getattr(explanation, "segments", None)
    if isinstance(encoding, ImageEncoding) and not np.array_equal(segments, encoding.segments[0]):
        raise InputError(
            f"the explanation {name!r} is over other segments than the encoding's {n}; explain the encoding itself: "
            "lime.explain(x, target)."
        )
    row = getattr(encoding, "rows", None)
    if row is not None and row.shape[1] != n:
        raise InputError(
            f"the explanation {name!r} is over {row.shape[1]} cells, and the encoding's features are "
            f"{n} others; encode with features='cell' or 'column', or pass LimeSequence itself, which adds its numbers "
            "up to them."
        )
    difference = None if row is None else row_difference(explanation, row[0], encoding.feature_names[0])
    if difference is not None:
        raise InputError(
            f"the explanation {name!r} is of another row: {difference}. Explain the row that was encoded; if it is "
            "that row in another form, pass the weights as a vector, one value per column."
        )
    if max(weights, default=0) >= n:
        raise InputError(f"the explanation {name!r} is over column {max(weights)}, but the input has {n} columns.")
    # lime leaves out what it did not select (num_features): no value, rather than a zero nobody measured.
    return np.array([weights.get(feature, np.nan) for feature in range(n)])


def _explained_words(name: str, explanation: Any, encoding: TextEncoding) -> list[int]:
    """Return which of the encoding's words are of the text that lime explained."""
    raw = getattr(getattr(getattr(explanation, "domain_mapper", None), "indexed_string", None), "raw", None)
    text = encoding.texts[0]
    texts = (text,) if isinstance(text, str) else text
    marked = getattr(explanation, "explained_text", None)  # LimeText notes it; the official explainer does not
    segments = [k for k, t in enumerate(texts) if t == raw and (marked is None or ("first", "second")[k] == marked)]
    if not segments or (getattr(explanation, "text", None) or text) != text:
        own = " and ".join(repr(t[:60]) for t in texts)
        raise InputError(f"the explanation {name!r} is of another text: {str(raw)[:60]!r}, not {own}.")
    if len(segments) > 1:
        raise InputError(
            f"the explanation {name!r} may be of either text of the pair, which are equal; use LimeText.explain with "
            "explained_text=, which notes it."
        )
    words = [k for k, of in enumerate(encoding.text_indices[0]) if of == segments[0]]
    if not words:
        raise InputError(
            f"the explanation {name!r} is of the {('first', 'second')[segments[0]]} text, whose words are no features "
            "of the encoding; encode the pair with explained_text='both' or that text."
        )
    return words


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu().to(torch.float64)
    try:
        array = np.array(value)  # a copy: torch warns of the read-only arrays that pandas gives
        if array.dtype.kind not in "biuf":
            raise TypeError
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"the attribution {name!r} came as {type(value).__name__}; pass a tensor, a tuple of tensors, one value "
            "per feature, a lime explanation, or a Captum attribution."
        ) from None
    return torch.from_numpy(array.astype(np.float64))


def _check_values(name: str, scores: Tensor) -> None:
    """Refuse numbers that cannot be ranked; a method may have no value for some features, but not for all."""
    if bool(scores.isinf().any() | scores.isnan().all()):
        raise InputError(
            f"the attribution {name!r} holds NaN or infinite values; look at the method's input and the model's "
            "output. NaN may stand for a whole feature that the method has no value for, not for a part or for all."
        )


def _check_readings(readings: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    unknown = [name for name in readings if name not in given]
    if unknown:
        raise InputError(f"reduction names {unknown[0]!r}, which is not one of {', '.join(given)}.")
    for value in readings.values():
        if value not in get_args(Reading):
            raise InputError(f"reduction is {value!r}; it must be one of {', '.join(get_args(Reading))}.")
