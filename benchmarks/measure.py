"""Times of alternating cases within one process, and the peak memory of one case in a separate process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RUN = Path(__file__).with_name("run.py")
Function = Callable[[], Any]


@dataclass(frozen=True)
class Options:
    """The options of every part.

    Attributes:
        sizes: Numbers of tokens; by default each part's own.
        seconds: How long one comparison is repeated. It takes up to three times as long where its rounds are long, and
            one round at least.
        device: ``"cpu"`` or ``"cuda"``.
        reviews: How many film reviews.
        samples: How many perturbed samples LIME draws; by default each part's own.
    """

    sizes: tuple[int, ...] | None = None
    seconds: float = 30.0
    device: str = "cpu"
    reviews: int = 1000
    samples: int | None = None


def interleaved(
    functions: Mapping[str, Function], *, seconds: float, device: str = "cpu", most: int = 25
) -> dict[str, list[float]]:
    """Return the seconds of each function in each round; a round runs every function once.

    What disturbs the machine for longer than a round disturbs all of them, so ratios within a round are steadier than
    the times. On the CPU it is CPU time, on CUDA the time between events.

    Args:
        functions: What to run, already warm.
        seconds: When to stop, after three rounds at least; where rounds are long, after the round that exceeds three
            times as long.
        device: Where they run.
        most: Most rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    spent = 0.0
    for done in range(most):
        if done and (spent > 3 * seconds or (done >= 3 and spent > seconds)):
            break
        if not done or spent > done:  # rounds of a second; in short ones it would take longer than they do
            gc.collect()
        for name, function in functions.items():
            times[name].append(_seconds(function, device))
            spent += times[name][-1]
    return times


def _seconds(function: Function, device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        function()
        return time.process_time() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def median(times: list[float]) -> float:
    """Return the median."""
    return statistics.median(times)


def ratio(times: list[float], plain: list[float]) -> float:
    """Return the median over rounds of the ratio per round."""
    return statistics.median(a / b for a, b in zip(times, plain, strict=True))


def in_own_process(part: str, case: str, **arguments: Any) -> float | None:
    """Return the bytes by which a case's peak memory exceeds that of its process before.

    None where the process ended early, as it does when memory does not suffice.

    Args:
        part: A part of `PARTS` in run.py, whose function ``build`` returns what to run.
        case: Its first argument.
        arguments: Its further arguments.
    """
    told = json.dumps({"part": part, "case": case, **arguments})
    done = subprocess.run([sys.executable, str(RUN), "--own-process", told], capture_output=True, text=True)
    if done.returncode:
        print(f"{part} {case} {arguments} ended with {done.returncode}:\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    return float(done.stdout.splitlines()[-1])


def peak_growth(function: Function, device: str = "cpu", *, calls: int = 1) -> int:
    """Return the bytes by which the peak of the last call exceeds the memory before the first call."""
    start, peak = (_start_peak, _peak) if device == "cpu" else (_start_peak_on_cuda, torch.cuda.max_memory_allocated)
    _release()
    before = start()
    for _ in range(calls - 1):
        function()
    _release()
    start()
    function()
    return peak() - before


def _start_peak_on_cuda() -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _release() -> None:
    """Return unused memory to the system, since a later call could reuse it unnoticed."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not the C library of GNU
        ctypes.CDLL(None).malloc_trim(0)


def _start_peak() -> int:
    """Return the current resident bytes, and reset the peak."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        return _status("VmRSS")
    except OSError:  # not Linux: the peak so far may lie above what is resident now, and hide a small growth
        return _peak()


def _peak() -> int:
    try:
        return _status("VmHWM")
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def available_bytes() -> float:
    """Return the machine's free memory; infinite if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable:"))


def machine(device: str) -> dict[str, str]:
    """Return the machine and versions that the numbers depend on."""
    import transformers

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return {
        "processor": torch.cuda.get_device_name() if device != "cpu" else processor,
        "cores": str(os.cpu_count()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
