"""The planted circuits are true: proved by brute force, with a forward pass that shares no code with the engine."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.graph import Graph
from tlprune.models.planted import Planted, planted
from tlprune.models.planted_tasks import NO, YES, build_task
from tlprune.models.planted_wiring import WIRINGS
from tlprune.task import Batch

NAMES = sorted(WIRINGS)
EXAMPLES = 16


@cache
def built(name: str, seed: int = 0) -> Planted:
    return planted(name, seed=seed)


@cache
def examples(name: str) -> Batch:
    return build_task(name).test.rows(torch.arange(EXAMPLES))


class PlainTransformer:
    """A transformer without norms, written out per head and per reader: the value of every writer, by name."""

    def __init__(self, model: object, graph: Graph) -> None:
        self.weights = {name: parameter.detach() for name, parameter in backend_of(model).parameters().items()}
        self.layers, self.heads, self.graph = model.cfg.n_layers, model.cfg.n_heads, graph

    def writers(self, ids: Tensor) -> dict[str, Tensor]:
        """Outputs in an ordinary run: every reader sees the sum of all writers before it."""
        return self._run(ids, lambda reader, values: sum(values.values()))

    def logits(self, clean: Tensor, corrupt: Tensor, kept: Tensor) -> Tensor:
        """Logits ``(circuit, example, pos, vocabulary)``: an edge outside its circuit carries the twin's value."""
        twin = self.writers(corrupt)

        def read(reader: str, values: dict[str, Tensor]) -> Tensor:
            total = torch.zeros(1)
            for writer, value in values.items():
                keep = kept[:, self.graph.index(f"{writer}->{reader}"), None, None, None]
                total = total + torch.where(keep, value, twin[writer])
            return total

        return self.unembed(read("logits", self._run(clean, read)))

    def unembed(self, stream: Tensor) -> Tensor:
        return stream @ self.weights["unembed.W_U"] + self.weights["unembed.b_U"]

    def _run(self, ids: Tensor, read: object) -> dict[str, Tensor]:
        positions = self.weights["pos_embed.W_pos"][: ids.shape[1]]
        values = {"input": self.weights["embed.W_E"][ids] + positions}
        for layer in range(self.layers):
            before = dict(values)
            for head in range(self.heads):
                values[f"a{layer}.h{head}"] = self._head(layer, head, lambda reader: read(reader, before))  # noqa: B023
            values[f"m{layer}"] = self._mlp(layer, read(f"m{layer}", values))
        return values

    def _head(self, layer: int, head: int, read: object) -> Tensor:
        weight = {part: self.weights[f"blocks.{layer}.attn.W_{part.upper()}"][head] for part in "qkvo"}
        query, key, value = (read(f"a{layer}.h{head}<{part}>") @ weight[part] for part in "qkv")
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return scores.masked_fill(future, -torch.inf).softmax(-1) @ value @ weight["o"]

    def _mlp(self, layer: int, stream: Tensor) -> Tensor:
        weight = {part: self.weights[f"blocks.{layer}.mlp.{part}"] for part in ("W_in", "b_in", "W_out", "b_out")}
        return F.relu(stream @ weight["W_in"] + weight["b_in"]) @ weight["W_out"] + weight["b_out"]


@cache
def plain(name: str, seed: int = 0) -> PlainTransformer:
    return PlainTransformer(built(name, seed).model, built(name, seed).circuit.graph)


def run(name: str, kept: Tensor, seed: int = 0) -> Tensor:
    batch = examples(name)
    return plain(name, seed).logits(batch.clean.ids, batch.corrupt.ids, kept)


def full(name: str, seed: int = 0) -> Tensor:
    return run(name, torch.ones(1, built(name, seed).circuit.graph.n_edges, dtype=torch.bool), seed)


def without(name: str, edges: list[str], seed: int = 0) -> Tensor:
    """One circuit per edge, each with all edges but this one."""
    graph = built(name, seed).circuit.graph
    kept = torch.ones(len(edges), graph.n_edges, dtype=torch.bool)
    kept[torch.arange(len(edges)), [graph.index(edge) for edge in edges]] = False
    return kept


def kl_to_full(name: str, kept: Tensor, seed: int = 0) -> Tensor:
    """KL(full || circuit) at the answer, in nats, ``(circuit, example)``."""
    reference, patched = (logits[:, :, -1].log_softmax(-1) for logits in (full(name, seed), run(name, kept, seed)))
    return (reference.exp() * (reference - patched)).sum(-1)


@pytest.mark.parametrize("name", NAMES)
def test_plain_transformer_is_the_model(name: str) -> None:
    expected = built(name).model(examples(name).clean.ids)
    torch.testing.assert_close(full(name)[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_true_circuit_alone_is_the_full_model(name: str, seed: int) -> None:
    alone = run(name, built(name, seed).circuit.kept[None], seed)
    torch.testing.assert_close(alone, full(name, seed), atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_no_false_edge_has_any_effect(name: str, seed: int) -> None:
    false = built(name, seed).circuit.complement.edges
    removed = run(name, without(name, false, seed), seed)
    assert len(false) == 110 - len(built(name, seed).circuit)
    assert (removed - full(name, seed)).abs().max() <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_false_edges_have_no_effect_whatever_else_is_removed(name: str) -> None:
    """In any state of the graph the logits depend on the true edges alone."""
    true = built(name).circuit.kept
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(40, len(true), generator=generator) < torch.linspace(0.1, 0.9, 40)[:, None]
    torch.testing.assert_close(run(name, kept), run(name, kept & true), atol=1e-5, rtol=0)
    torch.testing.assert_close(run(name, kept), run(name, kept | ~true), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "or"])
def test_every_true_edge_matters_by_itself(name: str) -> None:
    divergence = kl_to_full(name, without(name, built(name).circuit.edges))
    assert (divergence > 0.5).float().mean(1).min() >= 0.25


def test_each_input_of_the_or_gate_masks_the_other() -> None:
    circuit = built("or").circuit
    *into, out = circuit.edges
    # At the answer: earlier positions may see one bit only.
    assert (run("or", without("or", into)) - full("or"))[:, :, -1].abs().max() <= 1e-5
    assert kl_to_full("or", without("or", [out])).min() > 2
    for edge in into:
        others = [other for other in into if bit_of(other) != bit_of(edge)]
        for other in others:
            both = without("or", [edge]) & without("or", [other])
            assert kl_to_full("or", both).min() > 2, (edge, other)


def bit_of(edge: str) -> str:
    """The head of layer 0 that an edge enters or leaves: ``a0.h2`` of ``input->a0.h2<v>`` and ``a0.h2->m1``."""
    return next(end.removesuffix("<v>") for end in edge.split("->") if end.startswith("a0"))


def test_or_gate_has_no_gradient_in_the_clean_run_but_and_gate_has() -> None:
    assert bit_gradient("or") == 0
    assert bit_gradient("and") > 1


def bit_gradient(name: str) -> float:
    """Largest derivative of a logit difference with respect to the true heads' outputs."""
    model, batch = built(name).model, examples(name)
    held: list[Tensor] = []

    def hold(z: Tensor, hook: object) -> Tensor:
        held.append(z.detach().requires_grad_())
        return held[0]

    logits = model.run_with_hooks(batch.clean.ids, fwd_hooks=[("blocks.0.attn.hook_z", hold)])[:, -1]
    (gradient,) = torch.autograd.grad((logits[:, YES] - logits[:, NO]).sum(), held)
    heads = sorted({int(bit_of(edge)[-1]) for edge in built(name).circuit.edges if "a0" in edge})
    return float(gradient[:, :, heads].abs().max())


def test_adder_inputs_contribute_equally_and_add_up() -> None:
    batch, edges = examples("adder"), [edge for edge in built("adder").circuit.edges if "input" in edge]
    first, second = without("adder", edges)
    states = torch.stack([first & second, first, second, first | second])
    logits = run("adder", states)[:, :, -1]
    difference = logits[..., YES] - logits[..., NO]
    expected = torch.tensor([-8.0, 0.0, 0.0, 8.0])[:, None].expand(-1, len(batch))
    torch.testing.assert_close(difference, expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_empty_circuit_is_the_twin_and_far_from_the_full_model(name: str) -> None:
    empty = torch.zeros(1, built(name).circuit.graph.n_edges, dtype=torch.bool)
    twin = built(name).model(examples(name).corrupt.ids)
    torch.testing.assert_close(run(name, empty)[0], twin, atol=1e-4, rtol=0)
    assert kl_to_full(name, empty).min() >= 2


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_distractors_write_as_much_as_true_parts_and_carry_the_difference(name: str, seed: int) -> None:
    batch, graph = examples(name), built(name, seed).circuit.graph
    clean, corrupt = (plain(name, seed).writers(tokens.ids) for tokens in (batch.clean, batch.corrupt))
    true = {edge.split("->")[0] for edge in built(name, seed).circuit.edges}
    typical = torch.stack([clean[writer][:, -1].norm(dim=-1).mean() for writer in true - {"input"}]).mean()
    for writer in set(graph.writers) - true:
        size, change = clean[writer].norm(dim=-1).mean(), (clean[writer] - corrupt[writer]).norm(dim=-1).mean()
        assert typical / 3 <= size <= 3 * typical, writer
        assert change >= 0.2 * size, writer
