"""The steps of a fine-tuning, and the state between two of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tlprune.files import read_tensors, write_tensors
from tlprune.finetuning.cutting import WHOLE, Cut
from tlprune.finetuning.measuring import figures_of, inputs_of, intervals_of, loss_of, outputs_on
from tlprune.finetuning.plan import FineTune, batches
from tlprune.finetuning.resuming import (
    CHECKPOINT,
    Best,
    moments_of,
    part_of,
    put_back_moments,
    read_own_checkpoint,
)
from tlprune.learning.bootstrap import Interval
from tlprune.tasks.labelled.encoding import encode

Examples = Any  # of one kind: Labelled, or Questions where choices are scored


class Training:
    """A model on its way.

    Args:
        model: a Hugging Face model for sequence classification.
        tokenizer: its own.
        splits: examples under ``"train"`` and ``"validation"``.
        plan: the settings.
        by: the figure that is to be high on dev.
        accelerator: of ``accelerate``: places the model, its precision and its backward pass.
        cut: what of the model is held at 0.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        splits: Mapping[str, Examples],
        plan: FineTune,
        *,
        by: str,
        accelerator: Any,
        cut: Cut = WHOLE,
    ) -> None:
        self.plan, self.tokenizer, self.splits, self.by, self.accelerator = plan, tokenizer, splits, by, accelerator
        optimiser = torch.optim.AdamW(_groups(model, plan), lr=plan.highest_rate, betas=plan.betas, fused=True)
        self.model, self.optimiser = accelerator.prepare(model, optimiser)
        self.own, self.adam, self.cut = model, optimiser, cut
        self.rows = {name: self.encoded(name) for name in ("train", "validation")}
        self.steps = plan.steps(len(splits["train"]))
        self.order = lru_cache(1)(self._order)
        self.done, self.best = 0, Best()

    def encoded(self, split: str) -> Sequence[Any]:
        """Token ids of a split."""
        return encode(self.tokenizer, self.splits[split].prompts(), max_length=self.plan.max_length)

    def _order(self, epoch: int) -> list[list[int]]:
        lengths = [len(row) for row in self.rows["train"]]
        return batches(lengths, self.plan.batch_size, seed=self.plan.seed, epoch=epoch)

    @property
    def finished(self) -> bool:
        """Whether all steps are taken, or none has made a difference for as long as the plan waits."""
        return self.done >= self.steps or (self.plan.patience is not None and self._stale >= self.plan.patience)

    @property
    def _stale(self) -> int:
        """Measurements since the best one; a run that goes on counts them again."""
        count = len(self.splits["train"])
        since = range(self.best.step + 1, self.done + 1) if self.best.step else ()
        return sum(self.plan.measured(step, count) for step in since)

    def step(self) -> dict[str, Any]:
        """Take the next step and return its record."""
        epoch, place = divmod(self.done, self.plan.per_epoch(len(self.splits["train"])))
        # Dropout follows from seed and step alone, so a run that goes on needs no state of a generator.
        torch.manual_seed(1_000_003 * self.plan.seed + self.done)
        rate = self.plan.highest_rate * self.plan.factor(self.done, self.steps)
        for group in self.adam.param_groups:
            group["lr"] = rate
        loss = self._descend(self.order(epoch)[place])
        self.done += 1
        return {"step": self.done, "epoch": epoch + 1, "loss": loss, "rate": rate}

    def _descend(self, chosen: list[int]) -> float:
        self.model.train()
        rows = [self.rows["train"][row] for row in chosen]
        loss = loss_of(self.outputs(rows), self.splits["train"].rows(chosen))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"Fine-tuning needs finite numbers but step {self.done + 1} has a loss of {value}. Lower the rate, or "
                "give precision=no."
            )
        self.optimiser.zero_grad()
        self.accelerator.backward(loss)
        if self.plan.clip is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        self.optimiser.step()
        return value

    def outputs(self, rows: Sequence[Any]) -> Tensor:
        """What the model says of encoded examples, with gradients."""
        return self.model(**inputs_of(rows, self.tokenizer, self.accelerator.device)).logits

    def figures(self, split: str) -> dict[str, float]:
        """Of the model as it is, on one of the splits."""
        return figures_of(self._said(split), self.splits[split])

    def tested(self) -> tuple[dict[str, float], dict[str, Interval]]:
        """Figures of the model as it is on the test, and their intervals over its examples."""
        outputs, examples = self._said("test"), self.splits["test"]
        return figures_of(outputs, examples), intervals_of(outputs, examples)

    def _said(self, split: str) -> Tensor:
        rows = self.rows[split] if split in self.rows else self.encoded(split)
        return outputs_on(self.model, rows, self.tokenizer, device=self.accelerator.device)

    def measure(self, folder: Path) -> dict[str, float]:
        """Figures on dev; the weights are kept in the folder if they are the best so far."""
        found = self.figures("validation")
        figure = -math.inf if math.isnan(found[self.by]) else found[self.by]
        if figure > self.best.figure or not self.best.step:
            self.best = Best(figure, self.done, found)
            write_tensors(folder / _best_name(self.done), self.own.state_dict(), {"step": self.done})
        return found

    # ---- on the disk

    def save(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Write everything that the run needs to go on; the last checkpoint stays until this one is whole."""
        tensors = {f"model.{name}": value for name, value in self.own.state_dict().items()}
        tensors |= moments_of(self.adam, dict(self.own.named_parameters()))
        facts = {"done": self.done, "best": self.best.facts(), "settings": dict(settings)}
        write_tensors(folder / CHECKPOINT, _apart(tensors), facts)
        for path in folder.glob(_best_name("*")):
            if path.name != _best_name(self.best.step):
                path.unlink()

    def resume(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Go on from the folder's checkpoint.

        Raises:
            ValueError: it is not whole, or of a run with other settings or data.
        """
        otherwise = "another directory with --out"
        tensors, facts = read_own_checkpoint(folder, settings, what="fine-tuning", otherwise=otherwise)
        self.own.load_state_dict(part_of(tensors, "model"))
        put_back_moments(self.adam, dict(self.own.named_parameters()), tensors)
        self.done, self.best = facts["done"], Best.of(facts["best"])

    def put_back_best(self, folder: Path) -> None:
        """Give the model the weights that were best on dev."""
        tensors, _ = read_tensors(folder / _best_name(self.best.step), "file of weights")
        self.own.load_state_dict(tensors)


def clear(folder: Path) -> None:
    """Remove what only a run that is under way needs."""
    for path in (folder / CHECKPOINT, *folder.glob(_best_name("*"))):
        path.unlink(missing_ok=True)


def _best_name(step: int | str) -> str:
    return f"best-{step}.safetensors"


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share memory, as tied weights do, each with its own."""
    return {name: value.detach().clone() for name, value in tensors.items()}


def _groups(model: Any, plan: FineTune) -> list[dict[str, Any]]:
    """Matrices decay; biases and norms, which have one axis, do not."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    return [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
