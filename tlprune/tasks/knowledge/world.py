"""The invented world as a task for the model in the package that knows it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tlprune.task import Task
from tlprune.tasks.knowledge.building import Wordings, knowledge
from tlprune.tasks.knowledge.facts import worded
from tlprune.tasks.knowledge.grammar import plain_text
from tlprune.tasks.knowledge.plain import PlainText
from tlprune.tasks.knowledge.world_facts import WORLD_TEMPLATES, world_facts, world_target

NAME = "world"
# Another seed than that of the text which the model was trained on.
TEXT_SEED, TEXT_SENTENCES = 1, 4_000


def world(
    model: Any,
    *,
    target: str = "Northmark",
    wordings: Wordings = "best",
    seed: int = 0,
    text_blocks: int | None = None,
) -> Task:
    """Forget who lives in one region of the invented world, and nothing else.

    The target are 20 facts of the relation ``lives in``, of those people whose town lies in the region. All other
    facts are the control: where the other 40 people live, what else is so about the same 20 people, and who was born
    in the same towns, so that neither the head nor the relation nor the tail alone tells a target. The model of
    ``tp.load("world")`` knows all facts in every template; methods see one of three, or all three, another one chooses
    the mask, and two more are the test.

    Args:
        model: the model of ``tp.load("world")``, or another with its tokenizer.
        target: a region: ``"Northmark"``, ``"Eastfold"`` or ``"Southmere"``; or a relation, all of whose facts are then
            the target: such as ``"works as"``.
        wordings: whether each of the 20 facts is trained on in the ``"best"`` of three templates or in ``"all"``.
        seed: of the split of control facts.
        text_blocks: blocks of 64 tokens of text for training; by default all that 40,000 words give, less a fifth.

    Raises:
        ValueError: there is no such region or relation, or the tokenizer lacks the words of the world.

    Example:
        >>> import tlprune as tp
        >>> task = world(tp.load("world", device="cpu"))
        >>> len(task.discovery.train()), len(task.discovery.train("control")), len(task.test)
        (20, 234, 40)
    """
    facts, others = world_target(target)
    text = PlainText(plain_text(TEXT_SENTENCES, seed=TEXT_SEED), train=text_blocks)
    known, kept = worded(facts, WORLD_TEMPLATES), worded(others, WORLD_TEMPLATES)
    task = knowledge(model, known, kept, text, wordings=wordings, seed=seed)
    return replace(task, name=NAME, options={**task.options, "group": target, "facts": len(world_facts())})
