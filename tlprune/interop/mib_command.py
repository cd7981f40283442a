"""The command ``tlprune mib``: folders for MIB's leaderboard from saved results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from tlprune.circuit import Circuit
from tlprune.files import read_json, read_tensors
from tlprune.interop.mib_submission import check_mib_submission, mib_submission
from tlprune.outcome import Outcome
from tlprune.scores import Scores


@dataclass(frozen=True)
class Submit:
    """Write the folder of one task and model for MIB's leaderboard.

    Attributes:
        files: one file of scores, or nine of circuits, as scores.save() and circuit.save() wrote them.
        task: ioi, mcqa, arithmetic-addition, arithmetic-subtraction, arc-easy or arc-challenge.
        model: gpt2, qwen2.5, gemma2 or llama3.
        out: folder of the whole submission.
        format: json or pt.
    """

    files: Positional[tuple[Path, ...]]
    task: str
    model: str
    out: Path
    format: Literal["json", "pt"] = "json"


@dataclass(frozen=True)
class Check:
    """Check a whole submission by MIB's rules.

    Attributes:
        folder: it holds one folder for each task and model.
    """

    folder: Positional[Path]


def submit(settings: Submit) -> Outcome:
    """Write the folder; what to say."""
    found = [_saved(path) for path in settings.files]
    scores = [one for one in found if isinstance(one, Scores)]
    circuits = [one for one in found if isinstance(one, Circuit)]
    if scores and len(found) > 1:
        raise ValueError(
            f"MIB takes one file of scores, or nine of circuits, but {len(scores)} of {len(found)} files are scores. "
            "Give one of these."
        )
    entry = mib_submission(
        scores[0] if scores else circuits,
        settings.out,
        name=f"{settings.task}_{settings.model}",
        ending=".json" if settings.format == "json" else ".pt",
    )
    text = f"wrote {settings.out / entry.name}/\n{entry}\nwhen all are there: tlprune mib check {settings.out}"
    return Outcome(text, {"folder": settings.out / entry.name, **dataclasses.asdict(entry)})


def check(settings: Check) -> Outcome:
    """Check the folder; what to say."""
    entries = check_mib_submission(settings.folder)
    text = "\n".join([*map(str, entries), f"{settings.folder} is a submission of {len(entries)} folders"])
    return Outcome(text, {"folders": [dataclasses.asdict(entry) for entry in entries]})


ACTIONS: dict[str, tuple[str, type, Callable[[Any], Outcome]]] = {
    "submit": ("write the folder of one task and model", Submit, submit),
    "check": ("check a whole submission", Check, check),
}


def _saved(path: Path) -> Scores | Circuit:
    """Scores or a circuit, whichever the file says that it is."""
    data = read_tensors(path, "circuit")[1] if path.suffix == ".safetensors" else read_json(path, "circuit")
    return Scores.load(path) if data.get("format") == "tlprune-scores" else Circuit.load(path)
