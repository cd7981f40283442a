"""A folder of tuned prompts as the actions of ``tlprune skill`` share it: which model, which data, which words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tlprune.files import read_json
from tlprune.models.load import load
from tlprune.prompts.prompt import Prompt
from tlprune.scores import Scores
from tlprune.studies.commands.study import FILE, Study
from tlprune.task import Task
from tlprune.tasks import Labelled, labelled_data, read_labelled
from tlprune.tasks.prompted import prompted

SCORES = "scores.safetensors"


@dataclass(frozen=True)
class SkillStudy(Study):
    """A folder that ``tlprune skill tune`` wrote.

    Attributes:
        folder: the folder.
        told: its ``study.json``: model, data, settings of the task and of the tuning.
        device: where to compute; by default a GPU if there is one.
    """

    @staticmethod
    def open(folder: Path, *, device: str | None = None) -> SkillStudy:
        """Read a folder.

        Raises:
            ValueError: there are no prompts in it, or the data have changed since.
        """
        if not (folder / FILE).exists():
            raise ValueError(f"{folder} holds no prompts. Give the folder that tlprune skill tune wrote.")
        study = SkillStudy(folder, read_json(folder / FILE, "study"), device)
        study.check()
        return study

    @cached_property
    def model(self) -> Any:
        """The model that prompts are tuned on."""
        return load(self.told["model"], device=self.device)

    @cached_property
    def task(self) -> Task:
        """The task that they are tuned for."""
        return prompted(self.model, data_of(self.told["data"]), **self.told["task_options"])

    def check(self) -> None:
        """Raise a ValueError unless the task is the one that prompts were tuned for, where some are there."""
        known = self.told.get("fingerprint")
        if known is not None and known != self.task.fingerprint:
            raise ValueError(
                f"The prompts in {self.folder} were tuned for examples {known} of {self.task.name} but these are "
                f"{self.task.fingerprint} now. Restore the data."
            )

    def place(self, seed: int) -> Path:
        """The folder of a seed's prompt."""
        return self.folder / "prompts" / f"seed-{seed}"

    @cached_property
    def prompts(self) -> dict[int, Prompt]:
        """Those that were tuned so far, by seed.

        Raises:
            ValueError: there is none.
        """
        seeds = sorted(
            int(path.parent.name.removeprefix("seed-")) for path in self.folder.glob("prompts/seed-*/prompt*")
        )
        if not seeds:
            raise ValueError(f"{self.folder} holds no prompt that is tuned. Run tlprune skill tune again to go on.")
        return {seed: Prompt.load(self.place(seed)) for seed in seeds}

    @cached_property
    def scores(self) -> Scores:
        """What ``tlprune skill probe`` found.

        Raises:
            ValueError: nothing yet, or for other prompts.
        """
        if not (self.folder / SCORES).exists():
            raise ValueError(f"{self.folder} holds no scores of neurons. Run tlprune skill probe {self.folder} first.")
        found = Scores.load(self.folder / SCORES)
        now = [prompt.hash for prompt in self.prompts.values()]
        if (known := found.provenance.get("prompts", now)) != now:
            raise ValueError(
                f"The scores in {self.folder} are of prompts {', '.join(known)} but these are {', '.join(now)}. Run "
                f"tlprune skill probe {self.folder} again."
            )
        return found


def data_of(told: Mapping[str, Any]) -> dict[str, Labelled]:
    """Examples as they are told of: of a known data set, or of files of one's own."""
    if "file" in told:
        named = {name: told[name] for name in ("text", "pair", "label", "classes", "only") if name in told}
        return labelled_data(Path(told["file"]).stem, told["file"], told.get("test_file"), **named)
    parts = {"train": "train", "test": "dev"}
    source, only = told.get("source"), told.get("only")
    return {use: read_labelled(told["name"], part, source=source, only=only) for use, part in parts.items()}
