"""The graph: published counts, names that round-trip, and paths against brute force."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hooked import NEEDS_HOOKED_TRANSFORMER
from shapes import GPT2, SHAPES, STORIES
from styles import STYLES, conventions, model_of, refuses_choice
from torch import Tensor

from tlprune.graph import Architecture, Convention, Graph

CODE_LLAMA_13B = Architecture(40, 40, 40)
COUNTS = [
    (GPT2, Convention("merged"), 32_491),
    (GPT2, Convention("separate"), 32_936),
    (GPT2, Convention("kept"), 32_046),
    (STORIES, Convention(), 1_701),
    (STORIES, Convention(kv="per_query_head"), 2_461),
    (CODE_LLAMA_13B, Convention("kept"), 3_872_820),
    (CODE_LLAMA_13B, Convention("merged"), 3_877_661),
]
GRAPHS = {
    f"{name}-{embeddings}-{kv}": Graph(shape, Convention(embeddings, kv))
    for name, shape in SHAPES.items()
    for embeddings in ("merged", "separate", "kept")
    for kv in ("shared", "per_query_head")
    if shape.n_kv_heads < shape.n_heads or kv == "shared"
}
each_graph = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)


@pytest.mark.parametrize(("shape", "convention", "count"), COUNTS)
def test_published_counts(shape: Architecture, convention: Convention, count: int) -> None:
    assert Graph(shape, convention).n_edges == count


@each_graph
def test_count_is_the_formula(graph: Graph) -> None:
    shape, embeddings = graph.architecture, len(graph.embeddings)
    heads, readers = shape.n_heads, shape.n_heads + 2 * graph.n_kv_readers
    per_layer = heads + int(shape.has_mlp)
    before = [embeddings + layer * per_layer for layer in range(shape.n_layers)]
    mlps = [width + (0 if shape.parallel else heads) for width in before] if shape.has_mlp else []
    assert graph.n_edges == sum(readers * width for width in before) + sum(mlps) + before[-1] + per_layer


@each_graph
def test_names_round_trip(graph: Graph) -> None:
    names = graph.edges()
    assert [graph.index(name) for name in names] == list(range(graph.n_edges))
    assert len(set(names)) == len(names) == graph.n_edges
    assert names == [graph.name(index) for index in range(graph.n_edges)]
    with pytest.raises(ValueError, match="must be below"):
        graph.name(graph.n_edges)


@each_graph
def test_blocks_hold_the_edges_of_their_readers(graph: Graph) -> None:
    numbers = torch.arange(graph.n_edges)
    for readers in graph.readers:
        for row, name in enumerate(readers.names):
            expected = [f"{writer}->{name}" for writer in graph.writers[: readers.width]]
            assert [graph.name(int(index)) for index in readers.block(numbers)[row]] == expected
    stacked = torch.stack([numbers, -numbers])
    assert torch.equal(graph.readers[-1].block(stacked)[1], -graph.readers[-1].block(numbers))


@each_graph
def test_graph_survives_plain_data(graph: Graph) -> None:
    again = Graph.from_dict(graph.as_dict())
    assert again == graph
    assert hash(again) == hash(graph)
    assert again != Graph(Architecture(9, 1, 1))


def test_convention_is_part_of_the_graph() -> None:
    conventions_of_gpt2 = {Graph(GPT2, Convention(embeddings)) for embeddings in ("merged", "separate", "kept")}
    assert len(conventions_of_gpt2) == 3
    assert repr(Graph(GPT2)) == "Graph(32,491 edges; embeddings merged, kv shared)"


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("style", STYLES)
def test_a_models_graph_has_its_parts(style: str) -> None:
    config = model_of(style).cfg
    for convention in conventions(style):
        graph = Graph.of(model_of(style), convention)
        heads = [writer for writer in graph.writers if ".h" in writer]
        assert len(heads) == config.n_layers * config.n_heads
        assert ("m0" in graph.writers) == (not config.attn_only)
        grouped = style in ("llama", "qk_norm", "gemma2") and not convention.ungrouped
        assert ("a0.kv1<k>" in graph.readers[0].names) == grouped
        positions = convention.embeddings == "separate" and config.positional_embedding_type == "standard"
        assert ("pos_embed" in graph.writers) == positions


BAD_NAMES = {
    "input": "has no '->'",
    "": "has no '->'",
    "inptu->a0.h0<q>": "'inptu' is not a writer .*input",
    "input->a0.h0": "'a0.h0' is not a reader .*a0.h0<q>",
    "input->a0.h9<q>": "'a0.h9<q>' is not a reader",
    "logits->m0": "'logits' is not a writer",
    "a1.h0->a1.h1<q>": "runs backwards",
    "m1->a1.h0<v>": "runs backwards",
    "m0->m0": "runs backwards",
    "input->logits->m0": "is not a reader",
}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_says_what_is_wrong(name: str) -> None:
    with pytest.raises(ValueError, match=BAD_NAMES[name]):
        GRAPHS["plain-merged-shared"].index(name)


@pytest.mark.parametrize("options", [{"embeddings": "both"}, {"kv": "grouped"}])
def test_an_unknown_convention_is_refused(options: dict[str, str]) -> None:
    with refuses_choice("must be one of"):
        Convention(**options)


# ---- paths


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3])
@each_graph
def test_effective_edges_are_those_on_a_path(graph: Graph, density: float) -> None:
    for seed in range(10):
        kept = torch.rand(graph.n_edges, generator=torch.Generator().manual_seed(seed)) < density
        assert torch.equal(graph.effective(kept), on_paths(graph, kept)), seed


@each_graph
def test_every_edge_of_the_whole_graph_is_effective(graph: Graph) -> None:
    everything = torch.ones(graph.n_edges, dtype=torch.bool)
    assert graph.effective(everything).all()
    assert not graph.effective(~everything).any()


def on_paths(graph: Graph, kept: Tensor) -> Tensor:
    """Walk back from the logits along kept edges, and forward from the embeddings, one node at a time."""
    arrows = [(edge, writer, node) for edge, writer, reader in named(graph, kept) for node in nodes(graph, reader)]
    starts = set(graph.embeddings) if graph.embeddings else set(graph.writers)
    forward = closure(starts, [(writer, node) for _, writer, node in arrows])
    backward = closure({"logits"}, [(node, writer) for _, writer, node in arrows])
    found = torch.zeros_like(kept)
    for edge, writer, node in arrows:
        found[edge] |= writer in forward and node in backward
    return found


def named(graph: Graph, kept: Tensor) -> Iterator[tuple[int, str, str]]:
    for edge in kept.nonzero().flatten().tolist():
        writer, _, reader = graph.name(edge).partition("->")
        yield edge, writer, reader


def nodes(graph: Graph, reader: str) -> list[str]:
    """The nodes that a reader belongs to: several heads, where they share a key or value."""
    layer, dot, head = reader.partition("<")[0].partition(".")
    if not dot or head.startswith("h"):
        return [layer + dot + head]
    group = graph.architecture.n_heads // graph.architecture.n_kv_heads
    first = int(head.removeprefix("kv")) * group
    return [f"{layer}.h{number}" for number in range(first, first + group)]


def closure(starts: set[str], steps: list[tuple[str, str]]) -> set[str]:
    reached = set(starts)
    while new := {end for start, end in steps if start in reached} - reached:
        reached |= new
    return reached
