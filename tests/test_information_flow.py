"""Information flow routes: shares of sums, patterns read without hooks, and thresholds that are routes of a search."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from encoders import fresh_encoder
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import NORMED_HEADS, STYLES, error, fresh, model_of, random_batch, random_tokens, refuses_choice
from test_encoder_methods import task_of
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.graph import Convention, Graph
from tlprune.masking.patterns import attention_patterns
from tlprune.task import Stream, Tokenisation

TRAIN = random_batch(3, seed=1)
each_style = pytest.mark.parametrize("style", STYLES)


def task_with(batch: tp.Batch) -> tp.Task:
    return tp.Task("random", {"main": Stream(batch, batch, batch)}, Tokenisation(prepend_bos=True))


def score(model: Any, batch: tp.Batch = TRAIN, **options: Any) -> tp.Scores:
    return tp.InformationFlowRoutes(**options).score(model, task_with(batch))


# ---- patterns


@pytest.mark.parametrize("length", [6, 13])
@each_style
def test_patterns_are_the_models_own(style: str, length: int) -> None:
    """13 positions take two passes: values have 8 numbers."""
    model, tokens = model_of(style), random_tokens(4, length=length)
    backend, graph = backend_of(model), Graph.of(model)
    found = attention_patterns(backend, graph, tokens, backend.observe(tokens))
    _, seen = model.run_with_cache(tokens.ids)
    for layer, pattern in enumerate(found):
        assert error(pattern, seen[f"blocks.{layer}.attn.hook_pattern"].transpose(1, 2)) <= 1e-9
        assert error(pattern.sum(-1), torch.ones_like(pattern[..., 0])) <= 1e-9


# ---- importance


def share(parts: list[Tensor], whole: Tensor) -> list[float]:
    """Of vectors of one position, from the definition."""
    nearer = [max(0.0, float(whole.abs().sum() - (whole - part).abs().sum())) for part in parts]
    return [one / (sum(nearer) or 1.0) for one in nearer]


def streams_and_writers(model: Any) -> tuple[dict[tuple[str, int], Tensor], dict[str, Tensor]]:
    """What readers see and writers write, from TransformerLens' cache and weights, ``(example, pos, d_model)``."""
    _, seen = model.run_with_cache(TRAIN.clean.ids)
    parallel, layers = bool(getattr(model.cfg, "parallel_attn_mlp", False)), model.cfg.n_layers
    streams = {("logits", layers): seen[f"blocks.{layers - 1}.hook_resid_post"]}
    writers = {"input": seen["blocks.0.hook_resid_pre"]}
    for layer in range(layers):
        streams["attention", layer] = seen[f"blocks.{layer}.hook_resid_pre"]
        z, weight = seen[f"blocks.{layer}.attn.hook_z"], model.blocks[layer].attn.W_O
        writers |= {f"a{layer}.h{head}": z[:, :, head] @ weight[head] for head in range(model.cfg.n_heads)}
        if not model.cfg.attn_only:
            streams["mlp", layer] = seen[f"blocks.{layer}.hook_resid_{'pre' if parallel else 'mid'}"]
            writers[f"m{layer}"] = seen[f"blocks.{layer}.hook_mlp_out"]
    detached = [{name: value.detach() for name, value in found.items()} for found in (streams, writers)]
    return detached[0], detached[1]


def importances(model: Any) -> dict[str, Tensor]:
    """Of every edge, ``(example, pos)``, by a loop over everything."""
    streams, writers = streams_and_writers(model)
    graph, found = Graph.of(model), {}
    for readers in graph.readers:
        stream, names = streams[readers.kind, readers.layer], graph.writers[: readers.width]
        table = torch.tensor([
            [share([writers[name][row, pos] for name in names], stream[row, pos]) for pos in range(stream.shape[1])]
            for row in range(len(stream))
        ])  # fmt: skip
        for reader in readers.names:
            found |= {f"{name}->{reader}": table[..., place] for place, name in enumerate(names)}
    return found


PLAIN = [style for style in STYLES if style not in NORMED_HEADS]


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("style", PLAIN)
def test_over_positions_scores_are_mean_shares(style: str) -> None:
    model = model_of(style)
    found, expected = score(model, flow="positions", batch_size=2), importances(model)
    for place, value in enumerate(found.values.tolist()):
        assert value == pytest.approx(float(expected[found.graph.name(place)].mean()), abs=1e-6)


@pytest.mark.parametrize("embeddings", ["merged", "separate", "kept"])
@each_style
def test_shares_of_a_reader_add_up_to_one(style: str, embeddings: Any) -> None:
    """Those of kept embeddings are left out of the scores. It holds behind Gemma's norms, too."""
    found = score(model_of(style), flow="positions", embeddings=embeddings)
    assert found.values.min() >= 0
    sums = torch.cat([readers.block(found.values).sum(-1) for readers in found.graph.readers])
    if embeddings == "kept":
        assert bool((sums < 1).all())
        whole = score(model_of(style), flow="positions")
        place = found.graph.index("a0.h1->logits")
        assert float(found.values[place]) == pytest.approx(whole["a0.h1->logits"], rel=1e-9)
    elif embeddings == "merged":
        assert error(sums, torch.ones_like(sums)) <= 1e-9
    else:  # there are positions where neither embedding comes nearer to the sum of both than nothing
        assert 0.5 < sums.min() <= sums.max() <= 1 + 1e-9


# ---- routes


def routes(model: Any, row: int, threshold: float) -> set[str]:
    """The edges of one prompt's route, by a search from the answer down over nodes at positions."""
    graph, shares = Graph.of(model), importances(model)
    _, seen = model.run_with_cache(TRAIN.clean.ids)
    start = ("logits", int(TRAIN.positions[row, 0]))
    waiting, met, found = [start], {start}, set()
    while waiting:
        reader, pos = waiting.pop()
        for edge in (edge for edge in graph.edges() if edge.endswith(f"->{reader}")):
            if not float(shares[edge][row, pos]) > threshold:
                continue
            found.add(edge)
            for place in enters(model, graph, seen, row, edge.partition("->")[0], pos, threshold):
                if place not in met:
                    met.add(place)
                    waiting.append(place)
    return found


def enters(
    model: Any, graph: Graph, seen: Any, row: int, writer: str, pos: int, threshold: float
) -> list[tuple[str, int]]:
    """The readers, with positions, that a route goes on to from a writer."""
    if writer == "input" or writer.startswith("m"):
        return [(writer, pos)] if writer != "input" else []
    layer, head = (int(part) for part in writer[1:].split(".h"))
    group = head // (model.cfg.n_heads // graph.n_kv_readers)
    kv = f"a{layer}.kv{group}" if graph.n_kv_readers < model.cfg.n_heads else writer
    weights = seen[f"blocks.{layer}.attn.hook_pattern"][row, head, pos].detach()
    values = seen[f"blocks.{layer}.attn.hook_v"][row, :, group].detach()
    parts = weights[:, None] * (values @ model.blocks[layer].attn.W_O[head].detach())
    sources = [source for source, one in enumerate(share([*parts], parts.sum(0))) if one > threshold]
    return [(f"{writer}<q>", pos), *[(f"{kv}<{part}>", source) for source in sources for part in "kv"]]


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("style", ["lnpre", "parallel", "attention_only", "qk_norm"])
def test_a_threshold_of_the_scores_is_the_route_of_that_threshold(style: str) -> None:
    model, row = model_of(style), 1
    alone = dataclasses.replace(TRAIN.rows(torch.tensor([row])), index=torch.zeros(1, dtype=torch.long))
    found = score(model, alone)
    sizes = set()
    for threshold in (0.02, 0.08, 0.15):
        expected = routes(model, row, threshold)
        assert set(found.top(threshold=threshold).edges) == expected
        sizes.add(len(expected))
    assert len(sizes) > 1 and max(sizes) < len(found.sites)


def test_scores_are_means_over_prompts_however_they_are_batched() -> None:
    model = model_of("llama")
    rows = [dataclasses.replace(TRAIN.rows(torch.tensor([row])), index=torch.zeros(1).long()) for row in range(3)]
    alone = torch.stack([score(model, row).values for row in rows]).mean(0)
    for size in (1, 2, 16):
        assert error(score(model, batch_size=size).values, alone) <= 1e-12


def test_routes_end_in_the_answers_and_in_nothing_else() -> None:
    """Other answers leave all as it is, another position does not; without routes, positions make no difference."""
    model = model_of("gpt2")
    told = dataclasses.replace(TRAIN, answers=TRAIN.foils, foils=torch.full_like(TRAIN.foils, -100))
    first = dataclasses.replace(TRAIN, positions=torch.zeros_like(TRAIN.positions))
    assert torch.equal(score(model).values, score(model, told).values)
    assert error(score(model).values, score(model, first).values) > 0.01
    over = {"flow": "positions"}
    assert torch.equal(score(model, **over).values, score(model, first, **over).values)


def test_readers_of_one_stream_differ_on_routes_alone() -> None:
    one, graph = model_of("gpt2"), Graph.of(model_of("gpt2"))
    (last,) = (readers for readers in graph.readers if (readers.kind, readers.layer) == ("attention", 2))
    mean, route = (last.block(score(one, flow=flow).values) for flow in ("positions", "routes"))
    assert error(mean, mean[:1].expand_as(mean)) <= 1e-12
    assert len({tuple(row) for row in route.round(decimals=6).tolist()}) > 4


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("flow", ["routes", "positions"])
def test_padding_is_no_part_of_a_prompt(flow: Any, side: str) -> None:
    model = model_of("gpt2")
    pad = torch.zeros(3, 2, dtype=torch.long)
    ids = torch.cat([pad, TRAIN.clean.ids] if side == "left" else [TRAIN.clean.ids, pad], 1)
    there = torch.cat([pad, pad.new_ones(3, 6)] if side == "left" else [pad.new_ones(3, 6), pad], 1)
    positions = TRAIN.positions + (2 if side == "left" else 0)
    padded = dataclasses.replace(TRAIN, clean=tp.Tokens(ids, there), corrupt=tp.Tokens(ids, there), positions=positions)
    assert error(score(model, padded, flow=flow).values, score(model, flow=flow).values) <= 1e-9


def test_conventions_agree_where_they_mean_the_same() -> None:
    """A shared key/value reader is reached as well as the best of its query heads."""
    model = model_of("llama")
    shared, apart = score(model), score(model, kv="per_query_head")
    assert shared.graph.convention == Convention() != apart.graph.convention
    for layer in range(3):
        both = [apart[f"m0->a{layer}.h{head}<v>"] for head in (2, 3)] if layer else [0.0]
        one = shared[f"m0->a{layer}.kv1<v>"] if layer else 0.0
        assert max(both) - 1e-9 <= one <= sum(both) + 1e-9


def test_it_finds_what_is_there_whatever_the_task() -> None:
    """Distractors of a planted model write as much as the true head, into places that do not matter."""
    planted = tp.planted("copy")
    scores = tp.InformationFlowRoutes(edges=2).score(planted.model, planted.task)
    false = scores.values[~planted.circuit.kept]
    assert false.max() > scores.values[planted.circuit.kept].min() > 0
    again = tp.InformationFlowRoutes(edges=2).score(planted.model, planted.task, ablation=tp.Zero())
    assert torch.equal(again.values, scores.values)


# ---- what is refused


@NEEDS_HOOKED_TRANSFORMER
def test_encoders_see_no_sums() -> None:
    model = fresh_encoder("bert classes", torch.float32, num_hidden_layers=1)
    with pytest.raises(ValueError, match="this encoder normalises every sum"):
        tp.InformationFlowRoutes(edges=1).find(model, task_of(model))


def test_a_flow_is_one_of_two() -> None:
    with refuses_choice("flow must be 'routes' or 'positions'"):
        tp.InformationFlowRoutes(flow="answers")  # pyright: ignore[reportArgumentType]


def test_a_model_under_masks_is_refused() -> None:
    one = tp.planted("copy")
    with tp.Masked(one.model, one.circuit, tp.Zero()).installed(), pytest.raises(RuntimeError, match="has masks"):
        tp.InformationFlowRoutes().score(one.model, one.task)


def test_infinities_are_no_scores() -> None:
    model = fresh("gpt2")
    with torch.no_grad():
        backend_of(model).parameters()["embed.W_E"][int(TRAIN.clean.ids[0, 0])] = float("nan")
    with pytest.raises(FloatingPointError, match="scores are not numbers"):
        score(model)
