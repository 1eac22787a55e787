"""`captum_lime`: Captum's ``Lime`` with the settings of the lime package, and a check of Captum's defaults."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import captum.attr
import torch
from torch import Tensor

from captum_attn_lime._util.captum import Target, TensorOrTuple, as_tuple, linear_models, log_usage
from captum_attn_lime._util.warn import warn
from captum_attn_lime.errors import InputError, LimeWarning
from captum_attn_lime.lime._base import check_callable

_LEAST_ALPHA = 0.01  # captum's default
_REMOVABLE = "n_removable"
_DEFAULT_KERNEL = "default_exp_kernel"  # the function that get_exp_kernel_similarity_function returns


def captum_lime(
    forward_func: Callable[..., Any],
    *,
    kernel_width: float = 25.0,
    interpretable_model: Any = None,
    seed: int = 0,
) -> RecipeLime:
    r"""Return a ``captum.attr.Lime`` with the settings of lime's official text explainer.

    It needs scikit-learn, as Captum's ``Lime`` does, but not the lime package. It differs from Captum's defaults:

    ============== ==================================== =======================================================
    part           Captum's default                     here, as in lime
    ============== ==================================== =======================================================
    linear model   ``Lasso(alpha=0.01)``: effects below ``Ridge(alpha=1)``
                   about 0.04 become exactly 0
    kernel         :math:`\exp(-d^2 / 2)` over the      :math:`\sqrt{\exp(-d^2 / w^2)}` over the features kept:
                   inputs' numbers: token ids, too      d = 100 (1 - cosine), w = 25
    samples        each feature is removed with         the number of removed features is drawn first, uniformly
                   probability 1/2                      from 1 to all; the first sample is the input
    ============== ==================================== =======================================================

    As in :class:`LimeText`, features whose cells all equal their baselines (special and padding tokens of an encoding)
    cannot be removed: draws and distances ignore them, and their weight is exactly 0. The weights are those of
    ``LimeText(forward_func).attribute(...)`` up to the draw of the samples: random numbers are PyTorch's, not NumPy's.
    The generator is seeded anew in every call and for every example.

    ``attribute`` is Captum's with other defaults: ``n_samples=1000`` instead of 25 (10 to 15 a feature are needed
    for a steady ranking) and ``perturbations_per_eval=64`` instead of a forward pass for each sample. Without
    ``feature_mask`` Captum makes each number of the input a feature.

    Args:
        forward_func: An adapter, or any function of tensors.
        kernel_width: Width of the kernel over distances (x 100).
        interpretable_model: One of Captum's linear models; ``SkLearnRidge(alpha=1.0)`` by default.
        seed: Seed of each example's random numbers.

    Reference:
        Ribeiro, Singh and Guestrin, "Why Should I Trust You?", KDD 2016; ``lime.lime_text``.

    Example:
        >>> x = torch.tensor([[1.0, 2.0, 3.0]])
        >>> lime = captum_lime(lambda x: x.sum(dim=1, keepdim=True))
        >>> lime.attribute(x, target=0, n_samples=2000).round()
        tensor([[1., 2., 3.]])
    """
    check_callable(forward_func)
    if not isinstance(kernel_width, (int, float)) or not kernel_width > 0:
        raise InputError(f"kernel_width must be a positive number, but is {kernel_width!r}.")

    model = linear_models().SkLearnRidge(alpha=1.0) if interpretable_model is None else interpretable_model
    return RecipeLime(
        forward_func,
        interpretable_model=model,
        similarity_func=partial(_similarity, kernel_width=kernel_width),
        perturb_func=partial(_samples, seed=seed),
    )


class RecipeLime(captum.attr.Lime):  # type: ignore[misc]
    """Captum's ``Lime`` with the defaults of :meth:`LimeText.attribute`; made by :func:`captum_lime`."""

    @log_usage()  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def attribute(
        self,
        inputs: TensorOrTuple,
        baselines: Any = None,
        target: Target = None,
        additional_forward_args: Any = None,
        feature_mask: TensorOrTuple | None = None,
        n_samples: int = 1000,
        perturbations_per_eval: int = 64,
        return_input_shape: bool = True,
        show_progress: bool = False,
    ) -> TensorOrTuple:
        """Return what ``captum.attr.Lime.attribute`` returns; its arguments are the same."""
        attributions: TensorOrTuple = super().attribute(
            inputs,
            baselines=baselines,
            target=target,
            additional_forward_args=additional_forward_args,
            feature_mask=feature_mask,
            n_samples=n_samples,
            perturbations_per_eval=perturbations_per_eval,
            return_input_shape=return_input_shape,
            show_progress=show_progress,
        )
        return attributions


def _samples(inputs: TensorOrTuple, *, seed: int, **of_features: Any) -> Iterator[Tensor]:
    """Yield the features that each sample keeps, (1, features)."""
    active = removable(inputs, **of_features)
    features = active.nonzero().flatten()
    device = as_tuple(inputs)[0].device
    draw = torch.Generator().manual_seed(seed)
    # Features that cannot be removed are always 0: the input is the same, and a constant 0 gets the weight 0.
    whole = active.long().unsqueeze(0)
    removed = features[:0]
    while True:
        sample = whole.clone()
        sample[0, removed] = 0
        sample = sample.to(device)
        setattr(sample, _REMOVABLE, len(features))  # read by the kernel, which gets the same tensor
        yield sample
        if len(features):
            count = int(torch.randint(1, len(features) + 1, (1,), generator=draw))
            removed = features[torch.randperm(len(features), generator=draw)[:count]]


def _similarity(
    inputs: TensorOrTuple, perturbed: TensorOrTuple, kept: Tensor, *, kernel_width: float, **of_features: Any
) -> float:
    """Return lime's kernel of one sample; its cosine with the vector of ones is the root of the share kept."""
    n: int | None = getattr(kept, _REMOVABLE, None)
    if n is None:  # samples of another perturb_func
        n = int(removable(inputs, **of_features).sum())
    distance = 100 * (1 - math.sqrt(int(kept.sum()) / n)) if n else 0.0
    return math.sqrt(math.exp(-((distance / kernel_width) ** 2)))


def removable(
    inputs: TensorOrTuple, *, baselines: Any, feature_mask: TensorOrTuple, num_interp_features: int, **_: Any
) -> Tensor:
    """Return the features of one example whose removal changes a cell, bool (features,) on the CPU.

    The arguments are those that Captum's ``Lime`` passes to its functions.

    Example:
        >>> ids, mask = torch.tensor([[2, 7, 8, 3]]), torch.tensor([[2, 0, 1, 2]])
        >>> removable(ids, baselines=torch.tensor([[2, 4, 4, 3]]), feature_mask=mask, num_interp_features=3)
        tensor([ True,  True, False])
    """
    active = torch.zeros(num_interp_features, dtype=torch.bool)
    bases = baselines if isinstance(baselines, tuple) else (baselines,)
    for x, base, mask in zip(as_tuple(inputs), bases, as_tuple(feature_mask), strict=True):
        ids = mask.to(x.device).expand(x.shape)
        active[ids[x != base].cpu()] = True
    return active


def check_captum_lime(lime: Any, inputs: TensorOrTuple | None = None) -> tuple[str, ...]:
    r"""Return the settings of a ``captum.attr.Lime`` that give empty or meaningless weights, and warn of them.

    Captum's defaults give all zeros on most transformers. ``Lasso(alpha=0.01)`` minimises
    :math:`\frac{1}{2n}\lVert y - Xw \rVert^2 + \alpha \lVert w \rVert_1`; for features that are in or out with
    probability 1/2, whose variance is 1/4, this shrinks every effect by :math:`4 \alpha = 0.04` and sets smaller ones
    to exactly 0. Where 30 words share a probability of 0.9 evenly, each has 0.03, and nothing is left. Long inputs lose
    more, logits less. The default kernel treats token *ids* as quantities: its weights hardly differ (0.87 to 1 on a
    text of 42 tokens), so the fit is not local.

    Args:
        lime: The attribution; any but a ``captum.attr.Lime`` has no such settings.
        inputs: The explained inputs, if known: the kernel suits numbers, not ids.

    Warns:
        LimeWarning: The linear model or the kernel is one of these.
    """
    if not isinstance(lime, captum.attr.Lime):
        return ()
    problems = []
    model = lime.interpretable_model
    alpha = getattr(model, "construct_kwargs", {}).get("alpha", 1.0)
    if isinstance(model, linear_models().SkLearnLasso) and alpha >= _LEAST_ALPHA:
        problems.append(
            f"its linear model is Lasso(alpha={alpha:g}), which makes effects below about {4 * alpha:g} exactly 0 and "
            "shrinks the others by as much: for scores between 0 and 1 often all of them"
        )
    ids = inputs is None or not all(x.is_floating_point() for x in as_tuple(inputs))
    if ids and getattr(lime.similarity_func, "__name__", "") == _DEFAULT_KERNEL:
        problems.append("its kernel measures distances between token ids as if they were quantities")
    if problems:
        warn(
            f"captum.attr.Lime with Captum's defaults: {', and '.join(problems)}. Use captum_lime(forward_func), which "
            "gives Captum's Lime the settings of the lime package, or LimeText(forward_func).",
            LimeWarning,
        )
    return tuple(problems)
