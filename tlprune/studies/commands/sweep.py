"""``tlprune sweep``: a circuit for each target sparsity and seed, in one table and one chart."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from tyro.conf import arg

from tlprune.choices import choice, value_of
from tlprune.files import write_whole
from tlprune.methods import METHODS
from tlprune.methods.paper_recipes import recipes
from tlprune.models.load import load
from tlprune.outcome import Outcome
from tlprune.studies.commands.writing import write
from tlprune.studies.sweeping import sweep
from tlprune.tasks import task_builder

# A sweep gives these itself.
_OWN = ("sparsity", "edges", "seed")
SWEPT = {
    name: kind for name, kind in METHODS.items() if set(_OWN[:2]) <= {field.name for field in dataclasses.fields(kind)}
}


@dataclass(frozen=True)
class Command:
    """What to find, at which sizes, and where the result goes.

    Attributes:
        model: as of tlprune discover.
        task: as of tlprune discover.
        method: edge-pruning, eap, eap-ig or another method with a sparsity. Each has settings of its own: --method eap
            --help.
        recipe_of: take the settings, ablation and targets of Edge Pruning's paper for one of its tasks: ioi, ioi-t1,
            greater-than, gendered-pronoun, reverse, xproportion, boolean-few-shot or boolean-instruction. Other flags
            go before them.
        targets: fractions of the edges to remove; above 1 with --size reached. By default .9 .94 .96 .98, or the
            recipe's.
        seeds: of the method, where chance has a part in it.
        out: directory with a folder for each cell; run again to go on.
        task_seed: of the prompts and the split.
        device: where to compute, such as cpu or cuda; by default a GPU if there is one.
    """

    model: str = "testbed"
    task: str = "ioi"
    method: str = "edge-pruning"
    recipe_of: str | None = None
    targets: tuple[float, ...] | None = None
    seeds: tuple[int, ...] = (0,)
    out: Path = Path("runs/sweep")
    task_seed: int = 0
    device: str | None = None


def settings_for(words: Sequence[str]) -> type:
    """The command's settings: what to find, and the flags of the method that the words name.

    Raises:
        ValueError: there is no such method or recipe, or the recipe is of another method.
    """
    name, recipe = value_of(words, "--method", Command.method), value_of(words, "--recipe-of", "")
    kind = choice("method with a sparsity", name, SWEPT)
    if recipe and name != Command.method:
        raise ValueError(f"The recipes are Edge Pruning's but the method is {name}. Leave one of the two out.")
    default = recipes[recipe].settings if recipe else kind()
    fields = [("what", Annotated[Command, arg(name="")]), ("settings", Annotated[_flags_of(default), arg(name="")])]
    made = dataclasses.make_dataclass("Sweep", fields, frozen=True)
    made.__doc__ = "Find and measure a circuit for each target sparsity and seed. Run again to go on."
    return made


def _flags_of(default: Any) -> type:
    """A method's settings, but those that a sweep gives, with one method's as defaults."""
    kind = type(default)
    hints = get_type_hints(kind)
    listed: list[Any] = [
        (field.name, hints[field.name], dataclasses.field(default=getattr(default, field.name)))
        for field in dataclasses.fields(kind)
        if field.name not in _OWN
    ]
    made = dataclasses.make_dataclass(f"{kind.__name__}Settings", listed, frozen=True)
    made.__doc__ = kind.__doc__
    return made


def run_sweep(settings: Any) -> Outcome:
    """Find and measure the circuits, write the table and the chart; what to say."""
    what, recipe = settings.what, settings.what.recipe_of and recipes[settings.what.recipe_of]
    model = load(what.model, device=what.device)
    task = task_builder(what.task)(model, seed=what.task_seed)
    targets = what.targets or (recipe.targets if recipe else (0.9, 0.94, 0.96, 0.98))
    given = {**vars(settings.settings), "sparsity": targets[0]}
    if recipe and given["objective"] is None:
        given["objective"] = recipe.method(task).objective
    found = sweep(
        model,
        task,
        SWEPT[what.method](**given),
        targets=targets,
        seeds=what.seeds,
        out=what.out,
        ablation=recipe.ablation if recipe else None,
        tell=partial(print, file=sys.stderr, flush=True),
        progress=sys.stderr.isatty(),
    )
    write_whole(what.out / "table.txt", f"{found}\n")
    write_whole(what.out / "table.csv", found.csv())
    said = write(what.out, "sweep", found, title=f"{task.name} in {what.model}", more=[lambda: found.plot("kl")])
    text = f"{found}\n\n{said}, and table.txt, table.csv and a folder for each target and seed"
    return Outcome(text, found.as_dict(), out=what.out)


ACTIONS = {"": ("a circuit for each size and seed", settings_for, run_sweep)}
