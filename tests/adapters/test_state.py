"""Shared state comes back as it was, also after exceptions and with several threads."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from captum_attn_lime.adapters._model_config import padding_token
from captum_attn_lime.adapters._state import active_model, evaluating, fast_path_off
from captum_attn_lime.adapters.text._padding import padding_id


def _fail_if_not(holds: bool) -> None:
    assert holds
    raise KeyError


@pytest.mark.parametrize("was", [True, False])
def test_the_fast_path_comes_back_after_an_exception(was):
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(was)
    try:
        with pytest.raises(KeyError), fast_path_off(), fast_path_off():
            _fail_if_not(not torch.backends.mha.get_fastpath_enabled())
        assert torch.backends.mha.get_fastpath_enabled() is was
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_the_last_thread_out_switches_the_fast_path_on_again():
    inside, leave = threading.Event(), threading.Event()

    def other():
        with fast_path_off():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with fast_path_off():
        thread.start()
        assert inside.wait(10)
    assert not torch.backends.mha.get_fastpath_enabled()  # the other thread still needs it off
    leave.set()
    thread.join()
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_twin_is_asked_in_eval_mode_and_the_model_keeps_its_flags():
    model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Dropout(), nn.Dropout())).train()
    model[1][0].eval()
    before = [m.training for m in model.modules()]
    with evaluating(model) as outer:
        assert active_model(model) is outer
        with pytest.raises(KeyError), evaluating(model) as inner:
            _fail_if_not(inner is outer and not any(m.training for m in inner.modules()))
        assert [m.training for m in model.modules()] == before
        assert outer[0].weight is model[0].weight  # its weights, not copies of them
    assert active_model(model) is model


def test_a_padding_id_is_another_configuration_of_a_twin():
    class Config:
        pad_token_id = None

    model = nn.Linear(1, 1)
    model.config = own = Config()
    with pytest.raises(KeyError), padding_id(model, 7):
        _fail_if_not(active_model(model).config.pad_token_id == padding_token(model) == 7 and own.pad_token_id is None)
    assert active_model(model) is model
    model.config.pad_token_id = 3
    with padding_id(model, 7):
        assert (model.config.pad_token_id, active_model(model).config.pad_token_id) == (3, 7)
    with padding_id(nn.Linear(1, 1), 7):  # no configuration, nothing to give an id to
        pass
