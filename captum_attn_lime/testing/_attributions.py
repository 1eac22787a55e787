"""`check_attribution`: checks that an attribution satisfies the laws."""

from __future__ import annotations

import contextlib
import copy
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from captum.attr import LayerAttribution
from torch import Tensor, nn

from captum_attn_lime._capture.names import find_modules
from captum_attn_lime._util.captum import Target, TensorOrTuple, as_tuple, format_forward_args
from captum_attn_lime._util.random import RandomState, without_drawing
from captum_attn_lime.attr._inputs import copied
from captum_attn_lime.attr._model_state import ModelState
from captum_attn_lime.errors import InputError, LawError
from captum_attn_lime.testing._state import (
    difference,
    failing,
    has_drawn,
    other_mode,
    other_options,
    other_weights,
    snapshot,
)


class _Arguments(NamedTuple):
    """Arguments of an attribution; tensors with the batch size, also in tuples, have a row per example."""

    inputs: tuple[Tensor, ...]
    forward_args: tuple[Any, ...]
    target: Target
    more: dict[str, Any]

    def with_each(self, change: Callable[[Tensor], Tensor]) -> _Arguments:
        """Return the arguments with ``change`` applied to each tensor that has a row per example."""
        n = len(self.inputs[0])

        def changed(x: Any) -> Any:
            if isinstance(x, tuple):
                return tuple(changed(part) for part in x)
            return change(x) if isinstance(x, Tensor) and x.dim() and len(x) == n else x

        target = self.target if isinstance(self.target, tuple) else changed(self.target)
        more = {name: changed(value) for name, value in self.more.items()}
        return _Arguments(changed(self.inputs), changed(self.forward_args), target, more)


class _BrokenError(Exception):
    """Raised deliberately inside the model."""


def check_attribution(
    attribution: Any,
    inputs: TensorOrTuple,
    *,
    target: Target = None,
    additional_forward_args: Any = None,
    fresh: Callable[[], Any] | None = None,
    others: Sequence[Mapping[str, Any]] = (),
    options: Sequence[Mapping[str, Any]] = (),
    tolerance: float = 1e-5,
    thorough: bool = True,
    **arguments: Any,
) -> tuple[str, ...]:
    """Check that an attribution satisfies the laws; raise for the first violation.

    A used object must agree with a fresh one: after the weights change in place (with and without autograd noticing),
    in the other mode, for other lengths, batches, values and further arguments, and with other options. So must its
    copies and pickles. A batch must agree with its rows. A tuple gives a tuple, and all forms of a target give the same
    scores. Inputs, weights, buffers, flags, hooks, configuration, gradients and random states stay unchanged, even if
    the model raises; only a method with random scores may draw random numbers. The check changes the model temporarily
    and restores it bit for bit.

    Args:
        attribution: Any Captum attribution, unused unless ``fresh`` is given.
        inputs: A batch of at least two examples.
        target: The target, as in ``attribute``.
        additional_forward_args: As in ``attribute``.
        fresh: Returns an unused attribution over the same model; by default a copy of this one that shares the model.
        others: Further arguments of ``attribute`` for which used and fresh objects must agree, such as
            ``[{"inputs": longer, "additional_forward_args": other_mask}]``; some are derived from the inputs anyway.
        options: Options to set on the object, each as a dictionary: ``[{"method": "raw"}]``.
        tolerance: Largest accepted difference between equal scores, relative to the largest score.
        thorough: Whether to try all changes; otherwise one of each kind, in a third of the time.
        arguments: Further arguments of ``attribute``, such as ``query=`` or ``n_samples=``.

    Returns:
        The names of the laws that were checked.

    Raises:
        LawError: A law is violated; the message names it and says what differs.
        InputError: There are fewer than two examples.

    Example:
        >>> from captum.attr import Saliency
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        >>> laws = check_attribution(Saliency(model), torch.randn(3, 4), target=1)
        >>> "a batch agrees with its rows" in laws
        True
    """
    tensors, forward_args = as_tuple(inputs), format_forward_args(additional_forward_args)
    if len(tensors[0]) < 2:
        raise InputError("check_attribution needs a batch of at least two examples, to compare it with its rows.")
    given = _Arguments(tensors, forward_args, target, dict(arguments))
    check = _Check(attribution, given, isinstance(inputs, tuple), fresh, tolerance, thorough)
    with warnings.catch_warnings(), without_drawing():
        warnings.simplefilter("ignore")  # about dropout or small samples
        try:
            return check.run(others, options)
        finally:
            check.restore_requires_grad()


class _Check:
    """One check: the used object, a factory of fresh ones, and the arguments of both."""

    def __init__(
        self,
        attribution: Any,
        given: _Arguments,
        is_tuple: bool,
        fresh: Callable[[], Any] | None,
        tolerance: float,
        thorough: bool,
    ) -> None:
        roots = find_modules(attribution.forward_func)
        self._modules = list(dict.fromkeys(m for root in roots.values() for m in root.modules()))
        self._used, self._given, self._is_tuple = attribution, given, is_tuple
        self._tolerance, self._thorough = tolerance, thorough
        self._fresh = _copies(attribution, self._modules) if fresh is None else fresh
        self._start = RandomState()
        self._required_grad = self._requiring_grad()  # before the first call
        self._laws: list[str] = []

    def run(self, others: Sequence[Mapping[str, Any]], options: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """Check all laws, and return their names."""
        model_draws = self._warm_up()
        plain = self._unchanged("the model and the inputs are left unchanged", self._used)
        is_random = model_draws or self._check_randomness(plain)
        self._check_forms(plain, is_random)
        self._check_used(others, options)
        self._check_copies(plain)
        self._check_errors(plain)
        self._compare("a second call agrees with the first", self._scores(self._used, self._given), plain)
        return tuple(dict.fromkeys(self._laws))

    def _warm_up(self) -> bool:
        """Run the model once, since some libraries register hooks in the first run; return whether it is random."""
        before = RandomState()
        inputs, forward_args = copied(self._given.inputs), copied(self._given.forward_args)
        with contextlib.suppress(Exception), ModelState(self._used.forward_func).left_as_found():
            self._used.forward_func(*inputs, *forward_args)
        return has_drawn(before)

    def _scores(
        self, attribution: Any, given: _Arguments, is_tuple: bool | None = None, start: RandomState | None = None
    ) -> tuple[Tensor, ...]:
        """Return the scores, computed from the random state at the start of the check or from another one."""
        is_tuple = self._is_tuple if is_tuple is None else is_tuple
        arguments = {"inputs": given.inputs if is_tuple else given.inputs[0], **given.more}
        if given.forward_args:
            arguments["additional_forward_args"] = given.forward_args
        if given.target is not None:
            arguments["target"] = given.target
        (self._start if start is None else start).restore()
        found = attribution.attribute(**arguments)
        follows_layer = isinstance(attribution, LayerAttribution)  # its result has the structure of the layer's output
        if isinstance(found, tuple) != is_tuple and not follows_layer:
            raise LawError(
                f"a tuple gives a tuple: {type(arguments['inputs']).__name__} inputs gave {type(found).__name__}."
            )
        scores = found if isinstance(found, tuple) else (found,)
        return tuple(score.detach().clone() for score in scores)

    def _compare(self, law: str, found: tuple[Tensor, ...], expected: tuple[Tensor, ...], about: str = "") -> None:
        self._laws.append(law)
        where = f" ({about})" if about else ""
        for a, b in zip(found, expected, strict=True):
            if a.shape != b.shape:
                raise LawError(f"{law}{where}: shapes {tuple(a.shape)} and {tuple(b.shape)}.")
            missing = a.isnan() != b.isnan()
            size = max(float(b.nan_to_num().abs().max()), 1e-30) if b.numel() else 1.0
            worst = float((a.double() - b.double()).nan_to_num().abs().max()) if b.numel() else 0.0
            if bool(missing.any()) or worst > self._tolerance * size:
                raise LawError(f"{law}{where}: scores differ by {worst:.1e}, the largest is {size:.1e}.")

    # --- side effects -------------------------------------------------------------------------------------------

    def _caller_tensors(self) -> dict[str, Tensor]:
        given = self._given
        named: dict[str, Any] = {f"input {i}": x for i, x in enumerate(given.inputs)}
        named |= {f"further argument {i}": x for i, x in enumerate(given.forward_args)}
        named |= {"the target": given.target, **{f"{name}=": value for name, value in given.more.items()}}
        return {name: x for name, x in named.items() if isinstance(x, Tensor)}

    def _requiring_grad(self) -> list[str]:
        return [name for name, x in self._caller_tensors().items() if x.requires_grad]

    def restore_requires_grad(self) -> None:
        """Restore ``requires_grad`` of the caller's tensors."""
        for name, x in self._caller_tensors().items():
            if x.is_leaf and x.is_floating_point():
                x.requires_grad_(name in self._required_grad)

    def _unchanged(self, law: str, attribution: Any, *, allow_errors: bool = False) -> tuple[Tensor, ...]:
        """Return the scores; raise if anything else changed."""
        self._laws.append(law)
        before = snapshot(self._modules, self._caller_tensors())
        public = {name: value for name, value in vars(self._used).items() if not name.startswith("_")}
        found = self._outcome(attribution, self._given) if allow_errors else self._scores(attribution, self._given)
        changed = difference(before, snapshot(self._modules, self._caller_tensors()))
        if changed is not None:
            raise LawError(f"{law}: {changed} was changed.")
        # Captum's own methods leave it set after an error.
        if not allow_errors and self._requiring_grad() != self._required_grad:
            raise LawError(f"{law}: requires_grad of the caller's tensors was changed.")
        for name, value in public.items():
            if vars(self._used).get(name) is not value:
                raise LawError(f"{law}: {name!r} of the attribution was changed.")
        return () if isinstance(found, type) else found

    def _check_randomness(self, plain: tuple[Tensor, ...]) -> bool:
        """Return whether the scores are random; raise if they are not, although random numbers were drawn."""
        law = "only random scores draw random numbers"
        self._laws.append(law)
        self._start.restore()
        torch.rand(1), np.random.random()  # noqa: NPY002
        other = RandomState()
        found = self._scores(self._used, self._given, start=other)
        is_random = any(not torch.allclose(a, b, atol=1e-6, equal_nan=True) for a, b in zip(found, plain, strict=True))
        if has_drawn(other) and not is_random:
            raise LawError(f"{law}: a used object draws random numbers, but its scores do not depend on them.")
        self._scores(self._fresh(), self._given)
        if has_drawn(self._start) and not is_random:
            raise LawError(f"{law}: a fresh object draws random numbers, but its scores do not depend on them.")
        return is_random

    # --- forms ----------------------------------------------------------------------------------------------------

    def _check_forms(self, plain: tuple[Tensor, ...], is_random: bool) -> None:
        inputs, target = self._given.inputs, self._given.target
        if len(inputs) == 1:
            other = self._scores(self._used, self._given, is_tuple=not self._is_tuple)
            self._compare("a tuple gives a tuple", other, plain)
        if isinstance(target, int) and not isinstance(target, bool):
            n = len(inputs[0])
            for form in ([target] * n, torch.tensor([target] * n), (target,)):
                found = self._scores(self._used, self._given._replace(target=form))
                self._compare("all forms of a target give the same scores", found, plain, f"target={form!r}")
        if is_random:
            return  # separate rows would draw other random numbers
        rows = [self._scores(self._used, _row(self._given, i)) for i in range(len(inputs[0]))]
        together = tuple(torch.cat(parts) for parts in zip(*rows, strict=True))
        self._compare("a batch agrees with its rows", together, plain)

    # --- used and fresh -------------------------------------------------------------------------------------------

    def _outcome(self, attribution: Any, given: _Arguments) -> tuple[Tensor, ...] | type:
        try:
            return self._scores(attribution, given)
        except LawError:
            raise
        except Exception as error:
            return type(error)

    def _agree(self, about: str, given: _Arguments | None = None, fresh: Any = None) -> None:
        law, given = "a used object agrees with a fresh one", self._given if given is None else given
        found = self._outcome(self._used, given)
        expected = self._outcome(self._fresh() if fresh is None else fresh, given)
        if isinstance(found, type) or isinstance(expected, type):
            if found is not expected:
                results = [x.__name__ if isinstance(x, type) else "scores" for x in (found, expected)]
                raise LawError(f"{law} ({about}): the used one gave {results[0]}, the fresh one {results[1]}.")
            return
        self._compare(law, found, expected, about)

    def _check_used(self, others: Sequence[Mapping[str, Any]], options: Sequence[Mapping[str, Any]]) -> None:
        for past_autograd in (False, True) if self._thorough else (True,):
            with other_weights(self._modules, past_autograd=past_autograd):
                self._agree("weights changed through .data" if past_autograd else "weights changed in place")
        with other_mode(self._modules):
            self._agree("the other mode")
        if self._thorough:
            self._agree("weights and mode restored")
        tried: set[str] = set()
        for kind, about, given in _variations(self._given):
            if self._thorough or kind not in {*tried, "values"}:
                tried.add(kind)
                self._agree(about, given)
        for each in others:
            self._agree(f"other {', '.join(each)}", _replaced(self._given, each))
        for each in options:
            with other_options(self._used, dict(each), self._fresh) as fresh:
                self._agree(f"{', '.join(f'{name}={value!r}' for name, value in each.items())}", fresh=fresh)
        if self._thorough:
            self._agree("the first arguments again")

    def _check_copies(self, plain: tuple[Tensor, ...]) -> None:
        law = "copies of a used object agree with it"
        self._compare(law, self._scores(copy.deepcopy(self._used), self._given), plain, "deepcopy")
        try:
            pickle.dumps(self._used.forward_func)
        except (pickle.PicklingError, AttributeError, TypeError):
            return  # the forward function cannot be pickled
        try:
            reopened = pickle.loads(pickle.dumps(self._used))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise LawError(f"{law} (pickle): {error}, although its forward_func can be pickled.") from error
        self._compare(law, self._scores(reopened, self._given), plain, "pickle")

    def _check_errors(self, plain: tuple[Tensor, ...]) -> None:
        leaves = [module for module in self._modules if not module._modules and type(module).__module__ != "builtins"]
        chosen = dict.fromkeys([leaves[len(leaves) // 2], leaves[0], leaves[-1]] if leaves else [])
        for module in list(chosen)[: None if self._thorough else 1]:
            for attribution in (self._used, self._fresh()):
                with failing(module, at=1, error=_BrokenError):
                    self._unchanged("the model is left unchanged after an error", attribution, allow_errors=True)
        self._compare("an error has no lasting effect", self._scores(self._used, self._given), plain)


def _copies(attribution: Any, modules: list[nn.Module]) -> Callable[[], Any]:
    """Return a factory of unused copies of an attribution that share its model."""
    shared = [*modules, attribution.forward_func, *(p for m in modules for p in m._parameters.values())]

    def copied(original: Any) -> Any:
        return copy.deepcopy(original, {id(part): part for part in shared})

    pristine = copied(attribution)
    return lambda: copied(pristine)


def _row(given: _Arguments, i: int) -> _Arguments:
    row, target = given.with_each(lambda x: x[i : i + 1]), given.target
    return row._replace(target=target[i : i + 1]) if isinstance(target, list) and len(target) > 1 else row


def _replaced(given: _Arguments, other: Mapping[str, Any]) -> _Arguments:
    """Return the arguments with some replaced."""
    rest = dict(other)
    return _Arguments(
        as_tuple(rest.pop("inputs", given.inputs)),
        format_forward_args(rest.pop("additional_forward_args", given.forward_args)),
        rest.pop("target", given.target),
        {**given.more, **rest},
    )


def _variations(given: _Arguments) -> Iterator[tuple[str, str, _Arguments]]:
    """Return other arguments of the same kind: the kind of change, its description, and the arguments."""
    inputs, forward_args = given.inputs, given.forward_args
    length = inputs[0].shape[1] if inputs[0].dim() > 1 else 0
    one = given.target[0] if isinstance(given.target, list) else given.target
    by_one_target = given._replace(target=one)
    yield "batch", "a larger batch", by_one_target.with_each(lambda x: torch.cat([x, x, x[:1]]))
    yield "batch", "one example", by_one_target.with_each(lambda x: x[:1])
    yield "values", "other values", by_one_target.with_each(lambda x: x.flip(0))
    yield "values", "values all zero", given._replace(inputs=tuple(torch.zeros_like(x) for x in inputs))
    if all(x.dim() in (2, 3) for x in inputs):
        for to in dict.fromkeys([length // 2, 1, length + 2]):

            def cut(x: Tensor, to: int = to) -> Tensor:
                return torch.cat([x, x], dim=1)[:, :to] if x.dim() >= 2 and x.shape[1] == length else x

            if to >= 1:
                yield "length", f"{to} of {length} tokens", given.with_each(cut)
    for i, x in enumerate(forward_args):
        for name, other in _other_arguments(x):
            args = (*forward_args[:i], other, *forward_args[i + 1 :])
            yield f"argument {i}", f"further argument {i} {name}", given._replace(forward_args=args)


def _other_arguments(x: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(x, bool):
        yield "negated", not x
    elif isinstance(x, (int, float)):
        yield "one more", x + 1
    elif isinstance(x, Tensor) and x.numel():
        yield "all one", torch.ones_like(x)
        if x.dim() >= 2:
            yield "reversed", x.flip(1)
        if x.is_floating_point():
            yield "twice as large", 2 * x
