"""Modules that wrap a HuggingFace model, as training code and other libraries do."""

from __future__ import annotations

import torch
from torch import nn


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.inner = model


class Lightning(Wrapper):
    def forward(self, input_ids, attention_mask=None, **kwargs):
        return self.inner(input_ids, attention_mask, **kwargs)


class WithLoss(Lightning):
    def __init__(self, model):
        super().__init__(model)
        self.criterion, self.metric = nn.CrossEntropyLoss(), nn.Linear(1, 1)

    def forward(self, input_ids, attention_mask=None, **kwargs):
        return super().forward(input_ids, attention_mask, **kwargs).logits


class Anything(Wrapper):
    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class ByPosition(Wrapper):
    def forward(self, *args):
        return self.inner(*args)


class ByName(Wrapper):
    def forward(self, **kwargs):
        return self.inner(**kwargs)


class ByNameOfTwoParts(ByName):
    def __init__(self, model):
        super().__init__(model)
        self.scale = nn.Linear(2, 2)


class InOnePiece(Wrapper):
    def forward(self, batch):
        return self.inner(**batch)


class OfAStep(Wrapper):
    def forward(self, batch, batch_idx=None):
        ids, mask, types = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
        return self.inner(ids, attention_mask=mask, token_type_ids=types).logits


class UnderAnyName(Wrapper):
    def forward(self, x):
        return self.inner(x.input_ids, attention_mask=x.attention_mask, token_type_ids=x["token_type_ids"])


class Annotated(Wrapper):
    def forward(self, sample: dict[str, torch.Tensor]):
        return self.inner(**sample)


class InOrder(Wrapper):
    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        return self.inner(input_ids, attention_mask, token_type_ids).logits


class Drops(Wrapper):
    def forward(self, input_ids, attention_mask=None, **kwargs):
        return self.inner(input_ids, attention_mask)


class Renames(Wrapper):
    def forward(self, input_ids, attention_mask=None, **kwargs):
        return self.inner(input_ids, attention_mask, token_type_ids=kwargs.get("kinds"))


class NamelessParts(Wrapper):
    def forward(self, a, b=None, c=None):
        return self.inner(a, b, c)


class _Lora(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        return self.model.forward(*args, **kwargs)


class Peft(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.base_model = _Lora(model)

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None, **kwargs):
        return self.base_model(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )


class PeftThatTells(Peft):
    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)

    def get_base_model(self):
        return self.base_model.model


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def nested(model: nn.Module) -> nn.Module:
    return compiled(nn.DataParallel(PeftThatTells(model)))


def parallel_batches(model: nn.Module) -> nn.Module:
    return nn.DataParallel(InOnePiece(model))


WRAPPERS = [
    Lightning,
    WithLoss,
    Anything,
    ByPosition,
    ByName,
    ByNameOfTwoParts,
    InOnePiece,
    OfAStep,
    UnderAnyName,
    Annotated,
    InOrder,
    Peft,
    PeftThatTells,
    nn.DataParallel,
    torch.optim.swa_utils.AveragedModel,
    compiled,
    compiled_in_place,
    nested,
    parallel_batches,
]
