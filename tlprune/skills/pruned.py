"""What pruning to skill neurons leaves: circuit, small model, and figures before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.evaluation.table import aligned, number
from tlprune.files import write_whole
from tlprune.learning.bootstrap import Interval, interval
from tlprune.masking.means import MeasuredMean
from tlprune.prompts.prompt import Prompt
from tlprune.skills.choosing import neurons_of
from tlprune.studies.shrinkage import Shrinkage

FILE = "skill-pruning.json"


@dataclass(frozen=True, eq=False)
class SkillPruning:
    """A model pruned to its skill neurons; printing it says what that cost and what it saved.

    Attributes:
        circuit: the neurons that stay.
        means: of all neurons; those of the ones that went are in the biases.
        small: the transformers model without them, which is as fast as it is small.
        model: the same as a TransformerLens model with the tokenizer; there what went is 0.
        prompts: soft prompts that were attached, before and after.
        retuned: what they became when they were tuned to the pruned model; empty where they were not.
        correct: by stage, ``"whole"``, ``"pruned"`` and perhaps ``"retuned"``, which test examples the model got right
            with each prompt, ``(trial, example)``.
        saved: parameters, difference from the masked model's outputs, and times, under the first prompt.
    """

    circuit: Circuit
    means: MeasuredMean
    small: Any
    model: Any
    prompts: tuple[Prompt, ...]
    retuned: tuple[Prompt, ...]
    correct: Mapping[str, Float[Tensor, "trial example"]]
    saved: Shrinkage

    @property
    def accuracy(self) -> dict[str, Interval]:
        """By stage, the mean over prompts, with its bootstrap interval over test examples."""
        return {name: interval(lambda mean: mean, right.mean(0)) for name, right in self.correct.items()}

    @property
    def change(self) -> dict[str, Interval]:
        """Accuracy of each later stage less that of the whole model, by the paired bootstrap."""
        whole, later = self.correct["whole"].mean(0), {n: r for n, r in self.correct.items() if n != "whole"}
        return {name: interval(lambda a, b: a - b, right.mean(0), whole) for name, right in later.items()}

    @property
    def neurons(self) -> dict[int, int]:
        """How many neurons each layer keeps."""
        group = neurons_of(self.circuit.sites)
        counts = self.circuit.kept.unflatten(0, (len(group.layers), group.width)).sum(1).tolist()
        return dict(zip(group.layers, counts, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "provenance": dict(self.circuit.provenance),
            "means": self.means.as_dict(),
            "neurons": {str(layer): count for layer, count in self.neurons.items()},
            "accuracy": {name: found.as_dict() for name, found in self.accuracy.items()},
            "change": {name: found.as_dict() for name, found in self.change.items()},
            "trials": {name: right.mean(1).tolist() for name, right in self.correct.items()},
            "examples": self.correct["whole"].shape[1],
            "saved": self.saved.as_dict(),
        }

    def __str__(self) -> str:
        rows = [[name, *_shown(found), "-"] for name, found in self.accuracy.items()]
        for row, change in zip(rows[1:], self.change.values(), strict=True):
            row[-1] = f"{change.value:+.1%} [{change.low:+.1%}, {change.high:+.1%}]"
        trials, examples = self.correct["whole"].shape
        counts = ", ".join(f"{layer}: {count:,}" for layer, count in self.neurons.items())
        lines = aligned(["accuracy", "value", "95%", "change"], rows)
        lines.append(f"{examples:,} test examples, {trials} trial{'s' * (trials > 1)}; neurons by layer {counts}")
        return "\n".join([*lines, str(self.saved)])

    def save(self, folder: str | Path) -> Path:
        """Write the small model and its tokenizer, the neurons, their means, the prompts and the figures.

        In the folder ``model`` is what :func:`~tlprune.load` and :func:`~tlprune.load_shrunk` read, ``circuit.json`` is
        a :class:`~tlprune.Circuit`, ``means.safetensors`` a :class:`~tlprune.MeasuredMean`; prompts lie in
        ``prompts/0`` and so on, and those that were tuned again in ``retuned/0``.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.small.save_pretrained(folder / "model")
        if self.model.tokenizer is not None:
            self.model.tokenizer.save_pretrained(folder / "model")
        self.circuit.save(folder / "circuit.json")
        self.means.save(folder / "means.safetensors")
        for name in ("prompts", "retuned"):
            for index, prompt in enumerate(getattr(self, name)):
                prompt.save(folder / name / str(index))
        write_whole(folder / FILE, json.dumps(self.as_dict(), indent=1) + "\n")
        return folder


def _shown(found: Interval) -> tuple[str, str]:
    return number(100 * found.value, 1) + "%", f"[{found.low:.1%}, {found.high:.1%}]"
