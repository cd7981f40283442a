"""HeuristicCore against plain torch: its ablation on models written out by hand, its training loop, its exact sizes."""

from __future__ import annotations

import copy
import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from encoders import hf_model_of, prompts, randomise
from handwritten import Gates, bert, gpt2, means_over
from styles import error
from torch import Tensor

import tlprune as tp
from tlprune.learning.training import Training
from tlprune.sites import Nodes, Sites
from tlprune.studies.collection import Run, path_of
from tlprune.task import MAIN, Batch, Discovery, Stream, Task, Tokenisation, Tokens

KINDS = ("encoder", "decoder")
QUICK = tp.HeuristicCore(recipe="short", steps=6, batch_size=8, samples=2, seed=1)
each_kind = pytest.mark.parametrize("kind", KINDS)


class Example:
    """A tiny random model of Hugging Face, as the library has it and written by hand, and a padded task for it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        if kind == "encoder":
            self.source = hf_model_of("bert classes", num_hidden_layers=2)
            # Clear verdicts, so that the gradients of KL are as large as those of the budget.
            self.source.classifier.weight.data *= 8
        else:
            shape = {"vocab_size": 31, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 16, "n_inner": 20}
            config = transformers.GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
            self.source = transformers.GPT2LMHeadModel(config).double().eval()
            randomise(self.source, seed=4)
        self.model = tp.bridge(copy.deepcopy(self.source))  # a bridge takes the modules of its model
        splits = {name: self.batch(count, seed) for seed, (name, count) in enumerate(SPLITS.items(), 1)}
        self.task = Task("tiny", {MAIN: Stream(**splits)}, Tokenisation(True, "right"))

    def batch(self, count: int, seed: int) -> Batch:
        clean = prompts("bert classes", seed, padding="right", examples=count)
        corrupt = prompts("bert classes", 10 + seed, padding="right", examples=count)
        if self.kind == "decoder":
            clean, corrupt = (Tokens(one.ids, one.attention_mask) for one in (clean, corrupt))
        last = (clean.lengths - 1)[:, None] if self.kind == "decoder" else torch.zeros(count, 1, dtype=torch.long)
        answers = torch.arange(count)[:, None] % 3
        return Batch(torch.arange(count), clean, corrupt, last, answers, torch.full_like(answers, -100))

    def logits(self, batch: Batch, gates: Gates) -> Tensor:
        """By hand, ``(example, class)``."""
        clean = batch.clean
        assert clean.attention_mask is not None
        if self.kind == "encoder":
            assert clean.token_types is not None
            return bert(self.source, clean.ids, clean.attention_mask, clean.token_types, gates)
        return gpt2(self.source, clean.ids, gates)[torch.arange(len(batch)), batch.positions[:, 0]]

    def means(self) -> dict[str, Tensor]:
        """By hand, of the clean training prompts."""
        train, gates = self.task.discovery.train(), Gates()
        self.logits(train, gates)
        assert train.clean.attention_mask is not None
        return means_over(gates.seen, train.clean.attention_mask)


SPLITS = {"train": 20, "validation": 6, "test": 9}


@pytest.fixture(scope="module")
def examples() -> dict[str, Example]:
    return {kind: Example(kind) for kind in KINDS}


def masked_of(example: Example) -> tuple[tp.Masked, list[str]]:
    """The model masked as the method masks it, and the names of the sites."""
    method = tp.HeuristicCore()
    sites = method.sites(example.model)
    masked = tp.Masked(example.model, tp.Masks(sites), method.ablation(example.task.discovery, None))
    return masked, [sites.name(index) for index in range(len(sites))]


# ---- what an ablated head or MLP sends


@each_kind
def test_by_hand_is_hugging_faces_own(kind: str, examples: dict[str, Example]) -> None:
    example, batch = examples[kind], examples[kind].task.test
    options = {"attention_mask": batch.clean.attention_mask}
    options |= {"token_type_ids": batch.clean.token_types} if kind == "encoder" else {}
    own = example.source(batch.clean.ids, **options).logits
    own = own if kind == "encoder" else own[torch.arange(len(batch)), batch.positions[:, 0]]
    assert error(example.logits(batch, Gates()), own) <= 1e-9


@each_kind
@pytest.mark.parametrize("density", [1.0, 0.5, 0.0, "random"])
def test_mean_ablation_is_that_of_the_paper(kind: str, density: float | str, examples: dict[str, Example]) -> None:
    """``mu + m (x - mu)`` over real tokens of the clean training prompts: logits, and gradients of the mask."""
    example, batch = examples[kind], examples[kind].task.test
    masked, names = masked_of(example)
    noise = torch.rand(len(names), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    mask = (noise if density == "random" else (noise < density).double()).requires_grad_()
    own = mask.detach().clone().requires_grad_()
    gates = Gates(dict(zip(names, own, strict=True)), example.means())
    found, expected = masked(batch, mask=mask)[:, 0], example.logits(batch, gates)
    assert error(found, expected) <= 1e-9
    probe = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (found * probe).sum().backward()
    (expected * probe).sum().backward()
    assert mask.grad is not None
    assert own.grad is not None
    assert float(own.grad.abs().min()) > 0 or density == 0.0
    assert error(mask.grad, own.grad) <= 1e-9


@each_kind
def test_what_was_found_is_measured_by_a_hard_mask(kind: str, examples: dict[str, Example]) -> None:
    """Its logits and its KL in an evaluation are those of zeros and ones by hand."""
    example, batch = examples[kind], examples[kind].task.test
    found = dataclasses.replace(QUICK, sparsity=0.4).find(example.model, example.task)
    names = [found.sites.name(index) for index in range(len(found.sites))]
    gates = Gates({name: float(name in found.names) for name in names}, example.means())
    hard, whole = (example.logits(batch, each).log_softmax(-1) for each in (gates, Gates()))
    ablation = tp.Mean(example.task.discovery.train().clean)
    assert error(found.on(example.model, ablation=ablation)(batch)[:, 0].log_softmax(-1), hard) <= 1e-9
    measured = tp.evaluate(example.model, found, example.task, ablation=ablation)["circuit"].means()
    expected = (whole.exp() * (whole - hard)).sum(-1).mean()
    assert measured["kl"] == pytest.approx(float(expected), rel=1e-6)


def test_means_are_not_those_of_padding(examples: dict[str, Example]) -> None:
    """Means over all places, padding too, would be others: the comparison by hand can tell."""
    example = examples["encoder"]
    train, gates = example.task.discovery.train(), Gates()
    example.logits(train, gates)
    polluted = means_over(gates.seen, torch.ones_like(train.clean.ids))
    own = example.means()
    assert min(error(polluted[name], own[name]) for name in own) > 1e-3


# ---- exact sizes


def test_a_sparsity_removes_exactly_its_share_the_least_likely_and_ties_go_to_the_first(
    examples: dict[str, Example],
) -> None:
    """After one step most gates have moved by the same rate, so there are ties."""
    example, tied = examples["encoder"], 0
    for sparsity in (0.05, 0.1, 0.25, 0.5, 0.7, 0.9, 0.95):
        method = dataclasses.replace(QUICK, sparsity=sparsity, steps=1)
        values = method.score(example.model, example.task).values.tolist()
        count = round((1 - sparsity) * len(values))
        kept = sorted(sorted(range(len(values)), key=lambda index: (-values[index], index))[:count])
        found = method.find(example.model, example.task)
        assert found.kept.nonzero().flatten().tolist() == kept
        border = min(values[index] for index in kept) if kept else None
        tied += any(values[index] == border for index in range(len(values)) if index not in kept)
    assert tied


def test_five_percent_is_five_percent(examples: dict[str, Example], tmp_path: Path) -> None:
    """Not half, as where ``0.`` is put before a number of percent: through folders and steps too."""
    example = examples["decoder"]
    found = tp.subnetworks(example.model, example.task, QUICK, sparsities=(0.05, 0.5, 1 / 3), seeds=(1,), out=tmp_path)
    total = len(found.sites)
    assert [len(one) for one in found.values()] == [total, round(2 / 3 * total), total // 2]
    assert path_of(tmp_path, Run(0.05, 1)).parent.name == "sparsity-0.05"
    (tmp_path / "sparsity-0.5" / "notes.json").write_text("{}")
    assert dict(tp.Subnetworks.load(tmp_path)) == dict(found)
    assert tp.HeuristicCore(sparsity=0.05).plan(masks_of(156))["steps"] == 6750 + 30


# ---- chance


@each_kind
def test_a_seed_decides_everything(kind: str, examples: dict[str, Example], tmp_path: Path) -> None:
    example = examples[kind]
    first, again = (run(example, tmp_path / name) for name in ("first", "again"))
    assert first == again
    assert run(example, tmp_path / "other", seed=2)[0] != first[0]


@each_kind
def test_a_run_that_was_stopped_ends_the_same(
    kind: str, examples: dict[str, Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example, step = examples[kind], Training.step
    whole = run(example, tmp_path / "whole")

    def dying(self: Training) -> Any:
        if self.done == 4:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", dying)
        with pytest.raises(KeyboardInterrupt):
            run(example, tmp_path / "parts")
    assert run(example, tmp_path / "parts") == whole


def run(example: Example, folder: Path, **changes: Any) -> tuple[list[float], list[dict[str, Any]], list[str]]:
    """Where gates end, the records without the time, and the circuit."""
    folder.mkdir(exist_ok=True)
    method = dataclasses.replace(QUICK, **changes)
    files = {"metrics": folder / "metrics.jsonl", "checkpoint": folder / "run.checkpoint"}
    values = method.score(example.model, example.task, **files).values.tolist()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("seconds")
    return values, records, method.find(example.model, example.task).names


def test_answers_are_not_used(examples: dict[str, Example]) -> None:
    example = examples["encoder"]
    discovery = example.task.discovery
    batches = [
        dataclasses.replace(batch, answers=batch.answers.flip(0), corrupt=Tokens(batch.corrupt.ids.flip(0)))
        for batch in (discovery.train(), discovery.validation())
    ]
    other = Discovery(discovery.name, {MAIN: (batches[0], batches[1])}, discovery.provenance)
    found, expected = (QUICK.score(example.model, one).values for one in (other, discovery))
    assert torch.equal(found, expected)


# ---- the paper's settings


def masks_of(total: int) -> tp.Masks:
    """Masks of as many MLPs, of no model."""
    return tp.Masks(Sites((Nodes("nodes", tuple(f"m{index}" for index in range(total))),)))


@pytest.mark.parametrize("percent", [5, 20, 50, 70])
def test_steps_rates_and_targets_are_those_of_the_released_script(percent: int) -> None:
    """``6500 + 50 S`` steps up to the target and ``6 S`` more; 200 of warm-up, then down to 0 in a line."""
    plan = tp.HeuristicCore(sparsity=percent / 100).plan(masks_of(156))
    rise, steps = 6500 + 50 * percent, 6500 + 56 * percent
    assert plan["steps"] == steps
    kept = round(156 * (1 - percent / 100))
    target = [plan["budget"].target(step) for step in range(steps)]
    assert target[rise:] == [pytest.approx(1 - kept / 156)] * (steps - rise)
    assert abs(1 - kept / 156 - percent / 100) < 1 / 156
    for step in (0, 1, rise // 3, rise - 1):
        assert target[step] == pytest.approx(step / rise * (1 - kept / 156))
    optimiser, once = plan["optimiser"], torch.nn.Parameter(torch.zeros(1))
    rates = torch.optim.AdamW([once], lr=1.0)
    schedule = transformers.get_linear_schedule_with_warmup(rates, 200, steps)
    once.grad = torch.zeros(1)
    for step in range(steps):
        if step in (0, 1, 199, 200, 201, steps // 2, steps - 1):
            assert optimiser.factor(step, steps) == pytest.approx(schedule.get_last_lr()[0])
        rates.step()
        schedule.step()
    assert (optimiser.rate, optimiser.multiplier_rate, optimiser.weight_decay, optimiser.clip) == (0.1, 1.0, 0.01, 1.0)
    assert (plan["batch_size"], optimiser.samples) == (4 * 32, 4)


def test_gates_start_near_ten_by_the_seed(examples: dict[str, Example]) -> None:
    example, sites = examples["encoder"], masks_of(10_000).sites
    first, again, other = (
        tp.HeuristicCore(seed=seed)
        .masks(example.model, example.task.discovery, sites, tp.Zero(), progress=False)
        .log_alpha.detach()
        for seed in (42, 42, 43)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.mean()) == pytest.approx(10, abs=4 * 0.01 / 100)
    assert float(first.std()) == pytest.approx(0.01, rel=0.05)


def reference_loop(example: Example, method: tp.HeuristicCore, start: Tensor, taken: int) -> tuple[Tensor, list[float]]:
    """The paper's training in plain torch: where its gates are after some steps, and the norms of its gradients."""
    train, means = example.task.discovery.train(), example.means()
    names = list(means)
    names = sorted(names, key=lambda name: (int(name[1]), name[0] == "m", name))
    with torch.no_grad():
        full = example.logits(train, Gates()).log_softmax(-1)
    log_alpha, pressure = torch.nn.Parameter(start.clone()), torch.nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.AdamW(
        [{"params": [log_alpha], "lr": 0.1}, {"params": [pressure], "lr": 1.0, "maximize": True}], weight_decay=0.01
    )
    assert method.steps is not None
    scale = method.steps / 9300
    warmup, rise = round(200 * scale), round(9000 * scale)
    schedule = transformers.get_linear_schedule_with_warmup(optimiser, warmup, method.steps)
    generator, norms = torch.Generator().manual_seed(method.seed), list[float]()
    order, place, size = torch.arange(0), 0, method.batch_size
    for step in range(taken):
        if place + size > len(order):
            order, place = torch.randperm(len(train), generator=generator), 0
        rows = order[place : place + size]
        rows = rows[torch.argsort(train.clean.lengths[rows], stable=True)]
        place += size
        optimiser.zero_grad()
        for part in rows.chunk(method.samples):
            noise = 1e-6 + (1 - 2e-6) * torch.rand(len(names), generator=generator)
            smooth = torch.sigmoid((noise.log() - (1 - noise).log() + log_alpha) / (2 / 3))
            z = (1.2 * smooth - 0.1).clamp(0, 1)
            gates = Gates(dict(zip(names, z.double(), strict=True)), means)
            own = example.logits(train.rows(part), gates).log_softmax(-1)
            kl = torch.nn.functional.kl_div(own, full[part], reduction="batchmean", log_target=True)
            gap = 0.5 * min(1.0, step / rise) - (1 - z.mean())
            loss = kl + pressure[0] * gap + pressure[1] * gap**2
            (loss / method.samples).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_([log_alpha, pressure], 1.0)))
        optimiser.step()
        schedule.step()
    return log_alpha.detach(), norms


@each_kind
def test_training_is_that_of_a_plain_loop(kind: str, examples: dict[str, Example]) -> None:
    """With the same noise the gates are the same after 25 steps, through warm-up, clipping and a second epoch."""
    example = examples[kind]
    method = tp.HeuristicCore(steps=465, batch_size=8, samples=4, seed=7)
    masked, names = masked_of(example)
    start = torch.linspace(-1.5, 2.5, len(names))[
        torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
    ]
    masks = tp.Masks(masked.sites, tp.HardConcrete(), start=start)
    trained = tp.Masked(example.model, masks, masked.ablation)
    records = list(islice(tp.steps(trained, example.task.discovery, **method.plan(masks)), 25))
    expected, norms = reference_loop(example, method, start, 25)
    assert len(records) == 25
    assert float((expected - start).abs().max()) > 0.5
    assert min(norms) < 1 < max(norms), "some gradients are clipped and some are not"
    assert torch.allclose(masks.log_alpha.detach(), expected, atol=1e-5, rtol=0)
