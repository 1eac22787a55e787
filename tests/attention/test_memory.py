"""Products take memory that grows with the tokens: measured in processes of their own, at 6,000 tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

# One process imports torch, and a child of it measures each product.
_CODE = """
import json, os, sys, torch
torch.set_num_threads(1)
from captum_attn_lime.attention import ScoreMap


def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])


def growth(product, mask, causal, has_sums):
    n = 6000
    query, key, value, gradient = torch.randn(4, 1, 2, n, 16)
    r = torch.rand(1, n)
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    seen[:, 5000:] = False  # padding on the right
    masks = {"none": (), "merged": (seen[None, None],), "window": (seen.triu(-200),)}[mask]
    sums = None
    if has_sums:
        mask = torch.zeros(n, n).masked_fill_(~masks[0].squeeze(), -torch.inf) if masks else None
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        sums = kernel(query, key, key, 0.0, causal, attn_mask=mask)[1].contiguous()
        del mask
    attention = ScoreMap(query, key, masks=masks, is_causal=causal, log_sums=sums)
    attention.value, attention.output_gradient = value, gradient
    few = torch.zeros(1, n)
    few[0, 1] = 1.0
    run = eval(f"lambda r: {product}", {"attention": attention, "torch": torch})
    run(few)  # what is set up the first time is no part of it
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    before = peak()
    assert torch.isfinite(run(r)).all()
    return peak() - before


for case in json.loads(sys.argv[1]):
    sys.stdout.flush()
    if os.fork() == 0:
        print(growth(*case))
        break
    assert os.wait()[1] == 0, case
"""

MEAN, MAX = "attention.vecmat(r)", "attention.residual_vecmat(r, head_fusion='max')"
SIGNED, GATED = "attention.vecmat(torch.stack([r, r - 0.5], 1))", "attention.gated_vecmat(r)"
# product, mask, is causal, log-sums are known
CASES = [
    (MEAN, "none", True, True),
    (MEAN, "merged", False, False),
    (MEAN, "window", False, True),
    (SIGNED, "none", True, False),
    (MAX, "none", False, True),
    (GATED, "none", False, False),
    (GATED, "merged", False, True),
]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_nothing_of_the_size_of_the_weights_is_held():
    """The weights of one head would take 144 MB, a mask of floats as much, one of bools 36 MB."""
    # Large blocks go back to the system at once: what the allocator keeps in pieces would count, now more, now less.
    own = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    command = [sys.executable, "-c", _CODE, json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
    assert done.returncode == 0, done.stderr
    grown = dict(zip(CASES, [int(line) / 1024 for line in done.stdout.split()], strict=True))
    assert max(grown.values()) < 32, grown
