"""The tasks that the subnetworks of a study are measured on: the one they were found on as it was, and others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tlprune.studies.commands.study import Study
from tlprune.task import Batch, Task, Tokens
from tlprune.tasks import KNOWN, read_labelled

# Of other tasks only the test is used, so that all but the fewest examples may go into it.
FEWEST = {"train_count": 2, "validation_count": 2}


def measured_on(
    study: Study, names: Sequence[str] = (), *, test_count: int | None = None, classes: Sequence[str] = ()
) -> dict[str, Task]:
    """Tasks by the names that they are called here; by default the study's own.

    Args:
        study: the study.
        names: of tasks; of labelled ones ``mnli:mismatched`` takes another part of the data as the test.
        test_count: test examples of each, all where there are not more; ``None`` for all.
        classes: names of the model's outputs in their order, where they are not those of the data.

    Raises:
        ValueError: there is no such task, it takes no such option or does not fit the model; or the study's own is not
            what was pruned on any more, so that its test examples may have been among those.
    """
    _check_own(study)
    options = {} if test_count is None else {"test_count": test_count}
    options |= {"classes": list(classes)} if classes else {}
    return {name: _called(study, name, options) for name in dict.fromkeys(names or (study.told["task"],))}


def _called(study: Study, name: str, options: dict[str, Any]) -> Task:
    word, _, part = name.partition(":") if name.partition(":")[0] in KNOWN else (name, "", "")
    if "test_count" in options and word in KNOWN and options["test_count"] >= len(read_labelled(word, part or "dev")):
        options = {option: value for option, value in options.items() if option != "test_count"}
    known = study.told["task_options"]
    if word != study.told["task"]:
        known = {"seed": known["seed"], **(FEWEST if word in KNOWN else {})}
    elif not options and not part:
        return study.task
    return study.task_called(word, **{**known, **options, **({"test": part} if part else {})})


def _check_own(study: Study) -> None:
    """The task must be built of the same examples as when it was pruned on."""
    own = study.task.fingerprint
    known = {one.provenance.get("task", {}).get("fingerprint", own) for one in study.subnetworks.values()}
    if known != {own}:
        raise ValueError(
            f"The subnetworks were found on examples {', '.join(sorted(known))} of {study.task.name} but these are "
            f"{own} now, so test examples may be ones that they were found on. Restore the data."
        )


def seen_in_pruning(study: Study, task: Task) -> int:
    """How many test examples of a task are, token by token, among those that were pruned on."""
    discovery = study.task.discovery
    seen = {prompt for batches in discovery.streams.values() for batch in batches for prompt in _prompts(batch)}
    return sum(prompt in seen for prompt in _prompts(task.test))


def _prompts(batch: Batch) -> list[tuple[int, ...]]:
    """The ids of each prompt without its padding."""
    tokens: Tokens = batch.clean
    if tokens.attention_mask is None:
        return [(*row,) for row in tokens.ids.tolist()]
    return [(*row[real].tolist(),) for row, real in zip(tokens.ids, tokens.attention_mask.bool(), strict=True)]
