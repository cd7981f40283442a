"""What the edge engine computes: every edge kept, none kept, and all that lies between, for every architecture."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from styles import (
    CASES,
    CLEAN,
    CORRUPT,
    DTYPES,
    NAMES,
    OTHERS,
    STYLES,
    TOLERANCE,
    backend_of_style,
    error,
    model_of,
    random_mask,
)
from torch import Tensor

from tlprune.backends.activations import Activations
from tlprune.graph import Convention, Graph
from tlprune.masking.ablation import Resample, Zero
from tlprune.masking.edges import run_edges
from tlprune.masking.means import Mean
from tlprune.masking.plain import plain_run
from tlprune.task import Tokens

# The last two prompts are one and three tokens shorter; what stands there instead must not count.
PADDED = Tokens(OTHERS.ids, torch.tensor([[1] * 6] * 3 + [[1] * 5 + [0], [1] * 3 + [0] * 3]))
ABLATIONS = {"resample": Resample(), "mean": Mean(PADDED, batch_size=2), "zero": Zero()}


def cases(choose: Callable[[str, Convention], bool]) -> pytest.MarkDecorator:
    """Some of the styles with their conventions."""
    chosen = [(case, name) for case, name in zip(CASES, NAMES, strict=True) if choose(*case)]
    return pytest.mark.parametrize(
        ("style", "convention"), [case for case, _ in chosen], ids=[name for _, name in chosen]
    )


styled = cases(lambda style, convention: True)
without_kept = cases(lambda style, convention: convention.embeddings != "kept")
# The first attention sees the embedding alone, and a norm behind it would undo a mask's scale.
of_one_writer = cases(
    lambda style, convention: (
        STYLES[style]["normalization_type"] is not None
        and (
            convention.embeddings == "merged" or (convention.embeddings == "separate" and "rotary_dim" in STYLES[style])
        )
    )
)
in_both_precisions = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


@cache
def replaced_by(ablation: str, style: str, dtype: torch.dtype) -> Activations:
    return ABLATIONS[ablation].replaced(backend_of_style(style, dtype), CLEAN, CORRUPT)


def run(style: str, convention: Convention, mask: Tensor, ablation: str = "resample") -> Tensor:
    backend = backend_of_style(style, mask.dtype)
    graph = Graph.of(backend.model, convention)
    return run_edges(backend, graph, CLEAN, mask, replaced_by(ablation, style, mask.dtype))


def plain(style: str, convention: Convention, mask: Tensor, ablation: str = "resample") -> Tensor:
    model = model_of(style, mask.dtype)
    return plain_run(model, Graph.of(model, convention), CLEAN, mask, replaced_by(ablation, style, mask.dtype))


def graph_of(style: str, convention: Convention) -> Graph:
    return Graph.of(model_of(style), convention)


@pytest.mark.parametrize("ablation", ABLATIONS)
@in_both_precisions
@styled
def test_all_ones_is_the_model(style: str, convention: Convention, dtype: torch.dtype, ablation: str) -> None:
    ones = torch.ones(graph_of(style, convention).n_edges, dtype=dtype)
    expected = model_of(style, dtype)(CLEAN.ids)
    assert error(run(style, convention, ones, ablation), expected) <= TOLERANCE[dtype]


@in_both_precisions
@without_kept
def test_all_zeros_under_resample_is_the_counterfactual_run(
    style: str, convention: Convention, dtype: torch.dtype
) -> None:
    zeros = torch.zeros(graph_of(style, convention).n_edges, dtype=dtype)
    assert error(run(style, convention, zeros), model_of(style, dtype)(CORRUPT.ids)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("ablation", ABLATIONS)
@styled
def test_all_zeros_shows_every_reader_the_replacing_stream(style: str, convention: Convention, ablation: str) -> None:
    """``sum x~ + c``, with the clean embeddings in place of the replacing ones where embeddings are kept."""
    model, graph = model_of(style), graph_of(style, convention)
    streams = STREAMS[ablation](model)
    if convention.embeddings == "kept":
        clean = embedded(model, CLEAN.ids)
        streams = [stream + clean - streams[0] for stream in streams]
    zeros = torch.zeros(graph.n_edges, dtype=torch.float64)
    seen, logits = watched(style, convention, zeros, ablation)
    for readers, stream in zip(graph.readers, streams, strict=True):
        for point, expected in expected_inputs(model, graph, readers.kind, readers.layer, stream).items():
            assert error(seen[point], expected.expand_as(seen[point])) <= 1e-9, point
    assert error(logits, unembedded(model, streams[-1]).expand_as(logits)) <= 1e-9


def watched(style: str, convention: Convention, mask: Tensor, ablation: str) -> tuple[dict[str, Tensor], Tensor]:
    """What hooks of a user see at the readers during a masked run, and its logits."""
    model, seen = model_of(style), {}
    for name, point in model.hook_dict.items():
        if name.endswith(("hook_q", "hook_k", "hook_v", "hook_mlp_in")):
            point.add_hook(lambda value, hook: seen.__setitem__(hook.name, value.clone()))
    try:
        return seen, run(style, convention, mask, ablation)
    finally:
        model.reset_hooks()


def expected_inputs(model: Any, graph: Graph, kind: str, layer: int, stream: Tensor) -> dict[str, Tensor]:
    """The model's own norm and projections on a stream."""
    if kind == "mlp":
        return {f"blocks.{layer}.hook_mlp_in": stream}
    if kind == "logits":
        return {}
    attention, normed = model.blocks[layer].attn, model.blocks[layer].ln1(stream)
    parts = {
        part: projected(normed, getattr(attention, f"W_{part}"), getattr(attention, f"b_{part}")) for part in "QKV"
    }
    if graph.convention.kv == "shared" and graph.n_kv_readers < graph.architecture.n_heads:
        group = graph.architecture.n_heads // graph.n_kv_readers
        parts |= {part: parts[part][:, :, ::group] for part in "KV"}
    return {f"blocks.{layer}.attn.hook_{part.lower()}": value for part, value in parts.items()}


def projected(stream: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.einsum("bpd,hde->bphe", stream, weight) + bias


def unembedded(model: Any, stream: Tensor) -> Tensor:
    normed = stream if model.cfg.normalization_type is None else model.ln_final(stream)
    logits, cap = model.unembed(normed), model.cfg.output_logits_soft_cap
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def embedded(model: Any, ids: Tensor) -> Tensor:
    tokens = model.embed(ids)
    return tokens + model.pos_embed(ids) if model.cfg.positional_embedding_type == "standard" else tokens


def points_of_streams(model: Any) -> list[str]:
    """Where the plain model's readers read: before each attention, before each MLP, before the unembedding."""
    middle = "hook_resid_pre" if model.cfg.parallel_attn_mlp else "hook_resid_mid"
    inner = ["hook_resid_pre"] if model.cfg.attn_only else ["hook_resid_pre", middle]
    layers = range(model.cfg.n_layers)
    return [f"blocks.{layer}.{point}" for layer in layers for point in inner] + [
        f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    ]


def streams_in(model: Any, ids: Tensor) -> list[Tensor]:
    _, seen = model.run_with_cache(ids)
    return [seen[point] for point in points_of_streams(model)]


def mean_streams(model: Any) -> list[Tensor]:
    """Averages over the real tokens, of prompts cut to their length and run one by one."""
    lengths = PADDED.attention_mask.sum(1).tolist()
    runs = [streams_in(model, ids[None, :length]) for ids, length in zip(PADDED.ids, lengths, strict=True)]
    return [torch.cat(prompts, 1).mean(1, keepdim=True) for prompts in zip(*runs, strict=True)]


def bias_streams(model: Any) -> list[Tensor]:
    """What no writer carries: the output biases of attention in the blocks before a reader."""
    total, found = torch.zeros(1, 1, model.cfg.d_model, dtype=torch.float64), []
    for point in points_of_streams(model):
        layer = int(point.split(".")[1])
        blocks = layer + int(not point.endswith("hook_resid_pre"))
        found.append(total + sum(block.attn.b_O for block in list(model.blocks)[:blocks]))
    return found


STREAMS = {"resample": lambda model: streams_in(model, CORRUPT.ids), "mean": mean_streams, "zero": bias_streams}


@pytest.mark.parametrize("ablation", ABLATIONS)
@in_both_precisions
@styled
def test_random_masks_are_the_plain_sum(style: str, convention: Convention, dtype: torch.dtype, ablation: str) -> None:
    mask = random_mask(graph_of(style, convention), dtype=dtype).detach()
    mask = hard_where_scale_free(style, convention, mask, ablation)
    fast, slow = run(style, convention, mask, ablation), plain(style, convention, mask, ablation)
    assert error(fast, slow) <= TOLERANCE[dtype]


def scale_free(style: str, convention: Convention, ablation: str) -> Tensor:
    """Edges into a norm that sees nothing else: under zero ablation their scale is undone, and they are gated."""
    graph, found = graph_of(style, convention), torch.zeros(graph_of(style, convention).n_edges, dtype=torch.bool)
    normed = model_of(style).cfg.normalization_type is not None
    if ablation == "zero" and normed and convention.embeddings != "kept":
        for readers in graph.readers:
            readers.block(found)[:] = readers.width == 1
    return found


def hard_where_scale_free(style: str, convention: Convention, mask: Tensor, ablation: str) -> Tensor:
    return torch.where(scale_free(style, convention, ablation), (mask > 0.5).to(mask.dtype), mask)


@of_one_writer
def test_soft_gates_behind_a_norm_interpolate(style: str, convention: Convention) -> None:
    """q, k and v of a scale-free reader go on a straight line from their value at 0 to that at 1."""
    edges = scale_free(style, convention, "zero")
    base = random_mask(graph_of(style, convention)).detach()
    at = {value: watched(style, convention, base.masked_fill(edges, value), "zero")[0] for value in (0.0, 0.25, 1.0)}
    for point in ("blocks.0.attn.hook_q", "blocks.0.attn.hook_k", "blocks.0.attn.hook_v"):
        expected = 0.75 * at[0.0][point] + 0.25 * at[1.0][point]
        assert error(at[0.25][point], expected) <= 1e-9
        assert error(at[0.0][point], at[1.0][point]) > 1e-3


@styled
def test_the_cases_of_one_writer_are_all_there_are(style: str, convention: Convention) -> None:
    listed = (style, convention) in of_one_writer.args[1]
    assert bool(scale_free(style, convention, "zero").any()) == listed
