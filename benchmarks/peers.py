"""Other packages that compute the same quantities on the same models: time, memory and difference of results.

It needs an environment of its own: `make bench-peers` makes it, in benchmarks/.peers.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import models
import torch
from measure import Options
from torch import Tensor

from captum_attn_lime import AttentionAttribution

PATCH = 16
_KEPT: list[object] = []


@dataclass
class Pair:
    """A peer and ours on the same model and input; both calls return scores in the same form.

    Attributes:
        peer: The peer's call.
        ours: Ours.
        same: Takes the results of both and returns two tensors to be compared.
        note: What was done so that the peer runs, or what else it computes.
    """

    peer: Callable[[], Any]
    ours: Callable[[], Any]
    same: Callable[[Any, Any], tuple[Tensor, Tensor]]
    note: str


def vision(n: int) -> tuple[torch.nn.Module, torch.nn.Module, Tensor]:
    """Return a random ViT with fused attention, a copy without it, and an image of at least n patches."""
    import timm

    side = PATCH * round(n**0.5)
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224", pretrained=False, img_size=side).eval().requires_grad_(False)
    unfused = copy.deepcopy(model)
    for block in unfused.blocks:
        block.attn.fused_attn = False
    torch.manual_seed(1)
    return model, unfused, torch.randn(1, 3, side, side)


def fast_vit_rollout(n: int) -> Pair:
    """Rollout of a ViT by fast-vit-rollout, without discarding."""
    model, unfused, image = vision(n)
    peer = importlib.import_module("fast_vit_rollout").ViTAttentionRollout(unfused, discard_ratio=0.0)
    ours = AttentionAttribution(model, method="rollout")
    return Pair(
        lambda: peer(image),
        lambda: ours.attribute(image, target=0),
        lambda theirs, own: (theirs[0, 0, 1:], patches(own)),
        "fused attention switched off for it by hand (RuntimeError otherwise); discard_ratio=0",
    )


def torchxai_explain(n: int) -> Pair:
    """Rollout of a ViT by torchxai-explain, with the mean over heads and without discarding."""
    model, _, image = vision(n)
    methods = importlib.import_module("torchxai.methods.attention_rollout")
    peer = methods.AttentionRollout(copy.deepcopy(model), head_fusion="mean", discard_ratio=0.0)
    ours = AttentionAttribution(model, method="rollout")
    return Pair(
        lambda: peer._compute_cam(image, None),  # what its call scales to [0, 1] and resizes
        lambda: ours.attribute(image, target=0),
        lambda theirs, own: (torch.from_numpy(theirs).flatten(), patches(own)),
        'switches fused attention off itself; head_fusion="mean", discard_ratio=0; before it scales to [0, 1]',
    )


def inseq(n: int) -> Pair:
    """Attention weights of GPT-2 by inseq: one generated token after a prompt of n tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=1000,
        n_positions=n + 8,
        n_embd=models.WIDTH,
        n_layer=models.LAYERS,
        n_head=models.HEADS,
        bos_token_id=0,
        eos_token_id=0,
    )
    fused = GPT2LMHeadModel(config).eval().requires_grad_(False)
    eager = copy.deepcopy(fused)
    eager.set_attn_implementation("eager")
    tokenizer = words(1000)
    torch.manual_seed(1)
    ids = torch.randint(1, 1000, (1, n))
    prompt = tokenizer.decode(ids[0])
    package = importlib.import_module("inseq")
    peer = package.load_model(eager, "attention", tokenizer=tokenizer, device="cpu")
    ours = AttentionAttribution(lambda x: fused(input_ids=x).logits[:, -1], method="raw")

    def attribute() -> Any:
        told = {"show_progress": False, "attr_pos_start": n, "attr_pos_end": n + 1}
        return peer.attribute(prompt, generated_texts=f"{prompt} w5", **told)

    def same(theirs: Any, own: Tensor) -> tuple[Tensor, Tensor]:
        weights = theirs.sequence_attributions[0].target_attributions  # (tokens, generated, layers, heads)
        return weights[:n, 0, -1].mean(dim=-1), own[0]

    return Pair(
        attribute, lambda: ours.attribute(ids, target=0), same, "gives all layers and heads; ours the last's mean"
    )


def words(size: int) -> Any:
    """Return a tokenizer of the words w1, w2, ..., built here to avoid a download."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"<eos>": 0} | {f"w{i}": i for i in range(1, size)}, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<eos>", pad_token="<eos>")


def patches(pixels: Tensor) -> Tensor:
    """Return the patches' values from the pixels' (1, 3, H, W)."""
    return pixels[0, 0, ::PATCH, ::PATCH].flatten()


PEERS: dict[str, tuple[Callable[[int], Pair], str, tuple[int, ...]]] = {
    "fast-vit-rollout": (fast_vit_rollout, "rollout, timm ViT-S/16", (196, 784, 1600)),
    "torchxai-explain": (torchxai_explain, "rollout, timm ViT-S/16", (196, 784, 1600)),
    "inseq": (inseq, "attention, GPT-2 of 6 layers", (128, 512, 1024)),
}


def build(case: str, n: int, device: str = "cpu") -> Callable[[], Any]:
    """Return one side of a pair; the case is named ``"PEER peer"`` or ``"PEER ours"``."""
    _let_torchvision_be_imported()
    name, side = case.split()
    return getattr(PEERS[name][0](n), side)


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row per peer and size; for a peer that does not run, its error."""
    _let_torchvision_be_imported()
    rows = []
    for name, (make, what, sizes) in PEERS.items():
        for n in options.sizes or sizes:
            row: dict[str, Any] = {"peer": name, "what": what, "n": n}
            try:
                row |= {"version": importlib.metadata.version(name)} | compared(make(n), options)
            except Exception as error:  # whatever a peer raises belongs on the page
                row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
            else:
                for side in ("peer", "ours"):
                    row[f"{side} bytes"] = measure.in_own_process("peers", f"{name} {side}", n=n, calls=2)
            print(row, file=sys.stderr)
            rows.append(row)
    return rows


def compared(pair: Pair, options: Options) -> dict[str, Any]:
    """Return the times of both and the largest difference of their results."""
    theirs, own = pair.same(pair.peer(), pair.ours())
    times = measure.interleaved({"peer": pair.peer, "ours": pair.ours}, seconds=options.seconds / 3)
    return {
        "note": pair.note,
        "difference": float((theirs - own).abs().max()),
        "greatest": float(own.abs().max()),
        "rounds": len(times["peer"]),
        "peer seconds": measure.median(times["peer"]),
        "ours seconds": measure.median(times["ours"]),
        "ratio": measure.ratio(times["peer"], times["ours"]),
    }


def _let_torchvision_be_imported() -> None:
    """Declare two operators if torchvision's compiled part does not match the installed torch.

    There is no CPU build of torchvision for every torch; timm, fast-vit-rollout and transformers, where they find it,
    need its Python part alone.
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
