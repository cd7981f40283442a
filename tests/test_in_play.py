"""Edges that are decided cost nothing: runs that leave out what is not in play give the same numbers and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bridges import KINDS, bridged
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import CASES, CLEAN, CORRUPT, NAMES, OTHERS, backend_of_style, error, fresh, model_of, probe, random_batch
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.backends.activations import Backend
from tlprune.graph import Architecture, Convention, Graph
from tlprune.masking import in_play
from tlprune.masking.ablation import Resample, Zero
from tlprune.masking.beside import Beside
from tlprune.masking.edges import run_edges
from tlprune.masking.in_play import InPlay
from tlprune.masking.means import Mean
from tlprune.masking.workspace import Pool, Storage

ABLATIONS = {"resample": Resample(), "mean": Mean(OTHERS, batch_size=2), "zero": Zero()}


@pytest.fixture(autouse=True)
def _however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_play, "LEAST_PRODUCTS", 0)
    monkeypatch.setattr(in_play, "LEAST_DECIDED", 0)


def decided(graph: Graph, *, seed: int = 0, undecided: float = 0.2) -> Tensor:
    """Mask values of which most are 0 or 1: some writers are heard by nobody, some whole by all, some readers alike."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(len(graph), generator=generator, dtype=torch.float64)
    sharp = (values > 0.4).double()
    values = torch.where(torch.rand(len(graph), generator=generator) < undecided, values, sharp)
    fates = torch.randint(4, (len(graph.writers),), generator=generator)
    fates[len(graph.embeddings) : len(graph.embeddings) + 3] = 1  # so that there are heads to sum
    for readers in graph.readers:
        block = readers.block(values)
        block[:, fates[: readers.width] == 0] = 0
        block[:, fates[: readers.width] == 1] = 1
        alike = torch.randint(5, (len(block),), generator=generator)
        block[alike == 0] = 0
        block[alike == 1] = 1
    return values


def run(backend: Backend, graph: Graph, values: Tensor, ablation: Any, *, flat: bool) -> tuple[Tensor, Tensor]:
    """Logits, and the gradients of the mask and of what replaces activations."""
    replaced = ablation.replaced(backend, CLEAN, CORRUPT).map(lambda tensor: tensor.clone().requires_grad_())
    mask = values.clone().requires_grad_()
    logits = run_edges(backend, graph, CLEAN, mask, replaced, beside=Beside(flat_ends=flat))
    probe(logits).backward()
    shown = [torch.zeros_like(one) if one.grad is None else one.grad for one in (mask, *replaced.tensors)]
    undecided = (values > 0) & (values < 1)
    return logits.detach(), torch.cat([shown[0] * undecided, *(gradient.flatten() for gradient in shown[1:])])


def check_same(backend: Backend, graph: Graph, ablation: Any) -> None:
    for seed in range(3):
        values = decided(graph, seed=seed)
        expected, found = (run(backend, graph, values, ablation, flat=flat) for flat in (False, True))
        assert error(found[0], expected[0]) <= 1e-12
        assert len(found[1]) == len(expected[1])
        assert error(found[1], expected[1]) <= 1e-12


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize(("style", "convention"), CASES, ids=NAMES)
def test_the_same_run(style: str, convention: Convention, ablation: str) -> None:
    backend = backend_of_style(style)
    check_same(backend, Graph(backend.architecture, convention), ABLATIONS[ablation])


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_run_of_bridges(kind: str) -> None:
    backend = backend_of(bridged(kind))
    check_same(backend, Graph(backend.architecture), Resample())


def test_gradients_at_exact_values_are_there_unless_the_gate_has_none() -> None:
    model = model_of("gpt2")
    masked, values = tp.Masked(model, tp.Masks(tp.edges(model))), decided(Graph.of(model), undecided=0)
    for readers in Graph.of(model).readers:
        readers.block(values)[:, :3] = 0
    full, none = values.clone().requires_grad_(), values.clone().requires_grad_()
    probe(masked(CLEAN, CORRUPT, mask=full)).backward()
    probe(masked(CLEAN, CORRUPT, mask=none, flat_ends=True)).backward()
    assert full.grad is not None and none.grad is not None
    logits = Graph.of(model).readers[-1]
    unheard = ~InPlay(Graph.of(model), values).heard
    assert bool(unheard[:3].all()) and bool((logits.block(full.grad)[0, unheard].abs() > 1e-6).any())
    assert not logits.block(none.grad)[0, unheard].any()


@pytest.mark.parametrize(
    ("gate", "flat"),
    [
        (tp.HardConcrete(), True),
        (tp.UniformGradient(), True),
        (tp.Sigmoid(), True),
        (tp.StraightThrough(), False),
        (tp.Heaviside(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_gates_say_whether_their_ends_are_flat(gate: tp.Gate, flat: bool) -> None:
    start = torch.linspace(-6, 6, 400, dtype=torch.float64).requires_grad_()
    values = gate.sample(start, torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(values.sum(), start)
    ends = (values == 0) | (values == 1)
    assert gate.flat_ends is flat
    assert bool(ends.any()) or isinstance(gate, tp.Sigmoid)
    assert flat is not bool((gradient[ends] != 0).any())


@pytest.mark.parametrize("gate", [tp.HardConcrete(), tp.StraightThrough()], ids=["hard concrete", "straight through"])
def test_training_is_the_same(gate: tp.Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh("gpt2")
    split = random_batch(6)
    task = tp.Task("random", {"main": tp.task.Stream(split, split, split)}, tp.task.Tokenisation(prepend_bos=False))

    def trained() -> Tensor:
        masks = tp.Masks(tp.edges(model), gate, start=torch.linspace(-4, 3, len(Graph.of(model))))
        tp.fit(tp.Masked(model, masks), task.discovery, steps=3, batch_size=6, progress=False)
        return masks.log_alpha.detach()

    found = trained()
    monkeypatch.setattr(in_play, "LEAST_PRODUCTS", 1 << 62)
    assert error(found, trained()) <= 1e-5  # masks are float32


def places_of(storages: list[Storage]) -> list[int]:
    return [storage.size // (CLEAN.ids.numel() * 32) for storage in storages]


def test_buffers_shrink_with_the_circuit() -> None:
    backend = backend_of_style("gpt2")
    graph, replaced = Graph(backend.architecture), Resample().replaced(backend, CLEAN, CORRUPT)
    few = torch.zeros(len(graph))
    few[[graph.index("input->a1.h0<q>"), graph.index("a1.h0->logits")]] = 1
    taken = []
    for values in (torch.ones(len(graph)) / 2, few, torch.ones(len(graph)), torch.zeros(len(graph))):
        pool = Pool()
        run_edges(backend, graph, CLEAN, values, replaced, pool=pool)
        taken += places_of(pool.free)
    heads_and_mlp = backend.architecture.n_layers * 2
    assert taken == [len(graph.writers), 2, 1 + heads_and_mlp, 0]


def test_runs_of_about_one_size_share_their_memory() -> None:
    """Sizes that differ a little from step to step do not fill the pool; much smaller ones have memory of their own."""
    pool, kind = Pool(), (torch.float32, torch.device("cpu"))
    for size in (1000, 900, 1010, 600, 1005):
        pool.put(pool.take(size, *kind))
        assert len(pool.free) == 1 and pool.free[0].size == (1000 if size in (1000, 900) else 1010)
    few, many = pool.take(500, *kind), pool.take(1000, *kind)
    assert (few.size, many.size) == (500, 1010)
    other = pool.take(1000, torch.float64, kind[1])
    assert other.differences.dtype == torch.float64


@NEEDS_HOOKED_TRANSFORMER
def test_mlps_that_nobody_hears_are_not_run() -> None:
    model = fresh("gpt2")
    graph, seen = Graph.of(model), []
    few = torch.zeros(len(graph))
    few[[graph.index("input->m1"), graph.index("m1->logits"), graph.index("input->m0")]] = 1
    own = model.blocks[0].mlp.forward
    for layer in range(3):
        model.blocks[layer].mlp.forward = lambda x, own=own: seen.append(x.shape[:2].numel()) or own(x)
    replaced = Resample().replaced(backend_of(model), CLEAN, CORRUPT)
    seen.clear()
    run_edges(backend_of(model), graph, CLEAN, few, replaced)
    assert seen == [1, CLEAN.ids.numel(), 1]


@NEEDS_HOOKED_TRANSFORMER
def test_a_hook_sees_the_whole_run() -> None:
    """Somebody who looks at a head that nobody hears sees what it is given in the circuit, and not nothing."""
    model = fresh("gpt2")
    circuit = tp.Circuit.from_edges(model, ["input->a1.h0<q>", "m0->a1.h1<k>", "a1.h0->logits"])
    masked = tp.Masked(model, circuit)
    expected = [run(masked)["blocks.1.attn.hook_k"] for run in (_watched(None), _watched(1 << 62))]
    assert torch.equal(*expected)


def _watched(least: int | None) -> Any:
    def run(masked: tp.Masked) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        hook = ("blocks.1.attn.hook_k", lambda value, hook: seen.update({hook.name: value}))
        with pytest.MonkeyPatch.context() as patch, masked.model.hooks([hook]):
            if least is not None:
                patch.setattr(in_play, "LEAST_PRODUCTS", least)
            masked(CLEAN, CORRUPT)
        return seen

    return run


def test_rows_stand_for_readers_that_see_the_same() -> None:
    """Brute force over random masks: readers that share a stream have equal masks, or do not matter."""
    graph = Graph(Architecture(3, 4, 2))
    for seed in range(20):
        values = decided(graph, seed=seed)
        play = InPlay(graph, values)
        for readers in graph.readers:
            rows, needed = play.rows(readers), play.needed[readers]
            if rows is None:
                continue
            block = readers.block(values)
            for reader in needed.nonzero().flatten().tolist():
                assert torch.equal(block[rows.chosen[rows.of[reader]]], block[reader])


def test_what_matters_is_what_a_path_leads_from() -> None:
    """A writer is heard if some chain of edges that are not closed leads from it to the logits."""
    graph = Graph(Architecture(3, 2, 1))
    for seed in range(20):
        values = (decided(graph, seed=seed, undecided=0) * (torch.rand(len(graph)) < 0.3)).double()
        play, heard = InPlay(graph, values), set()
        edges = [name.split("->") for name in graph.edges(values > 0)]
        for writer, reader in sorted(edges, key=lambda edge: -graph.writers.index(edge[0])):
            node = reader.partition("<")[0]
            own = [node] if ".kv" not in node else [node.replace("kv0", head) for head in ("h0", "h1")]
            if reader == "logits" or heard.intersection(own):
                heard.add(writer)
        assert {name for name, flag in zip(graph.writers, play.heard, strict=True) if flag} == heard
