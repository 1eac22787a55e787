"""What every test starts from: one torch thread, no display, a fixed seed."""

import gc
import importlib
import os
import sys
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)


_KEPT: list[object] = []


def _make_torchvision_importable() -> None:
    """Declare two operators where torchvision's compiled part does not fit the torch that is installed.

    There is no CPU build of torchvision for every torch, and without these two its Python part, timm and some of
    transformers cannot be imported. `make test` keeps torchvision in a folder of its own, so that nothing but the tests
    sees it.
    """
    apart = Path(sys.prefix) / "torchvision"
    if apart.is_dir():
        sys.path.append(str(apart))
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)  # it undeclares them when it is collected
        importlib.import_module("torchvision")


_make_torchvision_importable()
settings.register_profile("steady", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("steady")


def pytest_collection_finish():
    """Let the garbage collector leave alone what was imported: it would go through all of it hundreds of times."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
