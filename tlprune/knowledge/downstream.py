"""Fine-tuning on multiple choice after a subnetwork was removed, beside the whole model and a random removal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.circuit import Circuit
from tlprune.files import read_json, write_whole
from tlprune.finetuning.adapting import adapt
from tlprune.finetuning.choice_training import choice_training, new_chooser
from tlprune.finetuning.choosing import encode_choices, likelihoods_on
from tlprune.finetuning.command import descend, fingerprints
from tlprune.finetuning.plan import FineTune
from tlprune.finetuning.removing import circuit_hash, without
from tlprune.finetuning.training import clear
from tlprune.knowledge.baselines import knowledge_baseline
from tlprune.knowledge.downstream_plan import VARIANTS, DownstreamPlan, Variant, Way
from tlprune.knowledge.downstream_result import Answers, Downstream
from tlprune.learning.settings import differences
from tlprune.tasks.questions import Questions, divided_questions

ANSWERS = "answers.json"


@dataclass(frozen=True)
class _Run:
    """One fine-tuning of one variant."""

    way: Way
    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        return f"{self.way}-{self.variant}-{self.seed}"


def downstream(
    model: Any,
    circuit: Circuit,
    questions: Questions,
    plan: DownstreamPlan | None = None,
    *,
    out: str | Path,
    test: Questions | None = None,
) -> Downstream:
    """Fine-tune the model whole, without a subnetwork, and without a random one, and ask held-out questions.

    All three see the same questions in the same order and have the same new head. The random subnetwork has as many
    sites of each matrix and is another one for each seed. Weights that are best on dev answer the test, once. What is
    finished in ``out`` is not done again, and a run that was stopped goes on from its checkpoint.

    Args:
        model: a TransformerLens decoder that came from Hugging Face, with a tokenizer; left as it was.
        circuit: the subnetwork, of weights, rows or columns within blocks; what it keeps is what is removed.
        questions: of which some serve training, dev and the test.
        plan: settings.
        out: directory of the runs.
        test: the held-out questions, where they are of another kind than ``questions``, such as those about the facts
            that the subnetwork erases; all of them are asked, whatever the plan's ``test_count``.

    Raises:
        ValueError: the model or circuit is of another kind, there are too few questions, or ``out`` holds runs with
            other settings.
        ModuleNotFoundError: low-rank updates are asked for and peft is not installed.

    Source: the comparison that Bayazit et al. (EMNLP 2024) name for later work; heads as in Radford et al., "Improving
    Language Understanding by Generative Pre-Training" (2018), section 3.3.

    Example:
        >>> import tempfile
        >>> import tlprune as tp
        >>> model = tp.load("world", device="cpu")
        >>> circuit = tp.Circuit.from_names(tp.weights(model), ["blocks.3.mlp.W_out[7,5]"])
        >>> names = ("ash", "elm", "fir", "oak", "yew")
        >>> asked = Questions("trees", names, (("a tree", "a stone"),) * 5, (0,) * 5)
        >>> plan = DownstreamPlan(ways=("likelihood",), seeds=(0,), dev_count=1, test_count=3)
        >>> found = downstream(model, circuit, asked, plan, out=tempfile.mkdtemp())
        >>> found.guessing, len(found.answers)
        (0.5, 3)
    """
    plan = plan or DownstreamPlan()
    splits = divided_questions(
        questions,
        train_count=plan.train_count,
        validation_count=plan.dev_count,
        test_count=plan.test_count,
        seed=plan.data_seed,
        test=test,
    )
    runs = [_Run(way, variant, seed) for way in plan.ways for seed in plan.seeds for variant in VARIANTS]
    found = [_answers(model, circuit, splits, plan, run, Path(out) / run.name) for run in runs]
    return Downstream(tuple(found), plan.removed, len(circuit), len(circuit.sites), splits["test"].guessing)


def _answers(
    model: Any, circuit: Circuit, splits: Mapping[str, Questions], plan: DownstreamPlan, run: _Run, folder: Path
) -> Answers:
    settings = _settings(model, circuit, splits, plan, run)
    if (folder / ANSWERS).exists():
        return _read(folder, settings, run)
    exported, removed = without(model, _circuit_of(model, circuit, run))
    _refuse_other_models(exported, model)
    folder.mkdir(parents=True, exist_ok=True)
    rows, right = splits["test"], torch.tensor(splits["test"].labels)
    if run.way == "likelihood":
        encoded = encode_choices(model.tokenizer, rows, max_length=plan.max_length)
        scores = likelihoods_on(exported, encoded, model.tokenizer, device=exported.device)
    else:
        own = {name.removeprefix(f"{exported.base_model_prefix}."): where for name, where in removed.items()}
        scores = _trained(exported, model.tokenizer, own, splits, plan, run, folder, settings)
    answers = Answers(run.way, run.variant, run.seed, tuple((scores.argmax(-1) == right).tolist()))
    write_whole(folder / ANSWERS, json.dumps({"settings": settings, "right": answers.right}, indent=1) + "\n")
    clear(folder)
    return answers


def _trained(
    exported: Any,
    tokenizer: Any,
    removed: Mapping[str, Tensor],
    splits: Mapping[str, Questions],
    plan: DownstreamPlan,
    run: _Run,
    folder: Path,
    settings: Mapping[str, Any],
) -> Tensor:
    """Scores of the test's choices, by the weights that were best on dev."""
    assert run.way != "likelihood"
    own: FineTune = plan.fine_tune(run.way, run.seed, folder)
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        torch.manual_seed(run.seed)
        chooser = new_chooser(exported, seed=run.seed)
        adapt(chooser, removed, trained=run.way, removed_weights=plan.removed, rank=plan.rank)
        training = choice_training(chooser, tokenizer, splits, own)
        descend(training, own, dict(settings) | {"data": fingerprints(training)})
        training.put_back_best(folder)
        return training.scores("test")


def _circuit_of(model: Any, circuit: Circuit, run: _Run) -> Circuit | None:
    if run.variant == "whole":
        return None
    return circuit if run.variant == "without" else knowledge_baseline(model, circuit, seed=run.seed)


def _settings(
    model: Any, circuit: Circuit, splits: Mapping[str, Questions], plan: DownstreamPlan, run: _Run
) -> dict[str, Any]:
    found = {
        **plan.fixed(),
        "model": backend_of(model).fingerprint(),
        "circuit": circuit_hash(circuit),
        "questions": {name: one.fingerprint for name, one in splits.items()},
        "run": run.name,
    }
    return json.loads(json.dumps(found))


def _read(folder: Path, settings: Mapping[str, Any], run: _Run) -> Answers:
    data = read_json(folder / ANSWERS, "file of answers")
    if found := differences(data.get("settings", {}), settings):
        raise ValueError(
            f"{folder} already holds a run with another {'; '.join(found)}. Give the same settings, or another "
            "directory with --out."
        )
    return Answers(run.way, run.variant, run.seed, tuple(bool(one) for one in data["right"]))


def _refuse_other_models(exported: Any, model: Any) -> None:
    if not exported.can_generate() or getattr(model, "tokenizer", None) is None:
        raise ValueError(
            f"Multiple choice is read at the last token of a decoder with a tokenizer, but this is "
            f"{type(exported).__name__}, or it has none. Give a model such as GPT-2."
        )
