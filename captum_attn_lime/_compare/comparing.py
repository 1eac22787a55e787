"""`compare`: attributions of one input on the same features, with a table of agreement."""

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
from captum_attn_lime.attr import AttentionAttribution
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
    """Return the attributions of several methods for one input, on the same features.

    Args:
        attributions: Mapping from names to attributions. Each is one of

            * a tensor, a tuple of tensors or an array in the shape of the encoding's inputs; a further dimension, as
              layer methods over embeddings have, is summed;
            * a vector with one value per feature; NaN where the method has none, as LIME at punctuation;
            * a lime ``Explanation``, whose features are aligned with the words by their character positions;
            * a Captum attribution, which is run on the encoding.
        encoding: The input from an adapter's ``encode``, with a single example.
        target: The class by index or name, or (position, class) for a model with one prediction per token. Defaults to
            the class that the lime explanations explain, or to the predicted class. For a model with a single logit z,
            class 1 is explained as z and class 0 as -z.
        output: ``"probability"`` or ``"logits"``. Defaults to what the lime explanations explain, or to the model's
            outputs. All methods that run an adapter explain this number.
        k: Size of the top in the agreement's overlap.
        signed: Compare scores instead of their magnitudes; attention has no sign.
        reduction: How to aggregate the cells of a feature: ``"sum"``, ``"first"`` (all cells repeat the feature's
            value), or ``"auto"``. With ``"auto"``, a method that is run uses the first cell if it accepts a feature
            mask, otherwise the sum. Tensors use the first cell if all cells of each feature are equal and there is no
            further dimension, otherwise the sum. One value for all methods, or a mapping from names.
        show_progress: Show a progress bar over the methods, and the progress bars of methods that have one.

    Raises:
        InputError: There is nothing to compare, the encoding has several examples, an attribution does not match the
            input, or methods explain different numbers.
        TargetError: There is no such class, or it was not explained.

    Warns:
        LimeWarning: A ``captum.attr.Lime`` with Captum's defaults is among the methods; on most models it gives zeros.

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
        raise InputError("attributions must be a mapping from names to attributions, with at least one entry.")
    unnamed = [name for name in attributions if not isinstance(name, str)]
    if unnamed:
        raise InputError(f"the methods' names must be strings, but {unnamed[0]!r} is {type(unnamed[0]).__name__}.")
    if not isinstance(encoding, Encoding):
        raise InputError(f"encoding must come from an adapter's encode(), but is {type(encoding).__name__}.")
    if len(encoding) != 1:
        raise InputError(f"compare explains one input, but the encoding holds {len(encoding)}; encode a single one.")
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
            chosen = readings.get(name, "auto")
            known[name] = reading if chosen == "auto" else chosen
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
    """An attention attribution that also records the sum over all tokens."""

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
    """Return the value, or its attributions if it is a method; the reduction of its cells; and the sum over all tokens.

    A method with a feature mask repeats each feature's value in its cells; any other method gives each cell a separate
    value, even if these happen to be equal. For a precomputed value this must be guessed. Only attention has a sum over
    all tokens.
    """
    if not callable(getattr(value, "attribute", None)):
        return value, "auto", None
    if isinstance(value, type):
        raise InputError(
            f"the attribution {name!r} is the class {value.__name__}; pass an instance, {value.__name__}(model)."
        )
    check_captum_lime(getattr(value, "attribution_method", value), encoding.inputs)
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
    """Return one value per feature, (features,) float64, without special tokens."""
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
            reading = "sum"  # Methods with a feature mask do not attribute to embeddings.
        tensors = tuple(over_positions(t, m, reading == "first") for t, m in zip(tensors, masks, strict=True))
    if tuple(t.shape for t in tensors) != tuple(m.shape for m in masks):
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        wanted = ", ".join(str(tuple(m.shape)) for m in masks)
        raise InputError(
            f"the attribution {name!r} has shape {shapes}, but the input has shape {wanted} and {n} features. Pass the "
            "method's unchanged result for this input, or one value per feature."
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
        scores = np.full(n, np.nan)  # words of the other text of a pair have no value
        words = [encoding.words[0][k] for k in explained]
        scores[explained] = word_weights(explanation, words, label, unselected=np.nan).numpy()
        return scores
    weights = explanation_numbers(explanation, label)
    segments: Any = getattr(explanation, "segments", None)
    if isinstance(encoding, ImageEncoding) and not np.array_equal(segments, encoding.segments[0]):
        raise InputError(
            f"the explanation {name!r} has other segments than the encoding, which has {n}; explain the encoding: "
            "lime.explain(x, target)."
        )
    row = getattr(encoding, "rows", None)
    if row is not None and row.shape[1] != n:
        raise InputError(
            f"the explanation {name!r} is over {row.shape[1]} cells, but the encoding has {n} other features; encode "
            "with features='cell' or 'column', or pass the LimeSequence object, whose weights are summed to them."
        )
    difference = None if row is None else row_difference(explanation, row[0], encoding.feature_names[0])
    if difference is not None:
        raise InputError(
            f"the explanation {name!r} is of another row: {difference}. Explain the encoded row; if both are the same "
            "row in different forms, pass the weights as a vector, one value per column."
        )
    if max(weights, default=0) >= n:
        raise InputError(
            f"the explanation {name!r} is over column {max(weights)}, but the input has {n} columns; explain the "
            "encoded row."
        )
    # Features that lime did not select (num_features) have no value, instead of a zero that was not measured.
    return np.array([weights.get(feature, np.nan) for feature in range(n)])


def _explained_words(name: str, explanation: Any, encoding: TextEncoding) -> list[int]:
    """Return the indices of the encoding's words that belong to the text that lime explained."""
    raw = getattr(getattr(getattr(explanation, "domain_mapper", None), "indexed_string", None), "raw", None)
    text = encoding.texts[0]
    texts = (text,) if isinstance(text, str) else text
    marked = getattr(explanation, "explained_text", None)  # set by LimeText, not by the official explainer
    segments = [k for k, t in enumerate(texts) if t == raw and (marked is None or ("first", "second")[k] == marked)]
    if not segments or (getattr(explanation, "text", None) or text) != text:
        shown = " and ".join(repr(t[:60]) for t in texts)
        raise InputError(
            f"the explanation {name!r} is of another text: {str(raw)[:60]!r}, not {shown}; explain the encoded text."
        )
    if len(segments) > 1:
        raise InputError(
            f"the explanation {name!r} may be of either text of the pair, which are equal; use LimeText.explain with "
            "explained_text=, which records it."
        )
    words = [k for k, of in enumerate(encoding.text_indices[0]) if of == segments[0]]
    if not words:
        raise InputError(
            f"the explanation {name!r} is of the {('first', 'second')[segments[0]]} text, whose words are not features "
            "of the encoding; encode the pair with explained_text='both' or that text."
        )
    return words


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu().to(torch.float64)
    try:
        array = np.array(value)  # a copy: torch warns about the read-only arrays of pandas
        if array.dtype.kind not in "biuf":
            raise TypeError
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"the attribution {name!r} is {type(value).__name__}; pass a tensor, a tuple of tensors, one value per "
            "feature, a lime explanation, or a Captum attribution."
        ) from None
    return torch.from_numpy(array.astype(np.float64))


def _check_values(name: str, scores: Tensor) -> None:
    """Raise for scores that cannot be ranked; a method may lack values for some features, but not for all."""
    if bool(scores.isinf().any() | scores.isnan().all()):
        raise InputError(
            f"the attribution {name!r} contains NaN or infinite values; check the method's input and the model's "
            "output. NaN may mark a whole feature without a value, but not part of a feature or all features."
        )


def _check_readings(readings: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    unknown = [name for name in readings if name not in given]
    if unknown:
        raise InputError(f"reduction names {unknown[0]!r}, which is not one of {', '.join(given)}.")
    for value in readings.values():
        if value not in get_args(Reading):
            raise InputError(f"reduction must be one of {', '.join(get_args(Reading))}, but is {value!r}.")
