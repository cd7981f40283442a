"""A folder of subnetworks as the actions of ``tlprune core`` share it: what was pruned, for what, and how."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tlprune.backends import backend_of
from tlprune.files import read_json, write_whole
from tlprune.masking.means import MeasuredMean
from tlprune.models.load import load
from tlprune.studies.collection import Subnetworks
from tlprune.studies.searching import MEANS
from tlprune.task import Task
from tlprune.tasks import task_builder

FILE = "study.json"


@dataclass(frozen=True)
class Study:
    """A folder that ``tlprune core prune`` wrote.

    Attributes:
        folder: the folder.
        told: its ``study.json``: the model, the task and its settings, the command's own.
        device: where to compute; by default a GPU if there is one.
    """

    folder: Path
    told: Mapping[str, Any]
    device: str | None = None

    @staticmethod
    def open(folder: Path, *, device: str | None = None) -> Study:
        """Read a folder.

        Raises:
            ValueError: there is no study in it.
        """
        if not (folder / FILE).exists():
            raise ValueError(f"{folder} holds no study. Give the folder that tlprune core prune wrote.")
        return Study(folder, read_json(folder / FILE, "study"), device)

    def write(self) -> None:
        """Write ``study.json``, or check that the one that is there says the same.

        Raises:
            ValueError: it says something else, or the folder cannot be written.
        """
        path = self.folder / FILE
        if path.exists():
            known = read_json(path, "study")
            differing = sorted(name for name in {*known, *self.told} if known.get(name) != self.told.get(name))
            if differing:
                raise ValueError(
                    f"{self.folder} holds a study with another {' and '.join(differing)}. Give another directory with "
                    "--out."
                )
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(dict(self.told), indent=1) + "\n")
        except OSError as error:
            raise ValueError(
                f"Cannot write to {self.folder}: {error.strerror}. Choose another directory with --out."
            ) from None

    @cached_property
    def model(self) -> Any:
        """The model that was pruned."""
        return load(self.told["model"], device=self.device)

    @cached_property
    def task(self) -> Task:
        """The task that it was pruned on."""
        return self.task_called(self.told["task"], **self.told["task_options"])

    def task_called(self, name: str, **options: Any) -> Task:
        """Any task for this model.

        Raises:
            ValueError: there is no such task, it takes no such option, or it does not fit the model.
        """
        build = task_builder(name)
        known = inspect.signature(build).parameters
        strangers = [option for option in options if option not in known]
        if strangers and not any(one.kind is one.VAR_KEYWORD for one in known.values()):
            raise ValueError(f"Task {name!r} takes no {' and no '.join(strangers)}. Leave them out.")
        return build(self.model, **options)

    @cached_property
    def subnetworks(self) -> Subnetworks:
        """What was found so far."""
        return Subnetworks.load(self.folder)

    @cached_property
    def means(self) -> MeasuredMean:
        """What removed heads and MLPs send."""
        found = MeasuredMean.load(self.folder / MEANS)
        found.check_model(backend_of(self.model))
        return found
