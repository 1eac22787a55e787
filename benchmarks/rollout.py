"""CPU time and peak memory of capture, raw attention and rollout, as ratios to the plain forward pass.

Run `make bench`. Each case runs in a process of its own, on one torch thread, so that its peak memory is its own; times
are the smallest of several runs, in CPU seconds. The model is a random BERT of MiniLM's size; nothing in the cost
depends on the weights. "eager" is the way without this package: `output_attentions=True` and dense products.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time

import torch

CASES = ["forward", "capture", "raw", "rollout", "eager"]


def build(case: str, n: int):
    """Return the function to time."""
    from transformers import BertConfig, BertForSequenceClassification

    from captum_attn_lime import AttentionAttribution, capture

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=max(512, n),
        attn_implementation="eager" if case == "eager" else "sdpa",
    )
    model = BertForSequenceClassification(config).eval()
    ids = torch.randint(5, 30_000, (1, n))

    def forward(ids):
        return model(input_ids=ids).logits

    def captured():
        with torch.no_grad(), capture(forward):
            forward(ids)

    def eager():
        with torch.no_grad():
            attentions = model(input_ids=ids, output_attentions=True).attentions
            product = torch.eye(n)
            for weights in attentions:
                product = (0.5 * weights.mean(1)[0] + 0.5 * torch.eye(n)) @ product
            return product[0]

    def plain():
        with torch.no_grad():
            return forward(ids)

    if case in ("raw", "rollout"):
        attribution = AttentionAttribution(forward, method=case)
        return lambda: attribution.attribute(ids)
    return {"forward": plain, "capture": captured, "eager": eager}[case]


def measure(case: str, n: int, repeats: int) -> dict[str, float]:
    """Return CPU seconds and megabytes of peak memory above what the process had before its first run."""
    torch.set_num_threads(1)
    function = build(case, n)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.process_time()
        function()
        best = min(best, time.process_time() - start)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": best, "megabytes": (after - before) / 1024}


def in_own_process(case: str, n: int, repeats: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", case, "--tokens", str(n), "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(sizes: list[int], repeats: int) -> str:
    lines = [
        f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, one thread.",
        "",
        "| tokens | forward, CPU s | capture | raw | rollout | eager + dense | peak MB: forward | rollout | eager |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for n in sizes:
        found = {case: in_own_process(case, n, repeats) for case in CASES}
        base = found["forward"]["seconds"]
        ratios = " | ".join(f"{found[c]['seconds'] / base:.2f} x" for c in CASES[1:])
        memory = " | ".join(f"{found[c]['megabytes']:.0f}" for c in ("forward", "rollout", "eager"))
        lines.append(f"| {n} | {base:.3f} | {ratios} | {memory} |")
        print(lines[-1], file=sys.stderr)
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.tokens[0], options.repeats)))
    else:
        print(table(options.tokens, options.repeats))
