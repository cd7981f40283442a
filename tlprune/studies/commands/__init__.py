"""The command ``tlprune core``: one file for each of its actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tlprune.outcome import Outcome
from tlprune.studies.commands.ablate import Ablate, ablate
from tlprune.studies.commands.accuracy import Accuracy, accuracy
from tlprune.studies.commands.agreement import Agree, agree
from tlprune.studies.commands.compare import Compare, compare
from tlprune.studies.commands.heads import Heads, heads
from tlprune.studies.commands.prune import prune, settings_for
from tlprune.studies.commands.shrink import Shrink, shrink
from tlprune.studies.commands.size import Size, size

# By name: what it does, its settings (or, of the words, which these are), and the function that does it and gives what
# to say.
ACTIONS: dict[str, tuple[str, type | Callable[[Sequence[str]], type], Callable[[Any], Outcome]]] = {
    "prune": ("find a subnetwork for each sparsity and seed", settings_for, prune),
    "accuracy": ("accuracy in the domain of the task, and out of it", Accuracy, accuracy),
    "heads": ("which heads and MLPs the subnetworks share, beside chance", Heads, heads),
    "agreement": ("how often the subnetworks predict the same, beside chance", Agree, agree),
    "size": ("how small a model may be at each checkpoint of a fine-tuning", Size, size),
    "ablate": ("what heads and MLPs are worth one at a time, or forced in or out", Ablate, ablate),
    "compare": ("several methods' subnetworks at equal sparsity", Compare, compare),
    "shrink": ("write a subnetwork as a smaller transformers model", Shrink, shrink),
}
