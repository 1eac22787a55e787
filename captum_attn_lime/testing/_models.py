"""`check_model`: checks that a model's attention is captured correctly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from captum_attn_lime._capture.names import find_modules
from captum_attn_lime._capture.recorder import Recorder, RowView
from captum_attn_lime._capture.session import check_complete, record
from captum_attn_lime._util.captum import Target, TensorOrTuple, as_tuple, format_forward_args, run_forward
from captum_attn_lime.attention import AttentionMap
from captum_attn_lime.attr import Description, describe
from captum_attn_lime.errors import ExplanationError

# Number of evenly spaced rows of each map to check.
_ROWS = 32


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: What was checked.
        passed: Whether it passed; None if it could not be checked.
        detail: The findings, with numbers.
    """

    name: str
    passed: bool | None
    detail: str

    def __str__(self) -> str:
        mark = {True: "ok  ", False: "FAIL", None: "--  "}[self.passed]
        return f"{mark} {self.name}: {self.detail}"


@dataclass(frozen=True)
class ModelReport:
    """The report of `check_model`; ``print`` shows it as text.

    Attributes:
        checks: All checks, in order.
        description: The model's layers, readout and tokens; None if no attention could be captured.
    """

    checks: tuple[Check, ...]
    description: Description | None

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    def __str__(self) -> str:
        """Return the report as text."""
        parts = [] if self.description is None else [str(self.description), ""]
        return "\n".join([*parts, *(str(check) for check in self.checks)])


@dataclass
class _CallCheck:
    """Compares each call's weights with the output of the model's own call, while the model runs."""

    recorder: Recorder | None = None
    sums: list[tuple[float, float]] = field(default_factory=list)  # least and greatest row sum of each call
    errors: list[tuple[str, float]] = field(default_factory=list)  # name, error relative to the output's size

    def __call__(self, call: int, output: Tensor, rows: RowView) -> Tensor:
        if self.recorder is None:
            return output
        attention, value = self.recorder.maps[call], self.recorder.values.pop(call, None)
        with torch.no_grad():
            chosen = _sampled(attention)
            weights = attention.rows(chosen)  # (B, H, q, K)
            total = weights.sum(dim=-1)
            real = _real_rows(attention, chosen)
            self.sums.append((float(total[real].min()), float(total[real].max())))
            if attention.kind == "windowed":
                real = real & (total > 1 - 1e-4)  # in a padded window, values of the padding contribute to the output
            if value is not None and value.shape[2] == attention.shape[3] and bool(real.any()):
                self.errors.append((attention.name, _output_error(weights, value, rows(output), chosen, real)))
        return output


def check_model(
    model: Callable[..., Any],
    inputs: TensorOrTuple,
    additional_forward_args: Any = None,
    *,
    target: Target = None,
    tolerance: float = 1e-4,
    show: bool = True,
) -> ModelReport:
    """Check that a model's attention is captured correctly, and print a report.

    The captured weights of each call, multiplied by its values, must give the output of the model's own kernel. Rows
    must sum to one (less with attention sinks). HuggingFace models also run in eager mode, and must report the captured
    weights. The output must be the same with and without a capture, and the model must be left unchanged.

    Args:
        model: The model, or a function of tensors that runs it and returns a tensor, as Captum expects.
        inputs: Its input tensors, batch first.
        additional_forward_args: Its further arguments.
        target: For outputs with one row per token: (position, class).
        tolerance: Largest accepted difference; multiplied by 100 for models in half precision.
        show: Whether to print the report.

    Returns:
        The report; ``report.passed`` is its overall result.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
        >>> report = check_model(lambda x: encoder(x)[:, 0], torch.randn(1, 5, 8))
        1 attention calls
            0  layers.0.self_attn  self      1 x 2 heads, 5 queries x 5 keys
        example 0 reads token 0
        tokens without a part of the input: none
        ...
        >>> report.passed
        True
    """
    tensors, forward_args = as_tuple(inputs), format_forward_args(additional_forward_args)
    modules = find_modules(model)
    if any(p.dtype in (torch.bfloat16, torch.float16) for m in modules.values() for p in m.parameters()):
        tolerance *= 100
    try:
        description = describe(model, inputs, additional_forward_args, target=target)
    except ExplanationError as error:
        report = ModelReport((Check("attention is captured", False, str(error)),), None)
    else:
        checks = (
            Check("attention is captured", True, f"{len(description.layers)} calls"),
            *_check_calls(model, tensors, forward_args, tolerance),
            *_check_harmless(model, modules, tensors, forward_args, tolerance),
            _check_reported(model, modules, tensors, forward_args, tolerance),
            Check("tokens the prediction reads", None if description.query is None else True, _known(description)),
        )
        report = ModelReport(checks, description)
    if show:
        print(report)
    return report


def _check_calls(
    model: Callable[..., Any], tensors: tuple[Tensor, ...], forward_args: tuple[Any, ...], tolerance: float
) -> list[Check]:
    check = _CallCheck()
    everything = range(1_000_000)
    with torch.no_grad(), record(model, values_at=everything, substitute=check, batch=len(tensors[0])) as recorder:
        check.recorder = recorder
        run_forward(model, tensors, forward_args or None)
    least, greatest = (f(sums[i] for sums in check.sums) for i, f in ((0, min), (1, max)))
    rows = Check(
        "rows sum to one",
        greatest <= 1 + tolerance and least >= -tolerance,
        f"{least:.6f} to {greatest:.6f}" + ("" if least > 1 - tolerance else ": part of the attention goes to no key"),
    )
    worst = max(check.errors, key=lambda found: found[1], default=("", 0.0))
    detail = f"largest relative difference {worst[1]:.1e} in {worst[0]!r}, {len(check.errors)} calls"
    if not check.errors:
        return [rows, Check("weights times values give the call's output", None, "no call showed its values")]
    if recorder.is_random:
        return [rows, Check("weights times values give the call's output", None, "dropout is active: call .eval()")]
    return [rows, Check("weights times values give the call's output", worst[1] <= tolerance, detail)]


def _check_harmless(
    model: Callable[..., Any],
    modules: dict[str, nn.Module],
    tensors: tuple[Tensor, ...],
    forward_args: tuple[Any, ...],
    tolerance: float,
) -> list[Check]:
    before = _state(modules)
    with torch.no_grad():
        plain = run_forward(model, tensors, forward_args or None)
        between = _state(modules)  # some libraries register hooks in the first run
        with record(model, batch=len(tensors[0])) as recorder:
            watched = run_forward(model, tensors, forward_args or None)
    difference = float((plain.double() - watched.double()).abs().max()) if plain.numel() else 0.0
    size = max(float(plain.double().abs().max()), 1e-12) if plain.numel() else 1.0
    same: bool | None = difference <= tolerance * size
    detail = f"largest difference {difference:.1e}"
    if recorder.is_random:
        same, detail = None, "dropout is active: call .eval()"
    left = before != _state(modules) and between != _state(modules)
    return [
        Check("the output is the same under a capture", same, detail),
        Check("nothing is left on the model", not left, "hooks, flags" + (" differ" if left else " as before")),
    ]


def _check_reported(
    model: Callable[..., Any],
    modules: dict[str, nn.Module],
    tensors: tuple[Tensor, ...],
    forward_args: tuple[Any, ...],
    tolerance: float,
) -> Check:
    """Compare the captured maps with the weights that a HuggingFace model reports in eager mode."""
    name = "weights the model itself reports"
    parts = (m for module in modules.values() for m in module.modules())
    root = next((m for m in parts if hasattr(m, "set_attn_implementation")), None)
    if root is None:
        return Check(name, None, "not a HuggingFace model that reports weights")
    with torch.no_grad(), record(model, batch=len(tensors[0])) as recorder:
        run_forward(model, tensors, forward_args or None)
    check_complete(recorder, model)
    try:
        with _reporting(root) as reported, torch.no_grad():
            run_forward(model, tensors, forward_args or None)
    except (ValueError, TypeError, NotImplementedError, KeyError) as error:
        return Check(name, None, f"the model does not run in eager mode ({error})")
    found = _paired(recorder.maps, reported)
    if not found:
        return Check(name, None, "it reports none")
    if not all(bool(((w >= 0) & (w <= 1 + tolerance)).all()) for _, w in found):
        return Check(name, None, "it reports values below zero, above one, or NaN, which are not weights")
    differences = []
    for attention, weights in found:
        chosen = _sampled(attention)
        captured = attention.rows(chosen)
        if weights.stride(1) == 0:
            captured = captured.mean(dim=1, keepdim=True)  # the model reports the mean over heads, repeated
        difference = (captured - weights[:, :, chosen].to(attention.dtype)).abs().amax(dim=(1, 3))
        differences.append(float(difference[_real_rows(attention, chosen)[:, 0]].max()))
    detail = f"largest difference {max(differences):.1e}, {len(found)} calls, in eager mode"
    return Check(name, max(differences) <= tolerance, detail)


@contextmanager
def _reporting(root: Any) -> Iterator[dict[str, list[Tensor]]]:
    """Run a HuggingFace model in eager mode and collect the reported weights by output field."""
    reported: dict[str, list[Tensor]] = {}

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        for field_name in ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions"):
            given = getattr(output, field_name, None)
            if given:  # an outer model finishes last and reports all weights
                reported[field_name] = [w for w in given if isinstance(w, Tensor) and w.dim() == 4]

    parts = [m for m in root.modules() if hasattr(m, "set_attn_implementation")]
    flags = {id(m.config): (m.config, getattr(m.config, "output_attentions", None)) for m in parts}
    implementations = [(m, m.config._attn_implementation) for m in parts]
    handles = [m.register_forward_hook(keep) for m in parts]
    try:
        root.set_attn_implementation("eager")
        for config, _ in flags.values():
            config.output_attentions = True
        yield reported
    finally:
        for handle in handles:
            handle.remove()
        for config, flag in flags.values():
            config.output_attentions = flag
        # Outer modules first: setting one also sets its submodules, which may have had another implementation.
        for part, implementation in implementations:
            part.set_attn_implementation(implementation)


def _paired(maps: list[AttentionMap], reported: dict[str, list[Tensor]]) -> list[tuple[AttentionMap, Tensor]]:
    """Return pairs of a captured map and the reported weights of the same call, if their counts and shapes agree."""
    self_attention = [m for m in maps if m.kind in ("self", "unknown")]
    crossing = [m for m in maps if m.kind == "cross"]
    at_self = reported.get("attentions") or [
        *reported.get("encoder_attentions", []),
        *reported.get("decoder_attentions", []),
    ]
    pairs: list[tuple[AttentionMap, Tensor]] = []
    for captured, weights in ((self_attention, at_self), (crossing, reported.get("cross_attentions", []))):
        if len(captured) == len(weights):
            pairs += [(m, w) for m, w in zip(captured, weights, strict=True) if tuple(w.shape) == m.shape]
    return pairs


def _sampled(attention: AttentionMap) -> Tensor:
    queries = attention.shape[2]
    return torch.arange(0, queries, max(1, queries // _ROWS))


def _real_rows(attention: AttentionMap, chosen: Tensor) -> Tensor:
    """Return which sampled rows belong to real tokens, (B, H, q) of bool; rows of padding may hold anything."""
    batch, heads, queries, keys = attention.shape
    real = torch.ones(batch, len(chosen), dtype=torch.bool, device=attention.device)
    if attention.kind in ("self", "windowed") and queries == keys:
        reading = attention.reads_itself()[:, chosen]
        real = reading if bool(reading.any()) else real
    return real[:, None].expand(batch, heads, len(chosen))


def _output_error(weights: Tensor, value: Tensor, output: Tensor, chosen: Tensor, real: Tensor) -> float:
    """Return the largest difference between weights times values and the call's output, relative to the output."""
    value = value.to(weights.dtype)
    if value.shape[1] != weights.shape[1] and weights.shape[1] % value.shape[1] == 0:
        value = value.repeat_interleave(weights.shape[1] // value.shape[1], dim=1)  # grouped queries
    given = output[:, :, chosen].to(weights.dtype)
    expected = weights @ value
    if expected.shape != given.shape:
        return float("inf")
    size = given[real].abs().max().clamp(min=torch.finfo(weights.dtype).tiny)
    return float((expected - given)[real].abs().max() / size)


def _state(modules: dict[str, nn.Module]) -> list[Any]:
    """Return the state that a capture must not change."""
    return [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), m.training)
        for root in modules.values()
        for name, m in root.named_modules()
    ]


def _known(description: Description) -> str:
    return "found" if description.query is not None else "; ".join(description.problems)
