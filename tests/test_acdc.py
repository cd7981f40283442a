"""ACDC decides as its plain definition does, however many removals it tries in one run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from styles import fresh, model_of, random_batch
from torch import Tensor

import tlprune as tp
from tlprune.learning.hard_metric import HardMetric
from tlprune.methods.acdc_plain import acdc_plain
from tlprune.task import Stream, Tokenisation


def random_task(examples: int = 3, length: int = 6) -> tp.Task:
    batches = (random_batch(examples, length, seed=seed) for seed in (1, 2, 3))
    return tp.Task("random", {"main": Stream(*batches)}, Tokenisation(prepend_bos=True))


def plainly(method: tp.ACDC, model: Any, task: tp.Task, ablation: Any = None) -> Tensor:
    """The slow reference with a method's settings."""
    sites = tp.edges(model, embeddings=method.embeddings, kv=method.kv)
    metric = HardMetric(model, sites, ablation or tp.Resample(), task.discovery.train(), method.objective)
    return acdc_plain(metric, sites.graph, method.threshold)


@pytest.mark.parametrize("threshold", [0.003, 0.03])
def test_the_search_decides_as_the_plain_definition(threshold: float) -> None:
    method, task = tp.ACDC(threshold=threshold), random_task()
    found = method.find(model_of("llama"), task)
    assert torch.equal(found.kept, plainly(method, model_of("llama"), task))
    assert 0 < len(found) < len(found.sites)


# ---- several thresholds


def test_a_sweep_gives_what_separate_searches_give_in_the_order_asked_for() -> None:
    method, task, thresholds = tp.ACDC(threshold=0.1), random_task(), (0.03, 0.001, 0.3, 0.01)
    swept = method.sweep(model_of("gpt2"), task, thresholds)
    alone = [dataclasses.replace(method, threshold=one).find(model_of("gpt2"), task) for one in thresholds]
    assert swept == alone
    assert len({len(circuit) for circuit in swept}) == 4
    assert [tp.method_from(circuit.provenance).threshold for circuit in swept] == list(thresholds)


def test_scores_are_the_largest_threshold_that_keeps_an_edge() -> None:
    method, task, thresholds = tp.ACDC(threshold=0.1), random_task(), (0.001, 0.003, 0.01)
    scores = method.score(model_of("gpt2"), task, thresholds=thresholds)
    kept = torch.stack([circuit.kept for circuit in method.sweep(model_of("gpt2"), task, thresholds)])
    expected = (kept * torch.tensor(thresholds)[:, None]).amax(0)
    assert torch.equal(scores.values, expected)
    assert scores.values.unique().tolist() == pytest.approx([0, *thresholds])
    assert tp.method_from(scores.provenance) == method


# ---- stopping and going on


class StopError(Exception):
    pass


def stopped(model: Any, after: int) -> Any:
    """A model that fails in its run number ``after``."""
    runs: list[int] = []

    def count(value: Tensor, hook: Any) -> None:
        runs.append(1)
        if len(runs) == after:
            raise StopError

    model.hook_dict["unembed.hook_in" if "unembed.hook_in" in model.hook_dict else "ln_final.hook_scale"].add_hook(
        count
    )
    return model


@pytest.mark.parametrize("after", [6, 12, 20])
def test_a_search_goes_on_where_it_was_stopped_and_finds_the_same(tmp_path: Path, after: int) -> None:
    method, task, file = tp.ACDC(threshold=0.03), random_task(), tmp_path / "search.safetensors"
    whole = method.sweep(model_of("gpt2"), task, (0.03, 0.01))
    with pytest.raises(StopError):
        method.sweep(stopped(fresh("gpt2"), after), task, (0.03, 0.01), checkpoint=file)
    assert file.exists()
    again = method.sweep(model_of("gpt2"), task, (0.03, 0.01), checkpoint=file)
    assert again == whole
    assert again[0].provenance["counts"]["evaluated"] == whole[0].provenance["counts"]["evaluated"]


def test_a_finished_search_is_read_from_its_file(tmp_path: Path) -> None:
    method, task, file = tp.ACDC(threshold=0.03), random_task(), tmp_path / "search.safetensors"
    found = method.find(model_of("gpt2"), task, checkpoint=file)
    again = method.find(model_of("gpt2"), task, checkpoint=file)
    assert again == found
    assert again.provenance == found.provenance


def test_the_checkpoint_of_another_search_is_refused(tmp_path: Path) -> None:
    task, file = random_task(), tmp_path / "search.safetensors"
    tp.ACDC(threshold=0.03).find(model_of("gpt2"), task, checkpoint=file)
    with pytest.raises(ValueError, match=r"written with another method .*thresholds"):
        tp.ACDC(threshold=0.1).find(model_of("gpt2"), task, checkpoint=file)
    with pytest.raises(ValueError, match="written with another task"):
        tp.ACDC(threshold=0.03).find(model_of("gpt2"), random_task(4), checkpoint=file)
    with pytest.raises(ValueError, match="written with another model"):
        tp.ACDC(threshold=0.03).find(model_of("lnpre"), task, checkpoint=file)
    with pytest.raises(ValueError, match="ablation"):
        tp.ACDC(threshold=0.03).find(model_of("gpt2"), task, ablation=tp.Zero(), checkpoint=file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="is not a search"):
        tp.ACDC(threshold=0.03).find(model_of("gpt2"), task, checkpoint=file)


def test_thresholds_of_a_sweep_are_checked() -> None:
    with pytest.raises(ValueError, match="but is -1"):
        tp.ACDC().sweep(model_of("gpt2"), random_task(), (0.1, -1.0))
