"""``tlprune skill tune``: a soft prompt for each seed."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import OmitArgPrefixes

from tlprune.evaluation.table import aligned
from tlprune.finetuning.prompt_tuning import PromptTuning
from tlprune.outcome import Outcome
from tlprune.skills.accuracy import correct
from tlprune.skills.commands.flags import without
from tlprune.skills.commands.study import SkillStudy


@dataclass(frozen=True)
class Tune:
    """Model and data, and where the prompts go.

    Attributes:
        model: a language model or an encoder with a head for masked words: a local Hugging Face directory, or a name
            that tlprune discover takes.
        data: sst2, imdb, tweet-sentiment, mnli, qnli, qqp, cola, ag-news or dbpedia; or a .csv, .tsv, .json, .jsonl or
            .parquet file of your own.
        test_file: examples for the test, beside a file of your own; by default they are drawn from it.
        text: column of the text, in a file of your own.
        pair: column of the second text of pairs.
        label: column of the class.
        classes: their names in the order of their numbers; by default the distinct labels.
        only: classes to keep, such as entailment contradiction; examples of others are left out.
        data_dir: folder of a known data set's files; by default the one in TLPRUNE_DATA, else the hub.
        words: what the model is to say, one word for each class, as single tokens.
        template: what is written around {text}, and {pair}; by default nothing.
        length: vectors of a prompt.
        train_count: training examples.
        validation_count: examples that are held out of the training part, to tell which prompt is best.
        test_count: test examples; all by default.
        max_length: tokens of text per example; by default 128, or what the context has room for.
        data_seed: of the split.
        seeds: of the prompts, one for each.
        out: directory for study.json and prompts/seed-0 and so on.
        device: where to compute, such as cpu or cuda; by default a GPU if there is one.
    """

    model: str
    data: str = "sst2"
    test_file: Path | None = None
    text: str = "text"
    pair: str | None = None
    label: str = "label"
    classes: tuple[str, ...] | None = None
    only: tuple[str, ...] | None = None
    data_dir: Path | None = None
    words: tuple[str, ...] | None = None
    template: str | None = None
    length: int = 16
    train_count: int = 2000
    validation_count: int = 500
    test_count: int | None = None
    max_length: int | None = None
    data_seed: int = 0
    seeds: tuple[int, ...] = (0, 1, 2)
    out: Path = Path("runs/skill")
    device: str | None = None

    def told(self, tuning: Any) -> dict[str, Any]:
        """What the other actions need to know, as plain data."""
        named = ("length", "words", "template", "train_count", "validation_count", "test_count", "max_length")
        options = {name: getattr(self, name) for name in named} | {"seed": self.data_seed}
        return {
            "model": self.model,
            "data": self._data(),
            "task_options": {name: _plain(value) for name, value in options.items() if value is not None},
            "tuning": {name: _plain(value) for name, value in dataclasses.asdict(tuning).items() if name != "seed"},
        }

    def _data(self) -> dict[str, Any]:
        own = bool(Path(self.data).suffix)
        given = {"file": self.data, "test_file": self.test_file, "text": self.text, "pair": self.pair}
        given |= {"label": self.label, "classes": self.classes}
        known = {"name": self.data, "source": self.data_dir}
        chosen = (given if own else known) | {"only": self.only}
        return {name: _plain(value) for name, value in chosen.items() if value is not None}


Settings = without(PromptTuning, "seed")
Command = dataclasses.make_dataclass(
    "Command", [("study", OmitArgPrefixes[Tune]), ("settings", OmitArgPrefixes[Settings])], frozen=True
)
Command.__doc__ = "Tune a soft prompt for each seed, the model as it is. Run again to go on."


def tune(settings: Any) -> Outcome:
    """Tune the prompts; what to say."""
    what, tuning = settings.study, PromptTuning(**vars(settings.settings))
    study = SkillStudy(what.out, what.told(tuning), what.device)
    study = SkillStudy(what.out, {**study.told, "fingerprint": study.task.fingerprint}, what.device)
    study.write()
    accuracies = {}
    for seed in what.seeds:
        one = dataclasses.replace(tuning, seed=seed)
        prompt = one.tune(study.model, study.task, folder=study.place(seed), watch=_watch(seed))
        accuracies[seed] = _accuracies(study, prompt)
    rows = [[f"seed {seed}", *(f"{100 * share:.1f} %" for share in one.values())] for seed, one in accuracies.items()]
    table = "\n".join(aligned(["accuracy", "validation", "test"], rows))
    text = f"{table}\n\nwrote study.json and prompts to {what.out}/"
    return Outcome(text, {"accuracy_by_seed": accuracies}, out=what.out)


def _watch(seed: int) -> Callable[[dict[str, Any]], None]:
    """Tell on a terminal how tuning goes."""

    def told(record: dict[str, Any]) -> None:
        if sys.stderr.isatty():
            print(f"seed {seed} | step {record['step']} | validation {100 * record['accuracy']:.1f} %", file=sys.stderr)

    return told


def _accuracies(study: SkillStudy, prompt: Any) -> dict[str, float]:
    """On validation and test."""
    splits = {"validation": study.task.discovery.validation(), "test": study.task.test}
    return {
        name: float(correct(study.model, batch, study.task.metrics, prompts=[prompt]).mean())
        for name, batch in splits.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value.resolve()) if isinstance(value, Path) else value
