"""Relevance of small models beside that of retained probabilities."""

from __future__ import annotations

import numpy as np
import torch

from captum_attn_lime import AttentionAttribution
from tests.families import HandWritten
from tests.reference.relevance import gated_softmaxes, relevance_rows

TARGETS = [0, 2]


def relevance(model, *inputs, target=TARGETS, args=(), query="auto", token_map=None, **options):
    attribution = AttentionAttribution(model, method="relevance", **options)
    inputs = inputs[0] if len(inputs) == 1 else inputs
    return attribution.attribute(inputs, target=target, additional_forward_args=args, query=query, token_map=token_map)


def dense(model, *inputs, query, targets=TARGETS):
    """The relevance of tokens by retained probabilities, for self-attention models of one stack."""
    layers = gated_softmaxes(lambda: model(*inputs), lambda y: y[torch.arange(len(y)), targets].sum())
    return relevance_rows(layers, query)


def first_row(batch=2, n=7):
    return np.eye(n)[[0] * batch]


def near(found, expected, tolerance=1e-10):
    return np.abs(found.double().numpy() - expected).max() <= tolerance * np.abs(expected).max()


def strong_model():
    """Hand-written attention in float64, with outputs that depend on it strongly."""
    made = HandWritten().double().eval()
    made.head.weight.data.mul_(20)
    return made


def like(model, kind, *args):
    """A model of another kind with the same weights."""
    made = kind(*args).to(next(model.parameters()).dtype).eval()
    made.load_state_dict(model.state_dict(), strict=False)
    return made
