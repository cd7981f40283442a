"""Verbalisers: the word by which a language model says each class, as one token, and figures over these words alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.learning.objectives import CrossEntropy, chosen
from tlprune.task import Batch, Metric
from tlprune.tasks.tokenising import token_ids

# By the number of classes, for data whose classes have no names of one token.
USUAL = {2: ("negative", "positive"), 3: ("negative", "neutral", "positive")}
Words = Sequence[str] | Mapping[str, str]


def word_ids(tokenizer: Any, classes: Sequence[str], words: Words | None = None) -> dict[str, int]:
    """The token that stands for each class, by the word, in the order of the classes.

    A word is taken as within a text: with a space before it where the tokenizer has one token for that, else without.

    Args:
        tokenizer: of the model.
        classes: their names.
        words: one for each class, in their order or by their names; by default these names, and where they are not
            tokens ``negative``, ``positive``, and between them ``neutral``, by the number of classes.

    Raises:
        ValueError: there are not as many words as classes, a word is of several tokens or unknown, or two are the same.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
        >>> ids = word_ids(tokenizer, ("bad", "good"), ("nervous", "brave"))
        >>> [tokenizer.decode([one]) for one in ids.values()] == ["nervous", "brave"]
        True
    """
    found = [_one_token(tokenizer, word) for word in _words(tokenizer, classes, words)]
    said = [word for word, _ in found]
    if len({number for _, number in found}) < len(found):
        raise ValueError(f"Each class needs a word of its own but they are {', '.join(said)}. Name different ones.")
    return dict(found)


def _words(tokenizer: Any, classes: Sequence[str], words: Words | None) -> Sequence[str]:
    if words is None:
        own = all(isinstance(_token(tokenizer, name), int) for name in classes)
        return classes if own else USUAL.get(len(classes), classes)
    missing = [name for name in classes if name not in words] if isinstance(words, Mapping) else []
    if missing or len(words) != len(classes):
        raise ValueError(
            f"A verbaliser needs a word for each class, {', '.join(classes)}, but has {len(words)}: "
            f"{', '.join(words)}. Give one for each, in this order or by these names."
        )
    return [words[name] for name in classes] if isinstance(words, Mapping) else words


def _one_token(tokenizer: Any, word: str) -> tuple[str, int]:
    found = _token(tokenizer, word)
    if isinstance(found, str):
        raise ValueError(
            f"A class needs a word of one token that the model knows, but {word!r} is {found}. Name another for it: "
            "words=(...)."
        )
    return word, found


def _token(tokenizer: Any, word: str) -> int | str:
    """The token of a word, or why there is none."""
    spellings = [token_ids(tokenizer, f" {word.strip()}"), token_ids(tokenizer, word)]
    ids = next((found for found in spellings if len(found) == 1), spellings[-1])
    if len(ids) != 1:
        return f"of {len(ids)} tokens"
    return "unknown" if ids[0] == getattr(tokenizer, "unk_token_id", None) else ids[0]


def word_metrics(ids: Sequence[int]) -> dict[str, Metric]:
    """Accuracy and cross entropy, in nats, where a model chooses among some tokens alone; one number per example.

    Args:
        ids: of the words; every answer is one of them.

    Example:
        >>> import tlprune as tp
        >>> batch = tp.planted("copy").task.test.rows(torch.tensor([0]))
        >>> answer, other = int(batch.answers), int(batch.foils)
        >>> logits = torch.full((1, 1, 30), 9.0)
        >>> logits[0, 0, answer], logits[0, 0, other] = 0.0, -1.0
        >>> {name: round(float(one(logits, batch, logits)), 3) for name, one in word_metrics((answer, other)).items()}
        {'word_accuracy': 1.0, 'word_cross_entropy': 0.313}
    """
    tokens = tuple(ids)
    objective = CrossEntropy(tokens=tokens)

    def accuracy(logits: Tensor, batch: Batch, _: Tensor) -> Float[Tensor, "example"]:
        said = torch.tensor(tokens, device=logits.device)[chosen(logits, tokens, "accuracy").argmax(-1)]
        return (said == batch.answers.to(said.device)).double().mean(-1)

    def cross_entropy(logits: Tensor, batch: Batch, _: Tensor) -> Float[Tensor, "example"]:
        return objective.nats(logits, batch).mean(-1)

    return {"word_accuracy": accuracy, "word_cross_entropy": cross_entropy}
