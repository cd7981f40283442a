"""ACDC decides as its plain definition does, however many removals it tries in one run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from bridges import bridged
from encoders import hf_model_of
from styles import fresh, model_of, random_batch
from test_lent_model import assert_unchanged, state
from torch import Tensor

import tlprune as tp
from tlprune.backends.passes import counted
from tlprune.graph import Architecture, Graph
from tlprune.learning.hard_metric import HardMetric
from tlprune.masking.reach import Reach
from tlprune.methods.acdc_plain import acdc_plain
from tlprune.methods.acdc_search import Search
from tlprune.task import Stream, Tokenisation


def random_task(examples: int = 3, length: int = 6) -> tp.Task:
    batches = (random_batch(examples, length, seed=seed) for seed in (1, 2, 3))
    return tp.Task("random", {"main": Stream(*batches)}, Tokenisation(prepend_bos=True))


def plainly(method: tp.ACDC, model: Any, task: tp.Task, ablation: Any = None) -> Tensor:
    """The slow reference with a method's settings."""
    sites = tp.edges(model, embeddings=method.embeddings, kv=method.kv)
    examples = task.discovery.train()
    metric = HardMetric(model, sites, ablation or tp.Resample(), examples, method.objective)
    return acdc_plain(metric, sites.graph, method.threshold)


def agrees(method: tp.ACDC, model: Any, task: tp.Task, ablation: Any = None) -> tp.Circuit:
    found = method.find(model, task, ablation=ablation)
    assert torch.equal(found.kept, plainly(method, model, task, ablation))
    assert 0 < len(found) < len(found.sites)
    return found


def last_point(model: Any) -> str:
    """A hook that fires once in every run."""
    return "unembed.hook_in" if "unembed.hook_in" in model.hook_dict else "ln_final.hook_scale"


# ---- the same decisions


@pytest.mark.parametrize("threshold", [0.003, 0.01])
@pytest.mark.parametrize("style", ["llama", "parallel", "attention_only", "gemma2"])
def test_the_search_decides_as_the_plain_definition(style: str, threshold: float) -> None:
    found = agrees(tp.ACDC(threshold=threshold), fresh(style, n_layers=2), random_task())
    assert found.provenance["counts"]["near_ties"] == 0


CHOICES: dict[str, dict[str, Any]] = {
    "kept": {"embeddings": "kept"},
    "separate": {"embeddings": "separate"},
    "ungrouped": {"kv": "per_query_head", "style": "qk_norm"},
    "one prompt in a run": {"batch_size": 1},
    "two candidates in a run": {"batch_size": 6},
    "zero": {"ablation": tp.Zero()},
    "mean": {"ablation": tp.Mean(random_batch(4, seed=4).clean)},
    "cross entropy": {"objective": tp.CrossEntropy()},
    "logit difference": {"objective": tp.LogitDifference(), "threshold": 0.05},
    "a sum": {"objective": 2.0 * tp.KL() + 0.5 * tp.CrossEntropy()},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_every_setting_leaves_the_decisions_as_they_are(choice: str) -> None:
    options = {"threshold": 0.005, "style": "lnpre", "ablation": None} | CHOICES[choice]
    model, ablation = model_of(options.pop("style")), options.pop("ablation")
    agrees(tp.ACDC(**options), model, random_task(), ablation)


def test_rounding_decides_nothing() -> None:
    """At a threshold that is some edge's own rise every way of computing it must agree with the definition's."""
    model, task = fresh("lnpre", torch.float32), random_task()
    sites = tp.edges(model)
    metric = HardMetric(model, sites, tp.Resample(), task.discovery.train(), tp.KL())
    first = torch.ones(len(sites), dtype=torch.bool)
    first[-1] = False
    rise = metric(first) - metric(torch.ones_like(first))
    for threshold in (rise, float(torch.tensor(rise).nextafter(torch.tensor(1.0)))):
        method = tp.ACDC(threshold=threshold)
        found = agrees(method, model, task)
        assert (sites.name(len(sites) - 1) in found) == (threshold == rise)
        assert 0 < found.provenance["counts"]["near_ties"] < 20


def test_a_threshold_below_rounding_is_decided_by_single_runs() -> None:
    """Most edges of a planted model change nothing but rounding, and so would differ between ways of computing it."""
    one = tp.planted("adder")
    method = tp.ACDC(threshold=1e-9, examples=None)
    found = method.find(one.model, one.task)
    assert torch.equal(found.kept, plainly(method, one.model, one.task))
    assert found.provenance["counts"]["near_ties"] > 5


def test_encoders_are_searched_by_whole_runs() -> None:
    agrees(tp.ACDC(threshold=0.003), tp.bridge(hf_model_of("bert words", num_hidden_layers=2)), random_task())


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "neox"])
def test_bridges_are_run_whole_and_decide_the_same(kind: str) -> None:
    agrees(tp.ACDC(threshold=0.003), bridged(kind, **({"n_layer": 2} if kind == "gpt2" else {})), random_task())


# ---- what it finds


@pytest.mark.parametrize("name", ["copy", "induction", "and", "adder"])
def test_what_was_planted_is_found(name: str) -> None:
    one = tp.planted(name)
    assert tp.ACDC(threshold=0.1).find(one.model, one.task) == one.circuit


def test_of_an_or_gate_one_branch_is_found() -> None:
    """Each bit masks the other, so the one that is tried first goes: a known limit of removing edge by edge."""
    one = tp.planted("or")
    found = tp.ACDC(threshold=0.1).find(one.model, one.task)
    assert set(found.edges) < set(one.circuit.edges)
    assert len(found) == 3 and found.n_effective == 3
    last = max(one.circuit.heads)
    assert last not in found.nodes


# ---- what it costs


@pytest.mark.parametrize("threshold", [0.001, 0.01, 0.1])
def test_runs_are_few(threshold: float) -> None:
    model, task = fresh("lnpre", n_layers=2), random_task(8)
    found = tp.ACDC(threshold=threshold).find(model, task)
    counts = found.provenance["counts"]
    assert counts["evaluated"] + counts["dead"] == len(found.sites) == 110
    assert counts["runs"] <= 20


def test_a_sparse_circuit_takes_fewer_passes_than_there_are_edges() -> None:
    """Blocks without a change are not run, so wrong guesses included the model runs less than once an edge."""
    model, task = fresh("lnpre"), random_task(8)
    with counted(model) as passes:
        found = tp.ACDC(threshold=0.1).find(model, task)
    assert passes.forward < len(task.discovery.train()) * len(found.sites) / 3


def test_edges_into_dead_readers_are_removed_without_a_run() -> None:
    one = tp.planted("copy")
    counts = tp.ACDC(threshold=0.1).find(one.model, one.task).provenance["counts"]
    assert counts["dead"] > 80 and counts["evaluated"] + counts["dead"] == 110


def test_a_limit_on_examples_takes_the_first_ones() -> None:
    few, many = random_task(2), random_task(6)
    stream = many.streams["main"]
    cut = Stream(stream.train.rows(torch.arange(2)), stream.validation, stream.test)
    cut = tp.Task("random", {"main": cut}, Tokenisation(prepend_bos=True))
    method, limited = tp.ACDC(threshold=0.003), tp.ACDC(threshold=0.003, examples=2)
    assert limited.find(model_of("lnpre"), many) == method.find(model_of("lnpre"), cut)
    assert limited.find(model_of("lnpre"), many) != method.find(model_of("lnpre"), many)
    assert len(few.discovery.train()) == 2


# ---- what goes wrong


def test_a_metric_that_is_no_number_is_an_error_and_leaves_the_model_alone() -> None:
    model = fresh("lnpre")
    runs: list[int] = []

    def spoil(value: Tensor, hook: Any) -> Tensor:
        runs.append(1)
        return value * float("nan") if len(runs) > 6 else value

    model.hook_dict[last_point(model)].add_hook(spoil)
    before = state(model)
    with pytest.raises(FloatingPointError, match="a circuit's metric is nan"):
        tp.ACDC(threshold=0.003).find(model, random_task())
    assert_unchanged(before, model)


class Crowded:
    """Trials in which a candidate's metric depends on its place in the run, as a hook on single examples makes it."""

    least = most = 4

    def start(self, kept: Tensor) -> None: ...

    def accept(self, index: int) -> None: ...

    def values(self, candidates: Tensor) -> list[float]:
        return [0.01 * (place + 1) for place in range(len(candidates))]


def test_a_metric_that_depends_on_other_candidates_is_found_out() -> None:
    reach = Reach(Graph(Architecture(1, 1, 1)))
    search = Search.of(Crowded(), lambda kept: 0.0, reach, [1.0], rounding=1e-6)
    with pytest.raises(RuntimeError, match="tell examples or positions apart"):
        list(search)


def test_a_hook_that_treats_all_alike_is_part_of_the_model() -> None:
    model = fresh("lnpre")
    plain = tp.ACDC(threshold=0.003).find(model, random_task())
    model.hook_dict["blocks.0.hook_mlp_out"].add_hook(lambda value, hook: 0.1 * value)
    assert agrees(tp.ACDC(threshold=0.003), model, random_task()) != plain


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


def test_thresholds_that_end_with_one_circuit_are_saved_apart(tmp_path: Path) -> None:
    one, file = tp.planted("copy"), tmp_path / "search.safetensors"
    found = tp.ACDC().sweep(one.model, one.task, (0.1, 0.2), checkpoint=file)
    assert found == [one.circuit, one.circuit]
    assert tp.ACDC().sweep(one.model, one.task, (0.1, 0.2), checkpoint=file) == found


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
