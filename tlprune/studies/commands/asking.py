"""Predictions of a study's model and subnetworks on tasks by name, kept in the study's folder."""

from __future__ import annotations

from collections.abc import Sequence

from tlprune.studies.commands.measured_on import measured_on
from tlprune.studies.commands.study import Study
from tlprune.studies.predictions import Predictions, predict


def asked(study: Study, tasks: Sequence[str], *, test_count: int | None, batch_size: int) -> list[Predictions]:
    """Of each task; the one that was pruned on is built as it was then. What is already there is read.

    Args:
        study: the study.
        tasks: their names; by default the study's own.
        test_count: as of :func:`measured_on`.
        batch_size: examples per forward pass.

    Raises:
        ValueError: there is no such task, or it does not fit the model.
    """
    return [
        predict(
            study.model,
            study.subnetworks,
            task,
            ablation=study.means,
            out=study.folder,
            batch_size=batch_size,
            tell=print,
        )
        for task in measured_on(study, tasks, test_count=test_count).values()
    ]
