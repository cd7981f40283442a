"""The commands of ``tlprune``: one line each, and the module with their actions, imported when it is needed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What it does; its settings, or what makes them of the words; and what is done, which gives an Outcome.
Action = tuple[str, Any, Callable[[Any], Any]]


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        says: what it does, in one line.
        home: the module with its ``ACTIONS`` by name; a command without actions has one, of the name ``""``.
        example: what follows its name in the overview.
    """

    says: str
    home: str
    example: str = ""

    @property
    def actions(self) -> Mapping[str, Action]:
        """By name."""
        return importlib.import_module(self.home).ACTIONS

    def reworded(self, words: Sequence[str]) -> list[str]:
        """The words as they are parsed: its module may have short forms."""
        return getattr(importlib.import_module(self.home), "reworded", list)(words)


COMMANDS = {
    "discover": Command("find a circuit (try it without arguments)", "tlprune.commands.discover"),
    "evaluate": Command("measure a saved circuit on test examples", "tlprune.commands.evaluate", "CIRCUIT"),
    "sweep": Command("a circuit for each of several sizes and seeds; resumable", "tlprune.studies.commands.sweep"),
    "bench": Command("compare methods at equal sizes; resumable", "tlprune.benchmarking.command"),
    "finetune": Command("make a classifier of a Hugging Face model; resumable", "tlprune.finetuning.command"),
    "saliency": Command("prune a classifier by one-shot strategies", "tlprune.pruning.commands.saliency"),
    "core": Command("heads and MLPs that a model needs, over seeds", "tlprune.studies.commands", "ACTION"),
    "knowledge": Command("weights that hold some facts and nothing else", "tlprune.knowledge.commands", "ACTION"),
    "skill": Command("soft prompts, and neurons that know the label", "tlprune.skills.commands", "ACTION"),
    "mib": Command("write and check folders for MIB's leaderboard", "tlprune.interop.mib_command", "ACTION"),
    "models": Command("list the models that have a name", "tlprune.commands.models"),
    "tasks": Command("list the tasks", "tlprune.commands.tasks"),
    "methods": Command("list the methods", "tlprune.commands.methods"),
    "completion": Command(
        "write a script with which bash, zsh or fish completes", "tlprune.commands.completion", "SHELL"
    ),
}


def overview() -> str:
    """All commands on one screen."""
    width = max(len(f"{name} {command.example}".strip()) for name, command in COMMANDS.items())
    lines = [f"  tlprune {f'{name} {one.example}'.strip():{width}}  {one.says}" for name, one in COMMANDS.items()]
    return "\n".join(
        [
            "Sparse subnetworks of transformers.",
            "",
            *lines,
            "",
            "Each takes --help; --json prints figures for machines; --config run.yaml repeats a run.",
            "Exit status: 0 done, 2 bad input, 130 interrupted, 1 a fault of tlprune itself.",
        ]
    )
