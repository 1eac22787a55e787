"""Shared state comes back as it was, also after exceptions and with several threads."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from captum_attn_lime.adapters.state import evaluating, fast_path_off, padding_id


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


def test_training_flags_come_back_module_by_module():
    model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Dropout(), nn.Dropout())).train()
    model[1][0].eval()
    before = [m.training for m in model.modules()]
    with evaluating(model):
        with pytest.raises(KeyError), evaluating(model):
            _fail_if_not(not any(m.training for m in model.modules()))
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == before


def test_a_padding_id_is_lent_and_the_models_own_comes_back():
    class Config:
        pad_token_id = None

    model = nn.Linear(1, 1)
    model.config = Config()
    with pytest.raises(KeyError), padding_id(model, 7):
        _fail_if_not(model.config.pad_token_id == 7)
    assert model.config.pad_token_id is None
    model.config.pad_token_id = 3
    with padding_id(model, 7):
        assert model.config.pad_token_id == 7
    assert model.config.pad_token_id == 3
    with padding_id(nn.Linear(1, 1), 7):  # no configuration, nothing to lend to
        pass
