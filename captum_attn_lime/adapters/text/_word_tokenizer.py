"""`WordTokenizer`: a tokenizer whose tokens are words, for hand-written models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from captum_attn_lime.adapters.text._words import WORD_PATTERN, Span, find_words
from captum_attn_lime.errors import TokenizerError


class WordTokenizer:
    """Maps each word of a text to an id.

    Args:
        vocabulary: Word to id; words in lower case if ``lower``.
        pad: Padding token, if the vocabulary has it.
        unknown: Token for all other words; if the vocabulary lacks it, an unknown word raises.
        separator: Token between the two texts of a pair; if the vocabulary lacks it, pairs raise.
        pattern: Regular expression of one word.
        lower: Whether words are looked up in lower case.

    Attributes:
        pad_token_id: Id of the padding token, or None.
        unk_token_id: Id of the unknown token, or None.
        sep_token_id: Id of the separator, or None.

    Example:
        >>> tokenizer = WordTokenizer.fit(["a fine film", "a dull film"])
        >>> tokenizer.encode("A fine play")
        [2, 5, 1]
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        *,
        pad: str = "<pad>",
        unknown: str = "<unk>",
        separator: str = "<sep>",
        pattern: str = WORD_PATTERN,
        lower: bool = True,
    ) -> None:
        if not vocabulary:
            raise TokenizerError("the vocabulary is empty; pass a dict of word to id, or use WordTokenizer.fit(texts).")
        wrong = [w for w, i in vocabulary.items() if not isinstance(w, str) or not isinstance(i, int) or i < 0]
        if wrong:
            raise TokenizerError(f"a vocabulary maps words to ids from 0, but the entry of {wrong[0]!r} does not.")
        self.vocabulary = dict(vocabulary)
        self.pattern = pattern
        self.lower = lower
        self.pad_token_id = self.vocabulary.get(pad)
        self.unk_token_id = self.vocabulary.get(unknown)
        self.sep_token_id = self.vocabulary.get(separator)
        self._words = {i: w for w, i in self.vocabulary.items()}

    @classmethod
    def fit(
        cls,
        texts: Iterable[str],
        *,
        max_size: int | None = None,
        separator: str | None = None,
        pattern: str = WORD_PATTERN,
        lower: bool = True,
    ) -> WordTokenizer:
        """Return a tokenizer for the words of some texts: padding 0, unknown 1, then words by decreasing frequency.

        Args:
            texts: The texts.
            max_size: Greatest size of the vocabulary, special tokens included.
            separator: A token between the two texts of a pair, such as ``"<sep>"``, which gets id 2.
            pattern: Regular expression of one word.
            lower: Whether to convert words to lower case.
        """
        counts: Counter[str] = Counter()
        for text in texts:
            words = (w.text for w in find_words(text, pattern))
            counts.update(w.lower() if lower else w for w in words)
        ranked = sorted(counts, key=lambda w: (-counts[w], w))
        vocabulary = {"<pad>": 0, "<unk>": 1} | ({} if separator is None else {separator: 2})
        special = len(vocabulary)
        room = None if max_size is None else max(max_size - special, 0)
        vocabulary.update({w: i for i, w in enumerate(ranked[:room], start=special)})
        return cls(vocabulary, separator=separator or "<sep>", pattern=pattern, lower=lower)

    def __repr__(self) -> str:
        return f"WordTokenizer({len(self.vocabulary)} words)"

    def __len__(self) -> int:
        return max(self.vocabulary.values()) + 1

    def encode(self, text: str) -> list[int]:
        """Return the ids of the text's words."""
        return self.spans(text)[0]

    def spans(self, text: str) -> tuple[list[int], list[Span]]:
        """Return the ids of the text's words and the character span of each.

        Raises:
            TokenizerError: A word is not in the vocabulary and there is no unknown token.
        """
        ids, spans = [], []
        for word in find_words(text, self.pattern):
            key = word.text.lower() if self.lower else word.text
            i = self.vocabulary.get(key, self.unk_token_id)
            if i is None:
                raise TokenizerError(
                    f"{key!r} is not in the vocabulary of {len(self.vocabulary)} words and there is no unknown token; "
                    "add one to the vocabulary and name it with unknown=."
                )
            ids.append(i)
            spans.append((word.start, word.end))
        return ids, spans

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """Return the words of ids."""
        return [self._words.get(int(i), f"<{int(i)}>") for i in ids]
