"""`TokenModel`: an adapter of a model over rows of token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_attn_lime._explained import Unit
from captum_attn_lime._util.progress import progress
from captum_attn_lime._util.random import without_drawing
from captum_attn_lime.adapters._base import Adapter
from captum_attn_lime.adapters._model_config import lacks_padding_token, padding_token
from captum_attn_lime.adapters._outputs import Array
from captum_attn_lime.adapters._state import evaluating
from captum_attn_lime.adapters.text import _raw as raws
from captum_attn_lime.adapters.text._batch_effects import Batching, Side
from captum_attn_lime.adapters.text._batches import check_rows, rows_of
from captum_attn_lime.adapters.text._binding import Binding
from captum_attn_lime.adapters.text._model_facts import ModelFacts
from captum_attn_lime.adapters.text._padding import padding_id, unambiguous_padding, unused_id, with_padding
from captum_attn_lime.adapters.text._raw import Raw
from captum_attn_lime.adapters.text._rows import ListedRows, TokenRows, batches, rounded, row_of, tensors_of
from captum_attn_lime.adapters.text._special_tokens import empty_token
from captum_attn_lime.adapters.text._tasks import Head, Task
from captum_attn_lime.adapters.text._tasks.next_token import of_target
from captum_attn_lime.adapters.text._tokenize import PlainIds, Tokenizing, Tokens
from captum_attn_lime.errors import InputError


class TokenModel(Adapter):
    """A model over rows of token ids: the half of a :class:`TextAdapter` below the tokenizer.

    LIME and metrics run altered texts through it as rows of tokens.

    Attributes:
        batch_tokens: Greatest number of tokens that run at once.
        pad_id: The token id used as padding.
        mask_id: The token id that replaces a removed word.
    """

    batch_tokens: int
    pad_id: int
    mask_id: int
    _ending: int  # number of tokens at a text's end that have the padding id
    _head: Head
    _facts: ModelFacts
    _tokenizing: Tokenizing

    @property
    def task(self) -> Task:
        """What the model predicts."""
        return self._head.task

    def token_rows(self, texts: Sequence[Raw]) -> list[PlainIds]:
        """Return the tokens of texts or pairs as the model gets them: truncated, and none empty."""
        return rows_of(self._tokenizing, texts)

    def token_ids(self, text: str) -> list[int]:
        """Return the token ids of a piece of text, without special tokens."""
        return self._tokenizing.plain(text)

    @property
    def empty_id(self) -> int:
        """The token id that represents an empty text."""
        return empty_token(self._tokenizing)

    @property
    def argument_names(self) -> tuple[str, ...]:
        """The arguments of :meth:`forward` after the ids, in order: "attention_mask" and "token_type_ids", if taken."""
        takes = {"attention_mask": self._binding.mask is not None, "token_type_ids": self._takes_types}
        return tuple(name for name, is_taken in takes.items() if is_taken)

    def outputs_of(self, *tensors: Tensor, padding: int | None = None) -> Array:
        """Return the model's outputs for one batch of encoded texts, float64; see :meth:`Adapter.outputs_of`.

        Args:
            tensors: Ids and further arguments, each (n, N).
            padding: A token id of :meth:`spare_padding` that replaces hidden cells and is the model's only padding id
                in this call.
        """
        with with_padding(self, padding, tensors) as padded:
            return super().outputs_of(*padded)

    def token_scores(self, *tensors: Tensor, target: Any, unit: Unit, padding: int | None = None) -> Array:
        """Return one class's logits or probabilities for one batch of encoded texts, (n, 1) float64.

        It saves the memory for all classes of a vocabulary. The other arguments are those of :meth:`outputs_of`.
        """
        with evaluating(self.model), torch.no_grad(), without_drawing(), with_padding(self, padding, tensors) as padded:
            outputs = self(*padded)
            kind = self._kind_of(outputs, lambda: tuple(t[:1] for t in padded))
        if kind == "logits":
            found: Array = of_target(outputs, self.with_token_ids(target), probability=unit == "probability")
            return found
        return self._column(self._in_unit(outputs.double(), unit, kind).cpu().numpy(), target)

    def spare_padding(self, used: Iterable[int]) -> int | None:
        """Return an unused token id for padding in one call; None for models without a padding id.

        Causal classifiers read the last token that does not have the padding id. They would still read a hidden token
        with another id, and would skip a word that has this id.

        Args:
            used: The ids of real tokens.

        Raises:
            InputError: Every id of the vocabulary is used.
        """
        current = padding_token(self.model)
        if self.task != "classification" or (current is None and not lacks_padding_token(self.model)):
            return None  # the adapter reads by the mask, or the model knows no padding id
        # Not the model's own: RoBERTa counts positions without it.
        return unused_id(self.model, {current, *used}, first=self.mask_id)

    def run_rows(
        self,
        rows: TokenRows,
        run: Callable[..., Array],
        *,
        batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Array:
        """Return the result of ``run`` for rows of tokens, (n, columns).

        Rows of similar length share batches of at most ``batch_tokens`` tokens. If padding, or the other rows of a
        batch, change a row's output, rows run apart.

        Args:
            rows: The rows, at least one.
            run: Function of the tensors of a batch that returns (batch, columns), such as :meth:`outputs_of`.
            batch_size: Greatest number of rows at once.
            show_progress: Show a progress bar over the rows.
        """
        lengths = np.maximum(rows.lengths, 1)
        tried = np.unique(np.argsort(lengths, kind="stable")[[0, len(lengths) // 2, -1]])
        batching = self.batching([row_of(self, rows, int(k)) for k in tried], rows.longest)
        exact, most = batching.side is None, 1 if batching.alone else batch_size
        widths = lengths if exact else rounded(lengths, rows.longest)
        budget = self.tokens_at_once(int(lengths.max()))
        found: Array = np.empty((0, 0))
        with evaluating(self.model), torch.no_grad(), progress(len(lengths), show_progress, "texts") as tick:
            for batch in batches(widths.tolist(), budget, exact=exact, most=most):
                ids, further = tensors_of(self, rows, batch, int(widths[batch].max()), batching.side or "right")
                with without_drawing():
                    values = run(ids, *further)
                found = found if found.size else np.empty((len(lengths), values.shape[1]))
                found[batch] = values
                tick(len(batch))
        return found

    def tokens_at_once(self, longest: int) -> int:
        """Return the greatest number of tokens to run at once, given the longest row.

        On a CPU more tokens at once cost more time per token, because activations no longer fit the caches.
        """
        return min(self.batch_tokens, max(1024, 8 * longest)) if self.device.type == "cpu" else self.batch_tokens

    def check_one_row(self) -> None:
        """Raise if the model predicts for each token, not for a text.

        Raises:
            InputError: The task is ``"tokens"`` or ``"spans"``.
        """
        self._head.check_one_row(type(self.model).__name__)

    def batching(self, rows: Sequence[Tokens | PlainIds], longest: int | None = None) -> Batching:
        """Return how rows of tokens may share batches; probes the model the first time.

        Args:
            rows: Some rows.
            longest: The number of tokens to which they are padded; by default the longest row's.

        Warns:
            PaddingWarning: Once, if padding changes the model's output.
        """
        check_rows(self, rows)
        return self._facts.batching(self, rows, longest)

    def names_of(self, n: int) -> Sequence[str] | None:
        """Return the names of n classes, if any; None for a vocabulary, whose classes are tokens."""
        return None if self._head.is_over_vocabulary(self.model) else super().names_of(n)

    def forward(self, *tensors: Tensor, **named: Any) -> Tensor:
        """Return the model's outputs for encoded texts; the shape depends on the task."""
        raws.check_by_position(tensors, named)
        if not self._facts.is_alone or not tensors or len(tensors[0]) < 2:
            return super().forward(*tensors)
        return torch.cat([self(*(x[k : k + 1] for x in tensors)) for k in range(len(tensors[0]))])

    @property
    def _binding(self) -> Binding:
        return self._facts.binding

    def _call(self, tensors: tuple[Tensor, ...]) -> Any:
        ids, further = tensors[0], list(tensors[1:])
        takes = self.argument_names
        if len(further) > len(takes):
            raise InputError(
                f"{type(self.model).__name__} takes token ids{''.join(f', {name}' for name in takes)}, but got "
                f"{len(tensors)} tensors."
            )
        raws.check_ids_tensor(ids)
        named = dict(zip(takes, further, strict=False))
        mask = named.get("attention_mask")
        types = named.get("token_type_ids")
        options = self._head.options(self.model, ids, mask)
        padding: int | None = None
        if ids.dim() == 2 and self.task == "classification":
            ids, padding = unambiguous_padding(self.model, ids, mask, self._ending)
        with nullcontext() if padding is None else padding_id(self.model, padding):
            return self._binding.call(self._active_model, ids, mask, types, **options)

    def _read(self, output: Any, tensors: tuple[Tensor, ...]) -> Tensor:
        mask = tensors[1] if self._binding.mask is not None and len(tensors) > 1 else None
        return self._head.read(output, tensors[0], mask, type(self.model).__name__)

    def _tensors(self, rows: Sequence[Tokens | PlainIds], length: int, side: Side) -> tuple[Tensor, tuple[Tensor, ...]]:
        return tensors_of(self, ListedRows(rows), range(len(rows)), length, side)

    @property
    def _takes_types(self) -> bool:
        return self._tokenizing.types and self._binding.types is not None

    def _altered(self, tensors: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
        ids, *further = tensors
        if ids.dim() != 2:
            return super()._altered(tensors)
        half = ids.clone()
        half[:, ids.shape[1] // 2 :] = ids[:, :1]
        return [(torch.full_like(ids, self.mask_id), *further), (half, *further)]

    @property
    def _excluding_dim(self) -> int:
        return 1 if self.task == "spans" else -1  # the start of an answer is one of the tokens
