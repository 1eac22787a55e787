"""Products take memory that grows with the tokens: measured in processes of their own, at 6,000 tokens."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_CODE = """
import resource, sys, torch
torch.set_num_threads(1)
from captum_attn_lime.attention import ScoreMap
n = 6000
query, key, value, gradient = torch.randn(4, 1, 2, n, 16)
r = torch.rand(1, n)
seen = torch.ones(n, n, dtype=torch.bool).tril()
seen[:, 5000:] = False  # padding on the right
masks = {{"none": (), "merged": (seen[None, None],), "window": (seen.triu(-200),)}}["{mask}"]
sums = None
if {sums}:
    mask = torch.zeros(n, n).masked_fill_(~masks[0].squeeze(), -torch.inf) if masks else None
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    sums = kernel(query, key, key, 0.0, {causal}, attn_mask=mask)[1].contiguous()
    del mask
attention = ScoreMap(query, key, masks=masks, is_causal={causal}, log_sums=sums)
attention.value, attention.output_gradient = value, gradient
few = torch.zeros(1, n)
few[0, 1] = 1.0


def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])


def run(r):
    return {product}


run(few)  # what is imported and set up the first time is no part of it
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = peak()
found = run(r)
assert torch.isfinite(found).all()
print(peak() - before)
"""

MEAN, MAX = "attention.vecmat(r)", "attention.residual_vecmat(r, head_fusion='max')"
SIGNED, GATED = "attention.vecmat(torch.stack([r, r - 0.5], 1))", "attention.gated_vecmat(r)"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("product", "mask", "causal", "sums"),
    [
        (MEAN, "none", True, True),
        (MEAN, "merged", False, False),
        (MEAN, "window", False, True),
        (SIGNED, "none", True, False),
        (MAX, "none", False, True),
        (GATED, "none", False, False),
        (GATED, "merged", False, True),
    ],
)
def test_nothing_of_the_size_of_the_weights_is_held(product, mask, causal, sums):
    """The weights of one head would take 144 MB, a mask of floats as much, one of bools 36 MB."""
    code = _CODE.format(product=product, mask=mask, causal=causal, sums=sums)
    # Large blocks go back to the system at once: what the allocator keeps in pieces would count, now more, now less.
    own = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=own)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) / 1024 < 32
