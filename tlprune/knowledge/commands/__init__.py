"""The command ``tlprune knowledge``: one file for each of its actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tlprune.knowledge.commands.evaluate import Evaluate, evaluate
from tlprune.knowledge.commands.find import Command, find
from tlprune.knowledge.commands.finetune import Finetune, finetune
from tlprune.knowledge.commands.structure import Lie, lie
from tlprune.knowledge.commands.tradeoff import Trade, trade
from tlprune.outcome import Outcome

# By name: what it does, its settings, and the function that does it and gives what to say.
ACTIONS: dict[str, tuple[str, type, Callable[[Any], Outcome]]] = {
    "find": ("find a subnetwork for each seed", Command, find),
    "evaluate": ("what is forgotten without them and what is kept, beside chance", Evaluate, evaluate),
    "tradeoff": ("size against forgetting, over prices", Trade, trade),
    "finetune": ("multiple choice after the subnetwork was removed", Finetune, finetune),
    "structure": ("where the weights of a subnetwork lie, beside chance", Lie, lie),
}
