"""``tlprune methods``: every method that ``--method`` may name."""

from __future__ import annotations

from tlprune.commands.listing import Everything, first_line, listed
from tlprune.methods import METHODS
from tlprune.outcome import Outcome


def methods(settings: Everything) -> Outcome:
    """One line each, the first of its documentation."""
    more = "tlprune discover --method NAME --help lists the settings of one."
    return listed({name: first_line(METHODS[name]) for name in sorted(METHODS)}, more=more)


ACTIONS = {"": ("list the methods", Everything, methods)}
