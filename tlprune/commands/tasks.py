"""``tlprune tasks``: every task that ``--task`` may name."""

from __future__ import annotations

from tlprune.commands.listing import Everything, first_line, listed
from tlprune.outcome import Outcome
from tlprune.tasks import TASKS


def tasks(settings: Everything) -> Outcome:
    """One line each, the first of its documentation."""
    more = "A file of your own prompts that ends in .jsonl is a task, too."
    return listed({name: first_line(build) for name, build in TASKS.items()}, more=more)


ACTIONS = {"": ("list the tasks", Everything, tasks)}
