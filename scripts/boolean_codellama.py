"""Circuits of Boolean expressions in CodeLlama-13B, for few-shot and instruction prompts, and what they share.

Edge Pruning's largest study (section 5), which took 32 GPUs. Here it is one GPU that holds the model in bfloat16, or
several that share each batch:

    python scripts/boolean_codellama.py --out runs/codellama
    accelerate launch --multi_gpu --num_processes 4 scripts/boolean_codellama.py --out runs/codellama

The same line again goes on where it was stopped. Settings are ``tp.recipes["boolean-few-shot"]``, but embeddings are
one node, as in the paper's count of 3,877,661 edges; ``--embeddings kept`` has them always kept, as the paper's code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import tyro

import tlprune as tp
from tlprune.files import write_whole
from tlprune.processes import Processes, part, processes
from tlprune.tasks.boolean_expressions import Prompts

FIGURES = ("agreement", "accuracy", "kl")


@dataclass(frozen=True)
class Study:
    """What is pruned, and how long.

    Attributes:
        out: folder for a circuit, its training record and figures of each kind of prompts, and for summary.json.
        model: a name on the hub, or a local directory in Hugging Face format, of a decoder.
        prompts: kinds of prompts.
        embeddings: whether embedding edges may go (node), or are never removed and not counted (kept).
        precision: of the weights; masks and what is summed are float32 anyway.
        steps: training steps; warm-ups shrink with them. By default the paper's 6,000.
        sparsity: target, by default the paper's 1.2, which presses to the end.
        batch_size: examples per step, of all processes together.
        micro_batch: examples that a process runs at once.
        train: examples to learn from.
        validation: examples for hard figures during training.
        test: examples for figures.
        seed: of mask samples, example order and prompts.
        device: by default a GPU if there is one, of several processes each its own.
    """

    out: Path
    model: str = "codellama/CodeLlama-13b-Instruct-hf"
    prompts: tuple[Prompts, ...] = get_args(Prompts)
    embeddings: Literal["node", "kept"] = "node"
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    steps: int | None = None
    sparsity: float | None = None
    batch_size: int = 32
    micro_batch: int = 4
    train: int = 4000
    validation: int = 100
    test: int = 500
    seed: int = 0
    device: str | None = None


def main(words: list[str] | None = None) -> None:
    """Find the circuits, in processes that share the training; the first one measures them."""
    study = tyro.cli(Study, args=words, description=__doc__)
    together = processes()
    together.from_first(lambda: _make(study))
    model = read_model(study, together)
    found = {kind: circuit(study, kind, model, together) for kind in study.prompts}
    if together.first:
        summary = measured(study, model, found)
        write_whole(study.out / "summary.json", json.dumps(summary, indent=1) + "\n")
        print(json.dumps(summary, indent=1))
    part()


def read_model(study: Study, together: Processes) -> Any:
    """The model behind a TransformerBridge, which holds every weight once."""
    dtype, device = getattr(torch, study.precision), study.device or together.device
    if Path(study.model).is_dir():
        return tp.bridge(study.model, device=device, dtype=dtype)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    theirs = AutoModelForCausalLM.from_pretrained(study.model, dtype=dtype)
    return tp.bridge(theirs, device=device, tokenizer=AutoTokenizer.from_pretrained(study.model))


def task_of(study: Study, kind: Prompts, model: Any) -> tp.Task:
    """The prompts of a kind."""
    return tp.tasks.boolean_expressions(
        model, kind, train=study.train, validation=study.validation, test=study.test, seed=study.seed
    )


def method_of(study: Study, kind: Prompts, task: tp.Task) -> tp.EdgePruning:
    """The paper's recipe with the study's changes."""
    recipe = tp.recipes[f"boolean-{kind}"]
    paper = recipe.settings
    steps = study.steps or paper.steps
    assert steps and paper.steps and paper.warmup is not None and paper.rise is not None
    return recipe.method(
        task, sparsity=study.sparsity, steps=steps, batch_size=study.batch_size, seed=study.seed,
        warmup=paper.warmup * steps // paper.steps, rise=max(1, paper.rise * steps // paper.steps),
        keep_embeddings=study.embeddings == "kept",
    )  # fmt: skip


def circuit(study: Study, kind: Prompts, model: Any, together: Processes) -> tp.Circuit:
    """The circuit of a kind of prompts, found now or before."""
    folder = study.out / kind
    path, task = folder / "circuit.json", task_of(study, kind, model)
    if together.from_first(path.exists):
        return together.from_first(lambda: tp.Circuit.load(path))
    files = {"metrics": folder / "metrics.jsonl", "checkpoint": folder / "run.safetensors"}
    found = method_of(study, kind, task).find(
        model, task, ablation=tp.recipes[f"boolean-{kind}"].ablation, micro_batch=study.micro_batch,
        progress=together.first, **files,
    )  # fmt: skip
    together.in_first(lambda: found.save(path))
    return found


def measured(study: Study, model: Any, found: Mapping[Any, tp.Circuit]) -> dict[str, Any]:
    """Sizes, figures on test prompts of each kind, and overlap of the circuits."""
    tasks = {kind: task_of(study, kind, model) for kind in found}
    summary: dict[str, Any] = {"model": study.model, "edges": len(next(iter(found.values())).sites)}
    circuits: dict[str, tp.Circuit] = {**found}
    if len(found) == 2:
        first, second = found.values()
        circuits["shared"] = first & second
        summary["intersection over union"] = len(first & second) / max(1, len(first | second))
    for name, one in circuits.items():
        summary[name] = {"edges": len(one), "effective": one.n_effective}
        summary[name] |= {f"on {kind}": figures(model, one, task) for kind, task in tasks.items()}
    return summary


def figures(model: Any, circuit: tp.Circuit, task: tp.Task) -> dict[str, float]:
    """Those of the circuit and of the full model."""
    found = tp.evaluate(model, circuit, task)
    own, full = found["circuit"].means(), found["full model"].means()
    return {**{name: own[name] for name in FIGURES}, "accuracy of the full model": full["accuracy"]}


def _make(study: Study) -> None:
    for kind in study.prompts:
        (study.out / kind).mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    main()
