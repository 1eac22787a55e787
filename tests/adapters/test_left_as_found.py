"""The model is left as found, also while others run it: a twin answers in another mode, and changes are undone."""

from __future__ import annotations

import copy
import functools
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn

from captum_attn_lime.adapters import TextAdapter, WordTokenizer
from captum_attn_lime.adapters._state import active_model, evaluating, modes_kept
from captum_attn_lime.errors import ForwardError, InputError
from captum_attn_lime.lime import LimeText
from tests.models import text as models
from tests.models.padded import TEXTS, WORDS, Words, bigbird

pytestmark = pytest.mark.filterwarnings("ignore::captum_attn_lime.errors.LimeWarning")


def numpy_state() -> list[int]:
    return np.random.get_state()[1].tolist()  # noqa: NPY002


def use(adapter: TextAdapter) -> None:
    """Do all that an adapter is asked for, with short texts and long ones."""
    x = adapter.encode(TEXTS[0])
    _ = adapter.embedding
    adapter.predict_proba(TEXTS)
    adapter(x.inputs, *x.forward_args)
    lime = LimeText(adapter, seed=0)
    lime.explain(TEXTS[0], 1, num_samples=30)
    lime.attribute(**x.arguments(lime), target=1, n_samples=30)


class Switches(Words):
    """Changes itself on a short input, as BigBird does: a name, a flag, a part, a buffer."""

    def __init__(self):
        super().__init__(long=nn.Linear(16, 16), short=nn.Linear(16, 16))
        self.mode, self.is_long, self.part = "long", True, self.long
        self.register_buffer("scale", torch.ones(1))
        self.runs = 0

    def pooled(self, x, mask):
        self.runs += 1
        if int(mask.sum(dim=1).max()) < 4:
            self.mode, self.is_long, self.part = "short", False, self.short
            self.register_buffer("scale", torch.zeros(1))
        return self.part((x * mask[..., None]).sum(dim=1)) * self.scale


@pytest.mark.filterwarnings("ignore::captum_attn_lime.errors.PaddingWarning")  # a long text in its batch changes it
def test_a_model_that_switches_itself_is_switched_back_after_each_call():
    torch.manual_seed(0)
    model = Switches().eval()
    adapter = TextAdapter(model, WORDS)
    fresh = {text: TextAdapter(copy.deepcopy(model), WORDS).logits(text) for text in TEXTS}
    use(adapter)
    assert (model.mode, model.is_long, model.part is model.long, float(model.scale)) == ("long", True, True, 1.0)
    assert model.runs > 10  # a counter is no mode
    for text in (TEXTS[2], TEXTS[0]):
        np.testing.assert_array_equal(adapter.logits(text), fresh[text])


def test_big_bird_keeps_its_attention():
    torch.manual_seed(0)
    model = bigbird().eval()
    layers = [layer.attention.self for layer in model.bert.encoder.layer]
    use(TextAdapter(model, WORDS))
    assert model.bert.attention_type == "block_sparse"
    assert [layer.attention.self for layer in model.bert.encoder.layer] == layers


class Writes(Words):
    """Writes into its buffers and its inputs, and draws from every generator."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, ids, mask=None):
        self.count += 1
        found = super().forward(ids, mask)
        ids.zero_()
        if mask is not None:
            mask.zero_()
        np.random.seed(3)  # noqa: NPY002
        random.random()
        torch.rand(2)
        return found

    def pooled(self, x, mask):
        return (x * mask[..., None]).sum(dim=1)


def test_buffers_inputs_and_random_state_are_left_as_found():
    torch.manual_seed(0)
    model = Writes().eval()
    adapter = TextAdapter(model, WORDS)
    x = adapter.encode(TEXTS[0])
    before = x.inputs.clone(), [a.clone() for a in x.forward_args]
    adapter(x.inputs, *x.forward_args)
    assert torch.equal(x.inputs, before[0])
    assert all(torch.equal(a, b) for a, b in zip(x.forward_args, before[1], strict=True))
    states = random.getstate(), numpy_state(), torch.get_rng_state()
    adapter.encode(TEXTS[1])
    LimeText(adapter, seed=0).attribute(x.inputs, additional_forward_args=x.forward_args, target=1, n_samples=20)
    assert (random.getstate(), numpy_state()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert float(model.count) == 0


def test_a_buffer_that_is_written_can_still_be_differentiated():
    class Running(Words):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.ones(16))

        def pooled(self, x, mask):
            self.mean.mul_(0.5)
            return x.sum(dim=1) * self.mean

    torch.manual_seed(0)
    model = Running().eval()
    adapter = TextAdapter(model, WORDS)
    adapter(torch.tensor([[2, 3]]), torch.ones(1, 2, dtype=torch.int64))[0, 0].backward()
    assert torch.equal(model.mean, torch.ones(16))
    assert model.embed.weight.grad.abs().sum() > 0


class Noisy(Words):
    """Dropout, batch norm, shared parts, a list of parts, a bound method and a parametrization."""

    def __init__(self):
        super().__init__(drop=nn.Dropout(), norm=nn.BatchNorm1d(16), middle=nn.Linear(16, 16))
        nn.utils.parametrizations.spectral_norm(self.middle)
        self.same = self.middle
        self.parts = [self.drop]
        self.call = self.drop.forward
        self.again = functools.partial(nn.Module.__call__, self.drop)

    def pooled(self, x, mask):
        x = self.again(self.call(self.parts[0](x))) * mask[..., None]
        return self.norm(self.same(self.middle(x.sum(dim=1) / mask.sum(dim=1, keepdim=True))))


def test_a_model_in_training_mode_is_asked_in_eval_mode_and_stays_in_training():
    torch.manual_seed(0)
    model = Noisy().train()
    model.head.eval()
    state = copy.deepcopy(model.state_dict())
    flags = [m.training for m in model.modules()]
    found = TextAdapter(model, WORDS).logits(TEXTS)
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    other = copy.deepcopy(model).eval()
    np.testing.assert_allclose(found, TextAdapter(other, WORDS).logits(TEXTS), atol=1e-6)


def test_a_twin_shares_weights_and_hooks_and_keeps_what_is_shared():
    model, seen = Noisy().train(), []
    model.middle.register_forward_hook(lambda m, args, out: seen.append(m.training))
    with evaluating(model) as twin:
        assert twin.same is twin.middle is not model.middle
        assert twin.parts[0] is twin.drop
        assert twin.head.weight is model.head.weight
        twin(torch.tensor([[2, 3, 4]]))
        with torch.no_grad():
            model.head.bias.fill_(7)
        assert twin.head.bias.tolist() == [7, 7]
    assert seen == [False, False]


@pytest.mark.parametrize("kind", ["scripted", "replaced forward"])
def test_what_can_have_no_twin_is_refused_in_training_mode(kind):
    model = Noisy()
    if kind == "scripted":
        with pytest.warns(DeprecationWarning, match="script"):
            model.drop = torch.jit.script(nn.Dropout())
    else:
        own = model.middle.forward
        model.middle.forward = lambda x: own(x)
    with pytest.raises(InputError, match=r"call model.eval\(\) first"), evaluating(model.train()):
        pass
    assert active_model(model) is model
    with evaluating(model.eval()) as same:
        assert same is model


def test_a_failing_run_leaves_the_model_as_it_was():
    class Fails(Switches):
        def pooled(self, x, mask):
            super().pooled(x, mask)
            raise RuntimeError("no")

    model = Fails().train()
    with pytest.raises(RuntimeError, match="no"), evaluating(model), modes_kept(model):
        active_model(model)(torch.tensor([[2, 3]]))
    with pytest.raises(RuntimeError, match="no"):
        TextAdapter(model, WORDS).predict_proba("bad")
    assert model.mode == "long"
    assert all(m.training for m in model.modules())
    assert active_model(model) is model


def test_other_threads_train_with_dropout_while_one_explains():
    torch.manual_seed(0)
    model, seen, stop = Noisy().train(), {}, threading.Event()
    model.drop.register_forward_pre_hook(
        lambda m, args: seen.setdefault(threading.current_thread().name, set()).add(m.training)
    )

    def train():
        while not stop.is_set():
            model(torch.randint(1, len(WORDS), (4, 5)))

    thread = threading.Thread(target=train, name="trains")
    thread.start()
    try:
        adapter = TextAdapter(model, WORDS)
        for _ in range(3):
            LimeText(adapter, seed=0).explain(TEXTS[0], 1, num_samples=60)
    finally:
        stop.set()
        thread.join()
    assert seen == {"MainThread": {False}, "trains": {True}}


def test_other_threads_see_no_padding_id_that_is_not_the_models():
    torch.manual_seed(0)
    model, wrong, stop = models.gpt2(), [], threading.Event()  # no padding id: a batch of it is refused

    def run():
        while not stop.is_set():
            try:
                model(torch.ones(2, 3, dtype=torch.int64))
            except ValueError:
                continue
            wrong.append(model.config.pad_token_id)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        adapter = TextAdapter(model, models.byte_bpe_tokenizer())
        for _ in range(3):
            adapter.predict_proba(models.CORPUS)
    finally:
        stop.set()
        thread.join()
    assert not wrong
    assert model.config.pad_token_id is None


def test_a_module_is_asked_in_eval_mode_too():
    torch.manual_seed(0)
    model = Noisy().train()
    state = copy.deepcopy(model.state_dict())
    x = torch.tensor([[2, 3, 4, 5]])
    one, two = (LimeText(model, seed=0).attribute(x, target=1, n_samples=40) for _ in range(2))
    assert torch.equal(one, two)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore::captum_attn_lime.errors.PaddingWarning")  # its answers change with the length
@pytest.mark.parametrize("kind", ["dictionary", "object"])
def test_modes_in_what_a_part_holds_are_put_back(kind):
    from types import SimpleNamespace

    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(20, 2)
            self.held = {"mode": "sparse"} if kind == "dictionary" else SimpleNamespace(mode="sparse")

        def forward(self, input_ids, attention_mask=None):
            table = self.held if kind == "dictionary" else vars(self.held)
            if input_ids.shape[1] < 5:
                table["mode"] = "full"
            return self.table(input_ids).mean(dim=1) * (2 if table["mode"] == "full" else 1)

    model = Held().eval()
    adapter = TextAdapter(model, WordTokenizer.fit(["a dull but fine film with a good cast"]))
    x = adapter.encode("a dull but fine film with a good cast")
    adapter.predict_proba(["a film", "a dull but fine film with a good cast"])
    table = model.held if kind == "dictionary" else vars(model.held)
    assert table["mode"] == "sparse"
    with torch.no_grad():
        torch.testing.assert_close(adapter(x.inputs, *x.forward_args), model(x.inputs))


def test_outputs_that_are_nan_are_named():
    class Broken(nn.Module):
        def forward(self, input_ids):
            return torch.full((len(input_ids), 2), float("nan"))

    adapter = TextAdapter(Broken(), WordTokenizer.fit(["a fine film"]))
    with pytest.raises(ForwardError, match="gave NaN for text 0"):
        adapter.predict_proba("a fine film")
    with pytest.raises(ForwardError, match="returned NaN"):
        LimeText(adapter).explain("a fine film", num_samples=20)


def test_fewer_positions_than_tokens():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.place = nn.Embedding(20, 2), nn.Embedding(4, 2)

        def forward(self, input_ids):
            return (self.table(input_ids) + self.place(torch.arange(input_ids.shape[1]))).mean(dim=1)

    adapter = TextAdapter(Positions(), WordTokenizer.fit(["a dull but fine film"]))
    with pytest.raises(ForwardError, match="max_length="):
        adapter.predict_proba("a dull but fine film")
