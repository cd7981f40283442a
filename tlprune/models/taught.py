"""A small trained model whose circuit is known: it was taught to run a program on certain heads and MLPs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tlprune.circuit import Circuit
from tlprune.models.huggingface import from_huggingface
from tlprune.models.planted_tasks import Pairs, task_of_pairs
from tlprune.models.taught_program import NO, PROGRAM_EDGES, YES, draw_prompts, program
from tlprune.task import Task

NAME = "taught"
DIRECTORY = Path(__file__).parent / NAME
SPLITS = {"train": 200, "validation": 100, "test": 200}


@dataclass(frozen=True, eq=False)
class Taught:
    """A trained model, the task it solves, and the edges by which it does so.

    Attributes:
        model: a ``HookedTransformer``, or on TransformerLens 4 a ``TransformerBridge``, of 3 layers with 4 heads and an
            MLP each, with layer norms: 262 edges.
        task: prompt pairs with one answer at the last position.
        circuit: the true edges, under merged embeddings and resample ablation.
    """

    model: Any
    task: Task
    circuit: Circuit


def taught(*, device: str | None = None, dtype: torch.dtype = torch.float32) -> Taught:
    """The small trained model in the package whose circuit is known.

    A prompt has a flag, four keys each with a value, and one of the keys again. The program looks up the value behind
    that key; the flag decides whether its class (on or off) is the answer, or the opposite:

    - ``a0.h2`` notes behind every value the key before it, ``m0`` the class of every value;
    - ``a1.h1`` finds the value of the queried key (q from the query, k from ``a0.h2``, v from ``m0``);
    - ``a1.h3`` brings the flag;
    - ``m2`` computes the exclusive or of both and writes the answer.

    **What is true.** In training any edges carried what they carry on another prompt, and the model had to answer as
    the program does with the same variables interchanged; edges outside of the program had to change nothing
    (interchange interventions, of edges instead of nodes). So the 9 edges are true in any state of the others, as far
    as training goes: layer norms mix everything here, and other edges have a small effect instead of none. The mean
    change of the logit difference over test prompts is in ``circuit.provenance["effects"]``, for resampling the true
    edge that matters least (``smallest_inside``), the other edge that matters most (``largest_outside``) and all others
    at once (``all_outside``); ``mean_difference`` is what changes. All heads and MLPs vary equally much between
    prompts, so that true ones do not stand out. As in planted models, q and k that attend by position are not true
    under resampling and would be under zero ablation.

    Source: Geiger et al. 2022, "Inducing Causal Structure for Interpretable Neural Networks" (arXiv 2112.00826); Gupta
    et al. 2024, "InterpBench" (arXiv 2407.14494). The program and the training are this library's
    (``scripts/train_taught.py``).

    Args:
        device: where to put the model; by default a GPU if there is one.
        dtype: of its weights.

    Example:
        >>> known = taught(device="cpu")
        >>> len(known.circuit), known.circuit.n_effective, known.circuit.graph.n_edges
        (9, 9, 262)
        >>> batch = known.task.test
        >>> logits = known.model(batch.clean.ids)[:, -1]
        >>> bool((logits.argmax(-1) == batch.answers[:, 0]).all())
        True
    """
    model = from_huggingface(DIRECTORY, device=device, dtype=dtype)
    return Taught(model, taught_task(model), taught_circuit(model))


def taught_task(model: Any, *, seed: int = 0) -> Task:
    """The task of the taught model: yes or no, where the twin is another prompt with the other answer.

    Args:
        model: the model of :func:`taught`, told by its ``cfg.model_name``.
        seed: seed of the prompts; the task of :func:`taught` has seed 0.

    Raises:
        ValueError: the model is another one.

    Example:
        >>> task = taught_task(taught(device="cpu").model)
        >>> task.name, len(task.discovery.train()), len(task.discovery.validation()), len(task.test)
        ('taught', 200, 100, 200)
    """
    _check(model)
    generator = torch.Generator().manual_seed(seed)
    clean, corrupt = (draw_prompts(8 * sum(SPLITS.values()), generator) for _ in range(2))
    right, other = program(clean).answer, program(corrupt).answer
    differ = right != other
    answers, foils = (torch.where(bits[differ], YES, NO) for bits in (right, other))
    pairs = Pairs(clean[differ], corrupt[differ], answers, foils)
    return task_of_pairs(NAME, pairs, SPLITS, options={"seed": seed, **SPLITS})


def taught_circuit(model: Any) -> Circuit:
    """The true edges of the taught model.

    Args:
        model: the model of :func:`taught`, told by its ``cfg.model_name``.

    Raises:
        ValueError: the model is another one.
    """
    _check(model)
    provenance = {"source": "scripts/train_taught.py", "name": NAME, "ablation": {"name": "resample"}}
    provenance["effects"] = json.loads((DIRECTORY / "effects.json").read_text())
    return Circuit.from_edges(model, PROGRAM_EDGES, provenance=provenance)


def _check(model: Any) -> None:
    name = str(getattr(getattr(model, "cfg", None), "model_name", ""))
    if name != NAME:
        raise ValueError(
            f"The task and truth {NAME!r} are of the model of tp.taught() but this one is "
            f"{name or type(model).__name__!r}. Load it with tp.taught().model or tp.load({NAME!r})."
        )
