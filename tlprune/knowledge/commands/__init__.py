"""The command ``tlprune knowledge``: one file for each of its actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tlprune.knowledge.commands.finetune import Finetune, finetune
from tlprune.knowledge.commands.structure import Lie, lie

# By name: what it does, its settings, and the function that does it and says what to print.
ACTIONS: dict[str, tuple[str, type, Callable[[Any], str]]] = {
    "finetune": ("multiple choice after the subnetwork was removed", Finetune, finetune),
    "structure": ("where the weights of a subnetwork lie, beside chance", Lie, lie),
}
