"""The memory of a training step, told beforehand, against a count of the tensors of the real step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from bridges import bridged
from encoders import fresh_encoder
from live_bytes import LiveBytes
from styles import SHAPE, fresh, random_batch

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.learning import room
from tlprune.learning.dry_run import DryRun, outlined
from tlprune.learning.estimate import estimate_of_run
from tlprune.learning.layout import Layout
from tlprune.learning.memory import PARTS
from tlprune.learning.objectives import faithful
from tlprune.learning.optimiser import Optimiser
from tlprune.learning.training import Plan, Training
from tlprune.masking import in_play
from tlprune.masking.means import Mean
from tlprune.models.outline import outline
from tlprune.models.transformer_lens import has_hooked_transformer
from tlprune.task import Batch, Discovery

F32, BF16 = torch.float32, torch.bfloat16
MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: fresh("gpt2", F32, n_layers=2),
    "llama": lambda: fresh("llama", F32, n_layers=2),
    "llama bf16": lambda: fresh("llama", BF16, n_layers=2),
    "gemma2": lambda: bridged("gemma2", F32),
    "attention only": lambda: fresh("attention_only", F32),
    "bridged gpt2": lambda: bridged("gpt2", F32, n_layer=2),
    "bridged llama": lambda: bridged("llama", F32),
    "bridged llama bf16": lambda: bridged("llama", BF16),
}
CASES: list[tuple[str, Callable[[Any], tp.Sites], Any, int, int]] = [
    ("gpt2", tp.edges, tp.Resample(), 4, 12),
    ("gpt2", tp.edges, Mean(random_batch(6, 16).corrupt), 3, 14),
    ("gpt2", lambda model: tp.edges(model, qkv="joined"), tp.Resample(), 4, 12),
    ("gpt2", lambda model: tp.edges(model, embeddings="kept") + tp.nodes(model, "m*"), tp.Resample(), 4, 12),
    ("llama", tp.edges, tp.Zero(), 4, 12),
    ("llama", lambda model: tp.edges(model, kv="per_query_head"), tp.Resample(), 4, 12),
    ("llama", lambda model: tp.heads(model) + tp.mlps(model), tp.Zero(), 4, 12),
    ("llama", tp.neurons, tp.Zero(), 4, 12),
    ("llama", tp.weights, tp.Zero(), 4, 12),
    ("llama bf16", tp.edges, tp.Resample(), 4, 12),
    ("gemma2", tp.edges, tp.Resample(), 4, 12),
    ("attention only", tp.edges, tp.Zero(), 4, 12),
    ("bridged gpt2", tp.edges, tp.Resample(), 4, 12),
    ("bridged llama", tp.edges, tp.Resample(), 4, 12),
    ("bridged llama", tp.edges, tp.Resample(), 8, 6),
    ("bridged llama bf16", tp.edges, tp.Zero(), 4, 12),
]


def plan_of(masked: tp.Masked, batch_size: int, **options: Any) -> Plan:
    settings: dict[str, Any] = {
        "objective": faithful(masked), "budget": tp.Lagrangian(0.5), "optimiser": Optimiser(), "steps": 9,
        "batch_size": batch_size, "validate_every": None, "keep": None, "patience": None, "seed": 0,
    }  # fmt: skip
    return Plan(**settings | options)


def discovery_of(examples: int, length: int) -> Discovery:
    one = random_batch(examples, length)
    return Discovery("random", {"main": (one, one)}, {})


def counted(model: Any, sites: tp.Sites, ablation: Any, discovery: Discovery, batch_size: int, **options: Any) -> int:
    """The most bytes that tensors of three steps take at one time, beside the model's."""
    with LiveBytes(*model.parameters(), *model.buffers()) as live:
        masks = tp.Masks(sites)
        masked = tp.Masked(model, masks, ablation)
        training = Training(masked, masks, discovery, plan_of(masked, batch_size, **options))
        for _ in range(3):
            training.step()
    return live.most


def storage_bytes(model: Any) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize(("name", "sites", "ablation", "batch", "length"), CASES)
def test_the_estimate_is_what_a_step_takes(name: str, sites: Any, ablation: Any, batch: int, length: int) -> None:
    model = MODELS[name]()
    chosen, examples = sites(model), 2 * batch
    found = tp.estimate(model, chosen, batch=batch, length=length, ablation=ablation, examples=examples)
    assert found.weights == storage_bytes(model)
    real = counted(model, chosen, ablation, discovery_of(examples, length), batch)
    assert found.beside_weights == pytest.approx(real, rel=0.05)
    masked = tp.Masked(model, masks := tp.Masks(chosen), ablation)
    training = Training(masked, masks, discovery_of(examples, length), plan_of(masked, batch))
    assert room.at_most(training) > max(real, found.beside_weights)


@pytest.mark.parametrize("sites", [tp.edges, tp.heads])
@pytest.mark.parametrize("name", ["bert classes", "bert words"])
def test_encoders_are_estimated_too(name: str, sites: Any) -> None:
    model = fresh_encoder(name, F32)
    found = tp.estimate(model, sites(model), batch=4, length=7, ablation=tp.Zero())
    real = counted(model, sites(model), tp.Zero(), discovery_of(4, 7), 4)
    assert found.beside_weights == pytest.approx(real, rel=0.1)


def test_spans_terms_and_samples_are_those_of_the_run() -> None:
    """Two terms on streams of different lengths, masks by span, two samples per step, padding."""
    model, task = MODELS["gpt2"](), tp.planted("copy").task.discovery
    assert task.span_names
    model = tp.planted("copy").model.float()
    sites = tp.edges(model, spans=task)
    masked = tp.Masked(model, tp.Masks(sites), tp.Zero())
    plan = plan_of(masked, 16, objective=tp.KL() + 0.5 * tp.CrossEntropy(), optimiser=Optimiser(samples=2))
    found = estimate_of_run(masked, task, plan)
    real = counted(model, sites, tp.Zero(), task, 16, objective=plan.objective, optimiser=plan.optimiser)
    assert found.beside_weights == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize("kept", [0.5, 0.03])
def test_edges_that_are_closed_for_good_take_no_room(kept: float, monkeypatch: Any) -> None:
    monkeypatch.setattr(in_play, "LEAST_PRODUCTS", 0)
    monkeypatch.setattr(in_play, "LEAST_DECIDED", 0)
    model, discovery = fresh("gpt2", F32, n_layers=4), discovery_of(4, 12)
    sites = tp.edges(model)
    circuit = tp.connected_random(sites.graph, round(kept * len(sites)), seed=1)
    masked = tp.Masked(model, masks := tp.Masks(sites, among=circuit))
    found = estimate_of_run(masked, discovery, plan_of(masked, 4))
    with LiveBytes(*model.parameters(), *model.buffers(), masks.log_alpha) as live:
        training = Training(masked, masks, discovery, plan_of(masked, 4))
        for _ in range(3):
            training.step()
    assert found.beside_weights == pytest.approx(live.most + masks.log_alpha.nbytes, rel=0.1)
    whole = 2 * 4 * (1 + 4 * 5) * 4 * 12 * 32
    assert found.buffers < (0.7 if kept < 0.1 else 1.01) * whole


def test_recomputed_mlps_are_estimated_as_such() -> None:
    both, discovery = [], discovery_of(4, 12)
    for mlps in ("stored", "recomputed"):
        model = fresh("gpt2", F32, n_layers=3, d_mlp=1024)
        masked = tp.Masked(model, tp.Masks(tp.edges(model)), mlps=mlps)
        found = estimate_of_run(masked, discovery, plan_of(masked, 4))
        with LiveBytes(*model.parameters(), *model.buffers()) as live:
            masks = tp.Masks(masked.sites)
            training = Training(masked.alike(model, masks, tp.Resample()), masks, discovery, plan_of(masked, 4))
            for _ in range(3):
                training.step()
        assert found.beside_weights == pytest.approx(live.most, rel=0.05)
        both.append(live.most)
    assert both[1] < 0.8 * both[0]


# ---- parts


def test_parts_are_what_the_engine_is_made_of() -> None:
    """At a Llama's shape in bfloat16: two buffers of every writer, one in float32; masks with what AdamW keeps."""
    model = outline(llama(layers=2), dtype=BF16)
    sites, (heads, width, length, batch) = tp.edges(model), (40, 5120, 72, 3)
    found = tp.estimate(model, sites, batch=batch, length=length)
    writers = 1 + 2 * (heads + 1)
    assert found.buffers == writers * batch * length * width * (2 + 4)
    attention, mlp = 4 * width * width, 3 * width * 13824
    parameters = 2 * (attention + mlp + 2 * width) + 2 * 32016 * width + width
    assert found.weights == pytest.approx(2 * parameters, rel=1e-3)
    assert 16 * len(sites) <= found.masks <= 32 * len(sites)
    assert found.total == found.beside_weights + found.weights == sum(getattr(found, part) for part in PARTS)
    lines = [line.split() for line in str(found).splitlines()]
    assert [line[0] for line in lines[1:]] == [*PARTS, "total"] and lines[1][1:] == ["1.8", "GiB"], str(found)


def test_all_edges_of_codellama_13b_are_counted() -> None:
    assert len(tp.edges(outline(llama(layers=40)))) == 3_877_661


def test_what_is_cached_of_all_examples_grows_with_them() -> None:
    model = MODELS["gpt2"]()
    few, many = (tp.estimate(model, tp.edges(model), batch=2, length=8, examples=count) for count in (2, 10))
    # z and streams, embeddings and MLPs in float32, and log-probabilities at one position
    kept = 4 * (8 * 32 * (2 + 2 + 2 + 5) + SHAPE["d_vocab"])
    assert many.caches - few.caches == 8 * kept
    assert many.caches == 10 * kept


def test_the_type_of_the_weights_can_be_another() -> None:
    model = MODELS["llama"]()
    asked = tp.estimate(model, tp.edges(model), batch=4, length=12, dtype=BF16)
    own = tp.estimate(MODELS["llama bf16"](), tp.edges(model), batch=4, length=12)
    assert asked.dtype == BF16 and asked == own
    assert backend_of(model).dtype == F32 and model.cfg.dtype == F32


# ---- what would fit


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    model = MODELS["bridged llama"]()
    found = tp.estimate(model, tp.edges(model), batch=4, length=6)
    for memory in (found.total, 5.7 * found.total):
        size = found.largest_batch(memory)
        assert found.again(size).total <= memory < found.again(size + 1).total
    assert found.largest_batch(found.weights) == 0
    assert found.largest_batch(found.total) == 4


def begun(model: Any, discovery: Discovery, **options: Any) -> Any:
    return tp.steps(tp.Masked(model, tp.Masks(tp.edges(model))), discovery, batch_size=9, **options)


def test_a_run_that_does_not_fit_whole_is_run_in_pieces_that_do() -> None:
    model, discovery = MODELS["gpt2"](), discovery_of(12, 6)
    masked = tp.Masked(model, tp.Masks(tp.edges(model)))
    in_fours = estimate_of_run(masked, discovery, plan_of(masked, 9), Layout(micro_batch=4))
    few, whole = begun(model, discovery, memory=in_fours.beside_weights), begun(model, discovery, memory=math.inf)
    assert (few.training.layout.micro_batch, whole.training.layout.micro_batch) == (4, None)
    for own, expected in zip((next(few), next(few)), (next(whole), next(whole)), strict=True):
        assert own.sampled == pytest.approx(expected.sampled, rel=1e-5)
    assert torch.allclose(few.training.masks.log_alpha, whole.training.masks.log_alpha, atol=1e-5)


def test_a_run_that_cannot_fit_is_refused_and_told_what_would() -> None:
    model, discovery = MODELS["gpt2"](), discovery_of(12, 6)
    masked = tp.Masked(model, tp.Masks(tp.edges(model)))
    room = estimate_of_run(masked, discovery, plan_of(masked, 9), Layout(micro_batch=4)).beside_weights
    begun(model, discovery, memory=room, micro_batch=4)
    with pytest.raises(
        ValueError, match=r"9 x 6 tokens, 5 at once, needs more than .* What would fit: micro_batch=4\."
    ):
        begun(model, discovery, memory=room, micro_batch=5)
    with pytest.raises(ValueError, match="even one at a time, needs more than"):
        begun(model, discovery, memory=1000)


def test_a_batch_of_all_examples_is_the_largest() -> None:
    model, discovery = MODELS["gpt2"](), discovery_of(6, 12)
    masked = tp.Masked(model, tp.Masks(tp.edges(model)))
    assert estimate_of_run(masked, discovery, plan_of(masked, 32)).largest_batch(1e9) == 6


def test_nothing_is_told_of_what_asks_for_numbers() -> None:
    """A run that cannot be made without numbers, or would set off somebody's hooks, is not refused."""

    @dataclass(frozen=True)
    class Asking(tp.KL):
        def __call__(self, logits: torch.Tensor, batch: Batch, reference: torch.Tensor) -> torch.Tensor:
            return super().__call__(logits, batch, reference) + len(logits[logits > 0])

    model, discovery = MODELS["gpt2"](), discovery_of(6, 12)
    masked, seen = tp.Masked(model, tp.Masks(tp.edges(model))), []
    with pytest.raises(ValueError, match="What would fit"):
        tp.steps(masked, discovery, memory=1)
    tp.steps(masked, discovery, Asking(), memory=1)
    model.hook_dict["blocks.0.attn.hook_z"].register_forward_hook(lambda *_: seen.append(1))
    model.hook_dict["blocks.0.attn.hook_z"].add_hook(lambda *_, **__: seen.append(1))
    tp.steps(masked, discovery, memory=1)
    assert not seen


def test_free_memory_is_the_least_that_the_system_and_its_container_leave(tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable: 300 kB\n")
    monkeypatch.setattr(room, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(room, "GROUP", tmp_path)
    assert room.free_memory(torch.device("cpu")) == 300 * 1024
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert room.free_memory(torch.device("cpu")) == 300 * 1024
    (tmp_path / "memory.max").write_text("5000\n")
    assert room.free_memory(torch.device("cpu")) == 4000
    monkeypatch.setattr(room, "MEMINFO", tmp_path / "nothing")
    assert room.free_memory(torch.device("cpu")) is None


def test_progress_begins_with_the_memory_of_a_step(capsys: Any) -> None:
    model, discovery = MODELS["gpt2"](), discovery_of(6, 12)
    tp.fit(tp.Masked(model, tp.Masks(tp.edges(model))), discovery, steps=1, progress=True)
    assert "A step of 6 x 12 tokens takes " in capsys.readouterr().err


# ---- runs without numbers


def test_an_estimate_changes_nothing() -> None:
    model = MODELS["bridged gpt2"]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags, state = [p.requires_grad for p in model.parameters()], torch.get_rng_state()
    masks = tp.Masks(tp.edges(model))
    tp.estimate(model, masks, batch=2, length=8)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags and torch.equal(torch.get_rng_state(), state)
    assert masks.log_alpha.grad is None and masks.log_alpha.device.type == "cpu" and "sample" not in vars(masks)
    assert model(torch.zeros(1, 3, dtype=torch.long)).isfinite().all()


def test_outlines_share_memory_where_tensors_do() -> None:
    one = torch.nn.Linear(3, 5)
    both = torch.nn.ModuleList([one, torch.nn.Linear(3, 5)])
    both[1].weight = one.weight
    both.register_buffer("view", torch.zeros(4, 6)[1:, ::2])
    found: Any = outlined(both)
    assert found[0].weight is found[1].weight and found.view.stride() == (6, 2)
    assert storage_bytes(found) == storage_bytes(both) == 4 * (15 + 5 + 5 + 24)
    assert all(tensor.is_meta for tensor in (*found.parameters(), *found.buffers()))


def test_whole_numbers_are_known_and_fractions_are_counted() -> None:
    with DryRun() as run:
        rows = torch.arange(6, device="meta")
        table = torch.rand(10, 4)
        picked = table[rows]
        assert int((rows * 2).max()) == 10 and rows.nonzero().flatten().tolist() == [1, 2, 3, 4, 5]
        assert table.is_meta and picked.shape == (6, 4) and float(picked.sum()) == 0 and bool(picked.any())
        with run.doubting():
            assert not bool(picked.any())
        small = 4 * 4 * (10 + 6)
        del table
        torch.zeros(100, 4)
        run.look()
    assert run.most == pytest.approx(4 * 4 * (6 + 100), abs=8 * 20) and run.most > small


def test_sizes_below_one_are_refused() -> None:
    model = MODELS["gpt2"]()
    with pytest.raises(ValueError, match="at least 1 for length but got 0"):
        tp.estimate(model, tp.edges(model), batch=1, length=0)
    with pytest.raises(ValueError, match="have 17 tokens and it reads 16 at most"):
        tp.estimate(model, tp.edges(model), batch=1, length=17)
    with pytest.raises(ValueError, match="configuration of a model but got int"):
        outline(3)


@pytest.mark.skipif(not has_hooked_transformer(), reason="TransformerLens 4 has no HookedTransformer")
def test_a_configuration_of_either_library_gives_a_model_without_weights() -> None:
    own = outline(MODELS["llama"]().cfg, dtype=BF16)
    assert type(own).__name__ == "HookedTransformer" and backend_of(own).dtype == BF16
    assert all(parameter.is_meta for parameter in own.parameters())
    real = MODELS["llama bf16"]()
    found, same = (tp.estimate(model, tp.edges(model), batch=4, length=12) for model in (own, real))
    assert found.beside_weights == same.beside_weights and found.weights == pytest.approx(same.weights, abs=64)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_an_outline_of_hugging_faces_configuration_is_as_large_as_the_model(kind: str) -> None:
    real = bridged(kind, F32)
    own = outline(real.original_model.config)
    assert all(tensor.is_meta for tensor in (*own.parameters(), *own.buffers()))
    found, same = (tp.estimate(model, tp.edges(model), batch=4, length=12) for model in (own, real))
    assert found == same


def llama(*, layers: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        num_hidden_layers=layers, num_attention_heads=40, hidden_size=5120, intermediate_size=13824, vocab_size=32016,
    )  # fmt: skip
