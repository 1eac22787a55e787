"""The ways of calling a model: compiled, wrapped, quantised, offloaded, checkpointed, in other precisions."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from captum_attn_lime import AttentionAttribution, capture
from captum_attn_lime.errors import UnreadableAttentionError
from tests.families import EncoderClassifier, HandWritten, bert, build, gpt2, hand_written, llama, torch_encoder, vit

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

MAKERS = [bert, gpt2, llama, vit, torch_encoder, hand_written]
makers = pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)


def _weights(model, run):
    with torch.no_grad(), capture(model) as maps:
        output = run()
    return [m.dense() for m in maps], [m.name for m in maps], [m.kind for m in maps], output


def _assert_same(found, expected, tolerance=0.0):
    assert found[1:3] == expected[1:3]
    for a, b in zip(found[0], expected[0], strict=True):
        assert (a - b).abs().max() <= tolerance


@makers
def test_compiled_models_are_seen_and_stay_compiled(make):
    family = build(make)
    expected = _weights(family.model, family.run)
    compiled = torch.compile(copy.deepcopy(family.model), backend="eager")
    runs = []

    def count(graph, inputs):
        runs.append(graph)
        return graph

    watched = torch.compile(copy.deepcopy(family.model), backend=count)
    if make in (torch_encoder, hand_written):
        with torch.no_grad():
            watched(family.inputs, *family.args)
        compiled_graphs = len(runs)
        assert compiled_graphs >= 1
        found = _weights(watched, lambda: watched(family.inputs, *family.args))
        _assert_same(found, expected)
        with torch.no_grad():
            watched(family.inputs, *family.args)
        assert len(runs) == compiled_graphs  # nothing was compiled anew
        return
    named = {"pixel_values": family.inputs} if make is vit else {"input_ids": family.inputs}
    if family.args:
        named["attention_mask"] = family.args[0]
    _assert_same(_weights(compiled, lambda: compiled(**named)), expected)


def test_modules_compiled_in_place_and_functions_are_seen():
    model = build(hand_written).model
    inputs = build(hand_written).inputs
    expected = _weights(model, lambda: model(inputs))
    part = copy.deepcopy(model)
    part.layers[1].compile(backend="eager")
    _assert_same(_weights(part, lambda: part(inputs)), expected)

    @torch.compile(backend="eager")
    def score(ids):
        return model(ids).softmax(-1)

    with torch.no_grad():
        score(inputs)
    _assert_same(_weights(score, lambda: score(inputs)), expected)
    scores = AttentionAttribution(torch.compile(model, backend="eager")).attribute(inputs)
    assert torch.equal(scores, AttentionAttribution(model).attribute(inputs))


def test_compiled_models_in_two_threads():
    models = [torch.compile(build(hand_written).model, backend="eager") for _ in range(2)]
    inputs = build(hand_written).inputs
    expected = AttentionAttribution(models[0]).attribute(inputs)
    found = [None, None]

    def work(i):
        for _ in range(5):
            found[i] = AttentionAttribution(models[i]).attribute(inputs)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(f, expected) for f in found)
    assert torch._dynamo.eval_frame._stance.stance == "default"


@makers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_models(make, dtype):
    exact = _weights((family := build(make)).model, family.run)
    half = build(make, dtype)
    found = _weights(half.model, half.run)
    assert found[1:3] == exact[1:3]
    real = half.args[0].bool()[:, None, :, None] if half.args else torch.ones(1, 1, 1, 1)
    for a, b in zip(found[0], exact[0], strict=True):
        assert a.dtype == torch.float32  # at least
        assert ((a - b).abs() * real).max() < (0.2 if dtype == torch.bfloat16 else 0.05)
        assert (((a.sum(-1) - 1).abs()) * real[..., 0]).max() < (0.02 if dtype == torch.bfloat16 else 2e-3)
    scores = AttentionAttribution(half.forward).attribute(half.inputs, additional_forward_args=half.args)
    cells = scores.sum(dim=1) if scores.dim() == 2 else scores[:, 0, ::8, ::8].sum(dim=(1, 2))
    assert bool((cells > 0.5).all())


@makers
def test_autocast(make):
    family = build(make)
    with torch.autocast("cpu", torch.bfloat16):
        expected = family.run()
        with torch.no_grad(), capture(family.model) as maps:
            assert torch.equal(family.run(), expected) or make is torch_encoder
        scores = AttentionAttribution(family.forward).attribute(family.inputs, additional_forward_args=family.args)
    assert len(maps) == 3
    assert all(m.kind == "self" for m in maps)
    assert torch.isfinite(scores).all()
    assert scores.shape == family.inputs.shape


@makers
def test_inference_mode(make):
    family = build(make)
    expected = AttentionAttribution(family.forward).attribute(family.inputs, additional_forward_args=family.args)
    with torch.inference_mode():
        with capture(family.model) as maps:
            inside = family.forward(family.inputs, *family.args)
        weights = [m.dense() for m in maps]
        scores = AttentionAttribution(family.forward).attribute(family.inputs, additional_forward_args=family.args)
    assert inside.is_inference()
    assert torch.equal(scores, expected)
    for a, b in zip(weights, _weights(family.model, family.run)[0], strict=True):
        assert (a - b).abs().max() <= 1e-6


class Checkpointed(HandWritten):
    """Each layer is run again in the backward pass instead of keeping what it computed."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, ids, mask=None):
        x = self.embed(ids)
        for layer in self.layers:
            x = x + checkpoint(layer, x, mask, use_reentrant=self.reentrant)
        return self.head(x[:, 0])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_gradient_checkpointing(reentrant):
    plain = build(hand_written)
    model = Checkpointed(reentrant).eval()
    model.load_state_dict(plain.model.state_dict())
    expected = _weights(plain.model, plain.run)
    with capture(model) as maps:
        output = model(plain.inputs, *plain.args)
        output.sum().backward()
    assert [m.name for m in maps][:3] == expected[1]
    for attention, weights in zip(maps[:3], expected[0], strict=True):
        assert (attention.dense() - weights).abs().max() <= 1e-6
    scores = AttentionAttribution(model).attribute(plain.inputs, additional_forward_args=plain.args)
    assert torch.equal(scores, AttentionAttribution(plain.model).attribute(plain.inputs, None, plain.args))


def test_huggingface_gradient_checkpointing():
    family = build(bert)
    expected = AttentionAttribution(family.forward).attribute(family.inputs, additional_forward_args=family.args)
    old = family.model.gradient_checkpointing_enable
    getattr(family.model, "activation_checkpointing_enable", old)()
    family.model.train()
    for module in family.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for layer in family.model.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.0
    scores = AttentionAttribution(family.forward).attribute(family.inputs, additional_forward_args=family.args)
    assert (scores - expected).abs().max() <= 1e-6


def test_data_parallel_is_unwrapped():
    family = build(torch_encoder)
    expected = _weights(family.model, family.run)
    wrapped = nn.DataParallel(family.model)
    _assert_same(_weights(wrapped, lambda: wrapped(family.inputs, *family.args)), expected)
    scores = AttentionAttribution(wrapped).attribute(family.inputs, additional_forward_args=family.args)
    plain = AttentionAttribution(family.model).attribute(family.inputs, additional_forward_args=family.args)
    assert torch.equal(scores, plain)


def test_distributed_data_parallel_is_unwrapped(tmp_path):
    import torch.distributed as dist

    family = build(torch_encoder)
    expected = _weights(family.model, family.run)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(family.model)
        _assert_same(_weights(wrapped, lambda: wrapped(family.inputs, *family.args)), expected)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("make", [bert, llama, vit, hand_written], ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_dynamically_quantised_linear_layers(make):
    family = build(make)
    expected = _weights(family.model, family.run)
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(family.model), {nn.Linear}, torch.qint8)
    assert any("quantized" in type(m).__module__ for m in quantised.modules())

    def run():
        named = {"pixel_values": family.inputs} if make is vit else {"input_ids": family.inputs}
        if make is hand_written:
            return quantised(family.inputs, *family.args)
        return quantised(**named, **({"attention_mask": family.args[0]} if family.args else {})).logits

    found = _weights(quantised, run)
    assert found[1:3] == expected[1:3]  # names, and "self" though no projection was seen
    if make is hand_written:
        # The weights are those of the quantised model: its own softmax, recomputed.
        from tests.reference.eager import recorded_weights

        with torch.no_grad(), recorded_weights() as recomputed:
            run()
        for a, b in zip(found[0], recomputed, strict=True):
            assert (a.double() - torch.from_numpy(b)).abs().max() < 1e-6
    else:
        with torch.no_grad():
            quantised.set_attn_implementation("eager")
            named = {"pixel_values": family.inputs} if make is vit else {"input_ids": family.inputs}
            named |= {"attention_mask": family.args[0]} if family.args else {}
            attentions = quantised(**named, output_attentions=True).attentions
            quantised.set_attn_implementation("sdpa")
        real = family.args[0].bool()[:, None, :, None] if family.args else torch.ones(1, 1, 1, 1)
        for a, b in zip(found[0], attentions, strict=True):
            # Quantised inputs jump where they round: fused and eager outputs differ by one step in later layers.
            assert ((a - b) * real).abs().max() < 0.05
        assert ((found[0][0] - attentions[0]) * real).abs().max() < 1e-6


@pytest.mark.parametrize("make", [bert, llama], ids=lambda f: f.__name__)
def test_offloaded_weights(make, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    family = build(make)
    expected = _weights(family.model, family.run)
    scores = AttentionAttribution(family.forward).attribute(family.inputs, additional_forward_args=family.args)
    accelerate.disk_offload(family.model, tmp_path, execution_device="cpu")
    assert any(p.is_meta for p in family.model.parameters())
    _assert_same(_weights(family.model, family.run), expected)
    again = AttentionAttribution(family.forward).attribute(family.inputs, additional_forward_args=family.args)
    assert torch.equal(again, scores)


def test_a_model_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for make in MAKERS:
        family = build(make)
        expected = AttentionAttribution(family.forward).attribute(family.inputs, additional_forward_args=family.args)
        family.model.cuda()
        args = tuple(x.cuda() for x in family.args)
        scores = AttentionAttribution(family.forward).attribute(family.inputs.cuda(), additional_forward_args=args)
        assert scores.is_cuda
        assert (scores.cpu() - expected).abs().max() < 1e-3


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_scripted_attention_is_refused_by_name():
    ids = torch.tensor([[2, 5, 3]])
    traced = torch.jit.trace(EncoderClassifier().eval(), ids, check_trace=False)
    with pytest.raises(UnreadableAttentionError, match="TorchScript"), capture(traced):
        traced(ids)
    # Also beside layers that are seen.
    part = build(hand_written).model
    part.layers[1] = torch.jit.trace(part.layers[1], (torch.randn(1, 3, 32), torch.ones(1, 3)), check_trace=False)
    with pytest.raises(UnreadableAttentionError, match=r"layers\.1.*TorchScript"), capture(part):
        part(ids, torch.ones(1, 3))
    # A scripted part without attention is no reason to refuse.
    other = build(hand_written).model
    other.head = torch.jit.trace(other.head, torch.randn(1, 32))
    with capture(other) as maps:
        other(ids)
    assert len(maps) == 3
