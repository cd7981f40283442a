"""Sites: names and numbers of every kind, what composes, and which kept sites can matter."""

from __future__ import annotations

import json

import pytest
import torch

from tlprune.effective import effective_sites
from tlprune.graph import Architecture, Convention, Graph
from tlprune.sites import Matrix, Neurons, Nodes, Sites, Weights
from tlprune.spans import Group, Spanned

GRAPH = Graph(Architecture(2, 2, 2))
MATRICES = (
    Matrix("blocks.0.attn.W_Q", (2, 6, 3), (1,)),
    Matrix("blocks.0.attn.W_O", (2, 3, 6), (0, 1)),
    Matrix("blocks.0.mlp.W_in", (6, 4), (0,)),
)
GROUPS: dict[str, Group] = {
    "edges": GRAPH,
    "joined edges": Graph(Architecture(2, 4, 2), Convention(qkv="joined")),
    "heads": Nodes("heads", tuple(name for name in GRAPH.writers if ".h" in name)),
    "neurons": Neurons((0, 1), 4),
    "weights": Weights(MATRICES),
    "rows": Weights(MATRICES, "row"),
    "columns": Weights(MATRICES, "column"),
    "edges by span": Spanned(GRAPH, ("subject", "end")),
    "neurons by span": Spanned(Neurons((1,), 4), ("end",)),
}


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_names_and_numbers_are_one_to_one(group: Group) -> None:
    names = [group.name(index) for index in range(len(group))]
    assert len(set(names)) == len(names) > 0
    assert [group.index(name) for name in names] == list(range(len(group)))
    with pytest.raises(ValueError, match="'nothing'"):
        group.index("nothing")


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_plain_data_makes_the_same_group(group: Group) -> None:
    sites = Sites((group,))
    again = Sites.from_dict(json.loads(json.dumps(sites.as_dict())))
    assert again == sites
    assert hash(again) == hash(sites)


def test_weights_of_a_row_share_an_input_and_of_a_column_an_output() -> None:
    rows, columns = Weights(MATRICES, "row"), Weights(MATRICES, "column")
    assert rows.sizes == (6, 6, 6)
    assert columns.sizes == (6, 6, 4)
    values = torch.arange(float(len(rows)))
    for name, mask in rows.split(values).items():
        full = next(matrix for matrix in MATRICES if matrix.name == name)
        torch.broadcast_to(mask, full.shape)
        assert mask.numel() == 6
    assert rows.name(6) == "blocks.0.attn.W_O[0,0,:]"
    assert columns.name(5) == "blocks.0.attn.W_Q[1,:,2]"
    for wrong in ("blocks.0.attn.W_Q[1,0,2]", "blocks.0.attn.W_Q[2,:,2]", "blocks.0.attn.W_Q[1,:]", "W_E[0,0]"):
        with pytest.raises(ValueError, match="is not a"):
            columns.index(wrong)


def test_sites_lie_side_by_side() -> None:
    sites = Sites((GRAPH,)) + Sites((GROUPS["heads"],)) + Sites((GROUPS["neurons"],))
    assert len(sites) == GRAPH.n_edges + 4 + 8
    assert sites.kinds == ("edges", "heads", "neurons")
    assert [sites.index(sites.name(index)) for index in range(len(sites))] == list(range(len(sites)))
    assert sites.name(sites.part("heads").start) == "a0.h0"
    assert sites.graph == GRAPH
    with pytest.raises(ValueError, match="sites are edges, heads, neurons but 'mlps' was asked for"):
        sites.part("mlps")
    with pytest.raises(ValueError, match="needs edges but the sites are heads"):
        _ = Sites((GROUPS["heads"],)).graph


def test_no_place_has_two_masks_of_its_own() -> None:
    mlps, layers = Sites((Nodes("mlps", ("m0", "m1")),)), Sites((Nodes("layers", ("a0", "m0")),))
    with pytest.raises(ValueError, match="each place once"):
        _ = mlps + layers
    with pytest.raises(ValueError, match="each place once"):
        _ = mlps + mlps
    assert len(mlps + Sites((Nodes("layers", ("a0", "a1")),))) == 4


def test_spans_spread_to_positions() -> None:
    group = Spanned(Neurons((0,), 2), ("subject", "end"))
    assert [group.name(index) for index in range(6)] == [
        f"m0.n{neuron}@{span}" for span in ("subject", "end", "rest") for neuron in (0, 1)
    ]
    spans = torch.tensor([[-1, 0, 1], [0, 0, -1]])
    values = torch.arange(6.0)
    expected = torch.tensor([[[4, 5], [0, 1], [2, 3]], [[0, 1], [0, 1], [4, 5]]])
    assert torch.equal(group.spread(values, spans), expected)
    both = group.spread(torch.stack([values, values + 10]), spans)
    assert torch.equal(both, expected + torch.tensor([0.0, 10.0])[:, None, None])


def kept_of(sites: Sites, *removed: str) -> torch.Tensor:
    kept = torch.ones(len(sites), dtype=torch.bool)
    for name in removed:
        kept[sites.index(name)] = False
    return kept


def effective_names(sites: Sites, kept: torch.Tensor) -> set[str]:
    return {sites.name(index) for index in effective_sites(sites, kept).nonzero().flatten().tolist()}


def test_edges_of_removed_nodes_do_not_count() -> None:
    sites = Sites((GRAPH,)) + Sites((Nodes("heads", ("a0.h0", "a0.h1", "a1.h0", "a1.h1")),))
    found = effective_names(sites, kept_of(sites, "a0.h1"))
    assert found == {sites.name(index) for index in range(len(sites))} - {
        name for name in map(sites.name, range(len(sites))) if "a0.h1" in name
    }


def test_heads_of_a_removed_layer_do_not_count() -> None:
    sites = Sites((Nodes("heads", ("a0.h0", "a0.h1", "a1.h0")),)) + Sites((Nodes("layers", ("a0", "m0")),))
    assert effective_names(sites, kept_of(sites, "a0")) == {"a1.h0", "m0"}


def test_a_shared_key_counts_while_one_of_its_heads_is_kept() -> None:
    graph = Graph(Architecture(1, 4, 2))
    sites = Sites((graph,)) + Sites((Nodes("heads", tuple(f"a0.h{head}" for head in range(4))),))
    one, both = kept_of(sites, "a0.h0"), kept_of(sites, "a0.h0", "a0.h1")
    assert "input->a0.kv0<k>" in effective_names(sites, one)
    assert "input->a0.kv0<k>" not in effective_names(sites, both)
    assert "input->a0.kv1<v>" in effective_names(sites, both)


def test_a_path_may_pass_from_one_span_into_another() -> None:
    sites = Sites((Spanned(GRAPH, ("subject",)),))
    kept = torch.zeros(len(sites), dtype=torch.bool)
    for name in ("input->a0.h0<v>@subject", "a0.h0->logits@rest", "a0.h1->logits@rest"):
        kept[sites.index(name)] = True
    assert effective_names(sites, kept) == {"input->a0.h0<v>@subject", "a0.h0->logits@rest"}
