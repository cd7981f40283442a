"""Multiple choice with a decoder: each choice is read behind its question, and the best of the scores is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tlprune.tasks.questions import Questions
from tlprune.tasks.tokenising import padding_token

_QUESTIONS = 16  # measured at once
Scores = Float[Tensor, "question choice"]


@dataclass(frozen=True)
class Choices:
    """A question with its choices before padding.

    Attributes:
        ids: tokens of the question and each choice behind it.
        starts: where the choice begins in each.
    """

    ids: tuple[list[int], ...]
    starts: tuple[int, ...]

    def __len__(self) -> int:
        return max(map(len, self.ids))


def encode_choices(tokenizer: Any, questions: Questions, *, max_length: int) -> list[Choices]:
    """Tokens of ``"question choice"`` for every choice; of longer ones the beginning is cut off.

    Raises:
        ValueError: a choice alone is longer than that.
    """
    return [
        Choices(*zip(*(_encoded(tokenizer, text, choice, max_length) for choice in choices), strict=True))
        for text, choices in zip(questions.texts, questions.choices, strict=True)
    ]


def _encoded(tokenizer: Any, text: str, choice: str, max_length: int) -> tuple[list[int], int]:
    alone, ids = (list(tokenizer(words)["input_ids"]) for words in (text, f"{text} {choice}"))
    start = next((n for n, (one, other) in enumerate(zip(alone, ids, strict=False)) if one != other), len(alone))
    cut = max(0, len(ids) - max_length)
    if start <= cut and cut:
        raise ValueError(
            f"A question and a choice need room, but of {max_length} tokens the choice {choice!r} takes "
            f"{len(ids) - start} and none is left. Make max_length longer."
        )
    return ids[cut:], start - cut


class Chooser(nn.Module):
    """A decoder without its unembedding, and one number read off its final state at the last token.

    Args:
        trunk: a transformers decoder that gives final states, such as GPT2Model.
        width: of these states.
    """

    def __init__(self, trunk: Any, width: int) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Linear(width, 1, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Float[Tensor, "prompt"]:
        """Scores of prompts that are padded on the right."""
        states = self.trunk(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        last = attention_mask.sum(1) - 1
        return self.head(states[torch.arange(len(states), device=states.device), last])[:, 0]


def scores_of(model: Any, rows: Sequence[Choices], tokenizer: Any, device: torch.device) -> Scores:
    """A score for each choice; where some questions have fewer, minus infinity for the rest."""
    ids, mask = _table([one for row in rows for one in row.ids], tokenizer, device)
    return _by_question(model(ids, mask), rows)


@torch.no_grad()
def scores_on(model: Any, rows: Sequence[Choices], tokenizer: Any, *, device: torch.device) -> Scores:
    """The same of many questions, without dropout."""
    training = model.training
    model.eval()
    try:
        return _in_parts(lambda part: scores_of(model, part, tokenizer, device), rows)
    finally:
        model.train(training)


@torch.no_grad()
def likelihoods_on(language_model: Any, rows: Sequence[Choices], tokenizer: Any, *, device: torch.device) -> Scores:
    """Mean log-probability of a choice's tokens behind the question, in nats: answers without any training."""

    def scores(part: Sequence[Choices]) -> Scores:
        prompts = [one for row in part for one in row.ids]
        ids, mask = _table(prompts, tokenizer, device)
        logits = language_model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        found = F.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0]
        starts = torch.tensor([max(start, 1) for row in part for start in row.starts], device=device)
        places = torch.arange(1, ids.shape[1], device=device)
        own = (places >= starts[:, None]) & mask[:, 1:].bool()
        return _by_question((found * own).sum(1) / own.sum(1), part)

    language_model.eval()
    return _in_parts(scores, rows)


def choice_figures(scores: Scores, questions: Questions) -> dict[str, float]:
    """Loss in nats and accuracy.

    Example:
        >>> two = Questions("mine", ("one and one?", "a colour?"), (("two", "three"), ("red", "dog")), (0, 0))
        >>> choice_figures(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), two)["accuracy"]
        1.0
    """
    labels = torch.tensor(questions.labels)
    accuracy = float((scores.argmax(-1) == labels).double().mean())
    return {"loss": float(F.cross_entropy(scores, labels)), "accuracy": accuracy}


def _in_parts(scores: Any, rows: Sequence[Choices]) -> Scores:
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    parts = [order[start : start + _QUESTIONS] for start in range(0, len(order), _QUESTIONS)]
    most = max(len(row.ids) for row in rows)
    found = [scores([rows[row] for row in part]).float().cpu() for part in parts]
    wide = [F.pad(one, (0, most - one.shape[1]), value=-torch.inf) for one in found]
    return torch.cat(wide)[torch.tensor(order).argsort()]


def _by_question(values: Float[Tensor, "prompt"], rows: Sequence[Choices]) -> Scores:
    parts = values.split([len(row.ids) for row in rows])
    return pad_sequence(list(parts), batch_first=True, padding_value=-torch.inf)


def _table(prompts: Sequence[list[int]], tokenizer: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids, padded on the right, and a mask of padding."""
    ids = pad_sequence([torch.tensor(one) for one in prompts], batch_first=True, padding_value=padding_token(tokenizer))
    lengths = torch.tensor([len(one) for one in prompts])
    return ids.to(device), (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(device)
