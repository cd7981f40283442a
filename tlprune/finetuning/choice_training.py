"""Fine-tuning for multiple choice: the same steps, batches and checkpoints as of classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tlprune.finetuning.choosing import Choices, Chooser, choice_figures, encode_choices, scores_of, scores_on
from tlprune.finetuning.plan import FineTune
from tlprune.finetuning.training import Training


class ChoiceTraining(Training):
    """A :class:`~tlprune.finetuning.choosing.Chooser` on its way; its splits are questions."""

    def encoded(self, split: str) -> list[Choices]:
        """Tokens of a split's questions and choices."""
        return encode_choices(self.tokenizer, self.splits[split], max_length=self.plan.max_length)

    def outputs(self, rows: Sequence[Any]) -> Tensor:
        """Scores of all choices, with gradients."""
        return scores_of(self.model, rows, self.tokenizer, self.accelerator.device)

    def figures(self, split: str) -> dict[str, float]:
        """Loss and accuracy of the model as it is, on one of the splits."""
        return choice_figures(self.scores(split), self.splits[split])

    def scores(self, split: str) -> Tensor:
        """Scores of all choices of a split's questions, as the model is."""
        rows = self.rows[split] if split in self.rows else self.encoded(split)
        return scores_on(self.model, rows, self.tokenizer, device=self.accelerator.device)


def choice_training(chooser: Chooser, tokenizer: Any, splits: Any, plan: FineTune) -> ChoiceTraining:
    """Ready for its first step, where accelerate puts it."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=plan.device == "cpu", mixed_precision=plan.precision)
    return ChoiceTraining(chooser, tokenizer, splits, plan, by="accuracy", accelerator=accelerator)


def new_chooser(language_model: Any, *, seed: int) -> Chooser:
    """A trunk with a head that depends on the seed alone; the random state of the process is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Chooser(language_model.base_model, language_model.config.hidden_size).to(language_model.device)
