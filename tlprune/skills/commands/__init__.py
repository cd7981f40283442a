"""The command ``tlprune skill``: one file for each of its actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tlprune.outcome import Outcome
from tlprune.skills.commands.mask import Mask, mask
from tlprune.skills.commands.probe import Command as Probe
from tlprune.skills.commands.probe import probe
from tlprune.skills.commands.prune import Prune, prune
from tlprune.skills.commands.tune import Command as Tune
from tlprune.skills.commands.tune import tune

# By name: what it does, its settings, and the function that does it and gives what to say.
ACTIONS: dict[str, tuple[str, type, Callable[[Any], Outcome]]] = {
    "tune": ("tune a soft prompt for each seed", Tune, tune),
    "probe": ("how well each neuron alone tells the label", Probe, probe),
    "mask": ("accuracy while skill neurons, or random ones, are disturbed", Mask, mask),
    "prune": ("keep the skill neurons alone: a smaller, faster model", Prune, prune),
}
