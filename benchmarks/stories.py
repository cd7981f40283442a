"""Gendered pronouns in a real story model: how much of its behaviour few edges keep, in-sample and held out.

    python -m benchmarks.stories --data-dir ../shared [--json]

The model is stories260K (TinyStories, 5 layers, 8 heads, 4 key/value heads; 1,701 edges). Figures are KL from the full
model in nats over the whole vocabulary, of the hard circuit, resample ablation.

``in-sample``: found and measured on the same 126 prompts (6 templates x 21 names, one twin each).
``fold 1`` to ``3``: each holds out 2 of the 6 templates and a third of 67 names; the circuit is found on prompts of
the others alone and measured on prompts made of held-out templates *and* held-out names, each with every twin. With the
21 names of the in-sample prompts (``--few-names``) a circuit sees only 14, and this model tells the gender of each name
by pieces of its own: what is missing for an unseen name is then most of the error.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

import tlprune as tp
from tlprune.learning.metrics import measure
from tlprune.tasks.gendered_pronoun import STORY_NAMES, STORY_TEMPLATES, paired_groups
from tlprune.tasks.pairs import Pair, from_pairs
from tlprune.tasks.words import listed

FOLDS = 3
# Names that the model tells the gender of, by more than 0.5 nats on average over the templates.
NAMES = {
    "he": listed(
        "Tommy Max Bob Mark Leo Jim Jack Billy Joe Peter Fred Benny Jimmy Jake Rob Roy Nick Henry Harry Dave Greg Toby "
        "Teddy John Bobby Noah David Josh George Freddy Jacob"
    ),
    "she": listed(
        "Mia Sue Amy Sara Mary Sally Lisa Tina Lucy Jane Lola Molly Ella Sarah Lilly Nina Ann Maria Eva Nora Emily "
        "Lucky Anna Emma Susie Laura Clara Ellie Hannah Kelly Polly Katie Sophie Julia Annie Sophia"
    ),
}
Group = dict[str, list[str]]


@dataclass(frozen=True)
class Settings:
    """Edge Pruning on stories260K.

    Attributes:
        data_dir: holds models/stories260K.
        edges: circuit sizes.
        seeds: how many method seeds.
        recipe: of EdgePruning.
        steps: of training; by default the recipe's.
        threads: for torch.
        settings: which of in-sample, fold 1, fold 2 and fold 3 to run.
        few_names: folds over the in-sample names alone.
        json: print one JSON list instead of a table.
    """

    data_dir: Path = Path(os.environ.get("TLPRUNE_DATA", "../shared"))
    edges: tuple[int, ...] = (170, 85)
    seeds: int = 3
    recipe: Literal["short", "paper"] = "short"
    steps: int | None = None
    threads: int = 2
    settings: tuple[str, ...] = ("in-sample", "fold 1", "fold 2", "fold 3")
    few_names: bool = False
    json: bool = False


def main() -> None:
    settings = tyro.cli(Settings)
    torch.set_num_threads(settings.threads)
    model = tp.load(settings.data_dir / "models" / "stories260K")
    chosen = [task for task in tasks(model, settings) if task.name in settings.settings]
    rows = [row for task in chosen for row in figures(model, task, settings)]
    print(json.dumps(rows, indent=1) if settings.json else table(rows))


def tasks(model: Any, settings: Settings) -> list[tp.Task]:
    """The in-sample task and one for each fold."""
    everything = pairs(STORY_TEMPLATES, paired_groups(model.tokenizer, STORY_NAMES), one_twin=True)
    result = [from_pairs("in-sample", model, train=everything, validation=everything, test=everything)]
    groups = paired_groups(model.tokenizer, STORY_NAMES if settings.few_names else NAMES)
    for fold in range(FOLDS):
        train = pairs(_without(STORY_TEMPLATES, fold), _names(groups, fold, held_out=False))
        test = pairs(STORY_TEMPLATES[fold::FOLDS], _names(groups, fold, held_out=True))
        result.append(from_pairs(f"fold {fold + 1}", model, train=train, validation=train, test=test))
    return result


def _without(templates: Sequence[str], fold: int) -> list[str]:
    return [template for index, template in enumerate(templates) if index % FOLDS != fold]


def _names(groups: Sequence[Group], fold: int, *, held_out: bool) -> list[Group]:
    """Names of a fold, or those of the others; a third of each group of equal token counts."""
    return [
        {
            pronoun: [name for place, name in enumerate(names) if (place % FOLDS == fold) == held_out]
            for pronoun, names in group.items()
        }
        for group in groups
    ]


def pairs(templates: Sequence[str], groups: Sequence[Group], *, one_twin: bool = False) -> list[Pair]:
    """Every template with every name, and every twin of the other gender or, on demand, one drawn at random."""
    chance = random.Random(0)
    result: list[Pair] = []
    for template in templates:
        for group in groups:
            for pronoun, other in (("he", "she"), ("she", "he")):
                for name in group[pronoun]:
                    twins = [chance.choice(group[other])] if one_twin else group[other]
                    result += [
                        Pair(template.format(name=name), template.format(name=twin), f" {pronoun}", f" {other}")
                        for twin in twins
                    ]
    return result


def figures(model: Any, task: tp.Task, settings: Settings) -> list[dict[str, Any]]:
    """Test figures of found, random and empty circuits."""
    graph = tp.Graph.of(model)
    masked = tp.Masked(model, tp.Circuit.from_edges(graph, []))
    rows = [_row(masked, task, "empty", 0, 0, masked.masks)]
    for edges in settings.edges:
        for seed in range(settings.seeds):
            method = tp.EdgePruning(edges=edges, recipe=settings.recipe, steps=settings.steps, seed=seed)
            rows.append(_row(masked, task, "circuit", edges, seed, method.find(model, task)))
            rows.append(_row(masked, task, "random", edges, seed, tp.connected_random(graph, edges, seed=seed)))
    empty = rows[0]["kl"]
    return [{**row, "of_empty": row["kl"] / empty} for row in rows]


def _row(masked: tp.Masked, task: tp.Task, name: str, edges: int, seed: int, circuit: Any) -> dict[str, Any]:
    means = measure(masked, circuit.kept, task.test).means()
    row = {"setting": task.name, "name": name, "edges": edges, "seed": seed, "effective": circuit.n_effective}
    return {**row, "prompts": len(task.test), **means}


def table(rows: list[dict[str, Any]]) -> str:
    """One line per setting, circuit and size: each seed's KL, and the mean as a part of the empty circuit's."""
    lines = ["| setting | prompts | circuit | edges | effective | KL by seed (nats) | mean / empty | agreement |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for key in dict.fromkeys((row["setting"], row["name"], row["edges"]) for row in rows):
        same = [row for row in rows if (row["setting"], row["name"], row["edges"]) == key]
        kls = ", ".join(f"{row['kl']:.3f}" for row in same)
        effective = ", ".join(str(row["effective"]) for row in same)
        part = sum(row["of_empty"] for row in same) / len(same)
        agreement = sum(row["agreement"] for row in same) / len(same)
        prompts = same[0]["prompts"]
        lines.append(
            f"| {key[0]} | {prompts} | {key[1]} | {key[2]} | {effective} | {kls} | {part:.1%} | {agreement:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
