"""Predictions of a study's model and subnetworks on tasks by name, kept in the study's folder."""

from __future__ import annotations

from collections.abc import Sequence

from tlprune.studies.commands.study import Study
from tlprune.studies.predictions import Predictions, predict


def asked(study: Study, tasks: Sequence[str], *, test_count: int | None, batch_size: int) -> list[Predictions]:
    """Of each task; the one that was pruned on is built as it was then. What is already there is read.

    Args:
        study: the study.
        tasks: their names.
        test_count: test examples that a task draws, where it does; ``None`` for all.
        batch_size: examples per forward pass.

    Raises:
        ValueError: there is no such task, or it does not fit the model.
    """
    count = {} if test_count is None else {"test_count": test_count}
    own = {study.told["task"]: study.told["task_options"]}
    return [
        predict(
            study.model,
            study.subnetworks,
            study.task_called(name, **{**own.get(name, {}), **count}),
            ablation=study.means,
            out=study.folder,
            batch_size=batch_size,
            tell=print,
        )
        for name in dict.fromkeys(tasks)
    ]
