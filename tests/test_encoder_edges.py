"""Edges of encoders: every kept is the model, none is the replacing run, and any mixture is what a plain loop over
readers and writers makes of it, in ordinary autograd, with padding and token types."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from encoders import ENCODERS, LENGTH, call, fresh_encoder, kept_encoder, prompts
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import error, probe
from test_encoder_nodes import cache_of, clean, corrupt, cut, masked_of, plain, random_values
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.backends.activations import Activations
from tlprune.circuit import Circuit
from tlprune.graph import Convention, Graph
from tlprune.masking.ablation import Resample, Zero
from tlprune.masking.constants import Constant
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.masking.means import Mean
from tlprune.masking.sites import edges, mlps, neurons, nodes, weights
from tlprune.sites import Sites
from tlprune.task import Tokens

pytestmark = NEEDS_HOOKED_TRANSFORMER
FEW = ("plain", "bert classes", "roberta words")
CONVENTIONS = {
    "merged": Convention(), "kept": Convention("kept"), "joined": Convention(qkv="joined"),
    "kept joined": Convention("kept", qkv="joined"), "per head": Convention(kv="per_query_head"),
}  # fmt: skip
each_encoder = pytest.mark.parametrize("name", ENCODERS)
of_few = pytest.mark.parametrize("name", FEW)
each_convention = pytest.mark.parametrize("convention", CONVENTIONS)
each_ablation = pytest.mark.parametrize("ablation", ["resample", "zero", "mean", "constant"])


def sites_of(convention: str) -> Callable[[Any], Sites]:
    own = CONVENTIONS[convention]
    return lambda model: edges(model, embeddings=own.embeddings, kv=own.kv, qkv=own.qkv)


def run(masked: Masked, name: str, mask: Tensor, **options: Any) -> Tensor:
    return masked(clean(name), corrupt(name), mask=mask, **options)


@each_ablation
@each_convention
@each_encoder
def test_all_ones_is_the_model(name: str, convention: str, ablation: str) -> None:
    masked = masked_of(name, sites_of(convention), ablation)
    ones = torch.ones(len(masked.sites), dtype=torch.float64)
    assert error(run(masked, name, ones), plain(name, clean(name))) <= 1e-9


@pytest.mark.parametrize("convention", ["merged", "joined"])
@each_encoder
def test_all_zeros_under_resample_is_the_counterfactual_run(name: str, convention: str) -> None:
    masked = masked_of(name, sites_of(convention))
    zeros = torch.zeros(len(masked.sites), dtype=torch.float64)
    assert error(run(masked, name, zeros), plain(name, corrupt(name))) <= 1e-9


def chain(model: Any, replaced: Activations, start: Tensor) -> dict[str, Tensor]:
    """What every reader sees if all writers send what replaces them: TransformerLens' own norms over their sums."""
    stream, seen = start, {}
    for number, block in enumerate(model.blocks):
        seen |= {f"a{number}.h{head}<{part}>": stream for head in range(4) for part in "qkv"}
        heads_sent = torch.einsum("bphe,hed->bpd", replaced.heads[number], block.attn.W_O)
        seen[f"m{number}"] = block.ln1(stream + heads_sent + block.attn.b_O)
        stream = block.ln2(seen[f"m{number}"] + replaced.mlps[number])
    return seen | {"logits": stream}


@each_ablation
@pytest.mark.parametrize("convention", ["merged", "kept"])
@of_few
def test_all_zeros_shows_every_reader_the_norms_over_what_replaces(name: str, convention: str, ablation: str) -> None:
    masked = masked_of(name, sites_of(convention), ablation)
    replaced = masked.ablation.replaced(masked.backend, clean(name), corrupt(name))
    start = replaced.embeddings[0]
    if convention == "kept":
        start = cache_of(masked.model, clean(name))["hook_full_embed"]
    zeros = torch.zeros(len(masked.sites), dtype=torch.float64)
    _, seen = masked.run_with_cache(clean(name), corrupt(name), mask=zeros)
    expected = chain(masked.model, replaced, start)
    assert set(seen) == set(expected)
    assert all(error(seen[reader], stream.expand(3, LENGTH, -1)) <= 1e-9 for reader, stream in expected.items())


class Loop:
    """The definition, read aloud: for each reader, one stream through all norms before it, one writer at a time."""

    def __init__(self, model: Any, graph: Graph, tokens: Tokens, mask: Tensor, replaced: Activations) -> None:
        self.model, self.graph, self.tokens, self.mask, self.replaced = model, graph, tokens, mask, replaced
        self.values: dict[str, Tensor] = {}
        self.weights = {name: value.detach() for name, value in model.named_parameters()}

    def gate(self, writer: str, reader: str) -> Tensor:
        """Lined up with ``(example, pos, d_model)``."""
        value = self.mask[..., self.graph.index(f"{writer}->{reader}")]
        return value.reshape(*value.shape, *(1,) * (3 - value.dim()))

    def sent(self, writer: str, reader: str, instead: Tensor) -> Tensor:
        return instead + self.gate(writer, reader) * (self.values[writer] - instead)

    def norm(self, stream: Tensor, name: str) -> Tensor:
        centred = stream - stream.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + self.model.cfg.eps).sqrt()
        return centred / scale * self.weights[f"{name}.w"] + self.weights[f"{name}.b"]

    def stream(self, reader: str, layers: int, *, half: bool = False) -> Tensor:
        kept = self.graph.convention.embeddings == "kept"
        stream = self.values["input"] if kept else self.sent("input", reader, self.replaced.embeddings[0])
        for layer in range(layers + half):
            block = f"blocks.{layer}"
            total = stream + self.weights[f"{block}.attn.b_O"]
            for head in range(4):
                z, weight = self.replaced.heads[layer][:, :, head], self.weights[f"{block}.attn.W_O"][head]
                total = total + self.sent(f"a{layer}.h{head}", reader, z @ weight)
            stream = self.norm(total, f"{block}.ln1")
            if layer < layers:
                stream = self.norm(stream + self.sent(f"m{layer}", reader, self.replaced.mlps[layer]), f"{block}.ln2")
        return stream

    def head(self, layer: int, head: int) -> Tensor:
        joined = self.graph.convention.qkv == "joined"
        read = {part: self.stream(f"a{layer}.h{head}" + (f"<{part}>" if not joined else ""), layer) for part in "qkv"}
        own = f"blocks.{layer}.attn."
        q, k, v = (
            read[part] @ self.weights[f"{own}W_{part.upper()}"][head] + self.weights[f"{own}b_{part.upper()}"][head]
            for part in "qkv"
        )
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if self.tokens.attention_mask is not None:
            scores = scores.masked_fill(self.tokens.attention_mask[:, None] == 0, -torch.inf)
        return scores.softmax(-1) @ v @ self.weights[f"{own}W_O"][head]

    def logits(self) -> Tensor:
        tokens, model = self.tokens, self.model
        self.values["input"] = model.embed(tokens.ids, tokens.token_types).detach()
        for layer in range(model.cfg.n_layers):
            found = {f"a{layer}.h{head}": self.head(layer, head) for head in range(4)}
            self.values |= found
            own = f"blocks.{layer}.mlp"
            inner = (
                self.stream(f"m{layer}", layer, half=True) @ self.weights[f"{own}.W_in"] + self.weights[f"{own}.b_in"]
            )
            active = model.blocks[layer].mlp.act_fn(inner)
            self.values[f"m{layer}"] = active @ self.weights[f"{own}.W_out"] + self.weights[f"{own}.b_out"]
        last = self.stream("logits", model.cfg.n_layers)
        if not hasattr(model, "logits_of"):
            return model.unembed(model.mlm_head(last))
        found = model.logits_of(last, tokens.attention_mask)
        return found if found.dim() == 3 else found[:, None]


@cache
def loop_of(name: str, convention: str, ablation: str, lead: tuple[int, ...] = ()) -> tuple[Tensor, Tensor, Tensor]:
    """A random mask, and logits and gradient of the loop."""
    masked = masked_of(name, sites_of(convention), ablation)
    mask = random_values(masked.sites, *lead).requires_grad_()
    replaced = masked.ablation.replaced(masked.backend, clean(name), corrupt(name)).map(torch.Tensor.detach)
    logits = Loop(masked.model, masked.graph, clean(name), mask, replaced).logits()
    return mask.detach(), logits.detach(), torch.autograd.grad(probe(logits), mask)[0]


def check(name: str, convention: str, ablation: str, lead: tuple[int, ...] = ()) -> None:
    mask, logits, gradient = loop_of(name, convention, ablation, lead)
    mask = mask.clone().requires_grad_()
    found = run(masked_of(name, sites_of(convention), ablation), name, mask)
    assert error(found, logits) <= 1e-9
    probe(found).backward()
    assert mask.grad is not None
    assert float((mask.grad - gradient).abs().max() / gradient.abs().max()) <= 1e-9


@each_ablation
@each_convention
@of_few
def test_random_masks_are_the_plain_loop_in_value_and_gradient(name: str, convention: str, ablation: str) -> None:
    check(name, convention, ablation)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name not in FEW])
def test_other_heads_are_the_plain_loop_too(name: str) -> None:
    check(name, "merged", "resample")


@pytest.mark.parametrize("convention", ["merged", "kept joined"])
@pytest.mark.parametrize("lead", [(3,), (1,), (3, LENGTH), (1, LENGTH), (3, 1), (1, 1)], ids=str)
def test_masks_per_example_and_position_are_the_plain_loop(lead: tuple[int, ...], convention: str) -> None:
    check("bert classes", convention, "resample", lead)


@each_ablation
@of_few
def test_gradients_are_finite_differences(name: str, ablation: str) -> None:
    masked = masked_of(name, edges, ablation)
    mask = random_values(masked.sites).requires_grad_()
    probe(run(masked, name, mask)).backward()
    assert mask.grad is not None
    for seed in range(3):
        direction = torch.randn(len(mask), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with torch.no_grad():
            ends = [probe(run(masked, name, mask + step * direction)) for step in (1e-6, -1e-6)]
        expected = float(ends[0] - ends[1]) / 2e-6
        assert abs(float(mask.grad @ direction) - expected) <= 1e-7 + 1e-5 * abs(expected)


def per_writer(graph: Graph) -> Tensor:
    return torch.cat([torch.arange(readers.width).repeat(len(readers.names)) for readers in graph.readers])


@each_ablation
@each_encoder
def test_node_masks_are_edge_masks_shared_by_all_that_a_writer_sends(name: str, ablation: str) -> None:
    by_node, by_edge = masked_of(name, nodes, ablation), masked_of(name, edges, ablation)
    mask = random_values(by_node.sites)
    shared = mask[per_writer(by_edge.graph)]
    assert error(run(by_edge, name, shared), run(by_node, name, mask)) <= 1e-9


@pytest.mark.parametrize("norm", ["recomputed", "frozen"])
@of_few
def test_frozen_norms_and_nodes_beside_edges(name: str, norm: Any) -> None:
    """Masks of a node and of its edges multiply, under each kind of norm; norms frozen at the clean scale."""
    model = kept_encoder(name)
    both, alone, by_node = (Masked(model, Masks(s), norm=norm) for s in (edges(model) + nodes(model), edges(model),
                                                                         nodes(model)))  # fmt: skip
    mask, spread = random_values(both.sites), per_writer(both.graph)
    of_edges, of_nodes = mask[both.sites.part("edges")], mask[both.sites.part("nodes")]
    assert error(run(both, name, mask), run(alone, name, of_edges * of_nodes[spread])) <= 1e-9
    assert error(run(alone, name, of_nodes[spread]), run(by_node, name, of_nodes)) <= 1e-9
    check_gradient = mask.clone().requires_grad_()
    probe(run(both, name, check_gradient)).backward()
    direction = torch.randn(len(mask), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        ends = [probe(run(both, name, mask + step * direction)) for step in (1e-6, -1e-6)]
    assert check_gradient.grad is not None
    assert abs(float(check_gradient.grad @ direction) - float(ends[0] - ends[1]) / 2e-6) <= 1e-7


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
def test_weights_beside_edges_are_edges_of_a_model_with_masked_weights(ablation: str) -> None:
    """What replaces an ablated activation stays that of the whole model."""
    name = "bert classes"
    masked, changed = masked_of(name, lambda model: weights(model) + edges(model), ablation), fresh_encoder(name)
    sites, mask = masked.sites, random_values(masked.sites).requires_grad_()
    parts = sites.group("weights").split(mask[sites.part("weights")])  # pyright: ignore[reportAttributeAccessIssue]
    replaced = masked.ablation.replaced(masked.backend, clean(name), corrupt(name))
    loop = Loop(changed, masked.graph, clean(name), mask[sites.part("edges")], replaced)
    whole = {f"blocks.{layer}": loop.weights[f"blocks.{layer}.attn.W_O"] for layer in range(3)}
    loop.weights |= {matrix: loop.weights[matrix] * part for matrix, part in parts.items()}

    def sent(writer: str, reader: str, instead: Tensor) -> Tensor:
        if writer.startswith("a"):
            layer, head = int(writer[1]), int(writer[-1])
            instead = replaced.heads[layer][:, :, head] @ whole[f"blocks.{layer}"][head]
        return instead + loop.gate(writer, reader) * (loop.values[writer] - instead)

    loop.sent = sent
    expected, found = loop.logits(), run(masked, name, mask)
    assert error(found, expected) <= 1e-9
    one, other = (torch.autograd.grad(probe(value), mask)[0] for value in (found, expected))
    assert error(one, other) <= 1e-9


def test_neurons_beside_edges_are_a_masked_mlp() -> None:
    name = "bert words"
    masked = masked_of(name, lambda model: neurons(model, "m1") + edges(model))
    mask = random_values(masked.sites)
    mask[masked.sites.part("edges")] = 1
    alone = masked_of(name, lambda model: neurons(model, "m1"))
    assert error(run(masked, name, mask), run(alone, name, mask[masked.sites.part("neurons")])) <= 1e-9


def test_learned_constants_get_the_gradient_of_finite_differences() -> None:
    name = "bert classes"
    masked = masked_of(name, edges, "constant")
    mask, constant = random_values(masked.sites), masked.ablation
    assert isinstance(constant, Constant)
    chosen = [constant.embeddings[0], constant.heads[1], constant.mlps[0]]
    gradients = torch.autograd.grad(probe(run(masked, name, mask)), chosen)
    for parameter, gradient in zip(chosen, gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        moved = []
        for step in (1e-6, -2e-6, 1e-6):
            with torch.no_grad():
                parameter.add_(step * direction)
                moved.append(float(probe(run(masked, name, mask))))
        expected = (moved[0] - moved[1]) / 2e-6
        assert abs(float((gradient * direction).sum()) - expected) <= 1e-7 + 1e-5 * abs(expected)


@each_encoder
def test_what_stands_in_padding_reaches_nothing(name: str) -> None:
    masked, tokens, twins = masked_of(name, edges), clean(name), corrupt(name)
    mask = random_values(masked.sites)
    together = masked(tokens, twins, mask=mask)
    assert tokens.attention_mask is not None
    for row in range(3):
        short = (cut(prompt, row, int(tokens.attention_mask[row].sum())) for prompt in (tokens, twins))
        alone = masked(*short, mask=mask)
        assert error(together[row : row + 1, : alone.shape[1]], alone) <= 1e-9


@of_few
def test_padding_on_the_left_is_the_model_too(name: str) -> None:
    tokens, twins = prompts(name, 1, padding="left"), prompts(name, 2, padding="left")
    masked = masked_of(name, edges)
    for value, expected in ((1.0, tokens), (0.0, twins)):
        mask = torch.full((len(masked.sites),), value, dtype=torch.float64)
        assert error(masked(tokens, twins, mask=mask), plain(name, expected)) <= 1e-9


def test_logits_at_answer_positions_are_rows_of_all_logits() -> None:
    for name in ("plain", "roberta words"):
        masked, positions = masked_of(name, edges), torch.tensor([[0, 5], [2, 3], [1, 1]])
        mask = random_values(masked.sites)
        expected = run(masked, name, mask)[torch.arange(3)[:, None], positions]
        assert error(run(masked, name, mask, positions=positions), expected) <= 1e-12


@pytest.mark.parametrize("ablation", [Zero(), "mean"], ids=["zero", "mean"])
def test_an_installed_circuit_is_the_circuit_and_leaves_nothing(ablation: Any) -> None:
    for name in ("bert classes", "bert choices"):
        model = fresh_encoder(name)
        sites = edges(model) + mlps(model)
        circuit = Circuit(sites, torch.rand(len(sites), generator=torch.Generator().manual_seed(0)) < 0.6)
        masked = Masked(model, circuit, Mean(corrupt(name)) if ablation == "mean" else ablation)
        expected, before = masked(clean(name)), call(model, clean(name))
        with masked.installed():
            inside, again = call(model, clean(name)), call(model, clean(name))
        assert error(inside[:, None], expected) <= 1e-9
        assert torch.equal(inside, again)
        assert torch.equal(call(model, clean(name)), before)
        assert not any(point._forward_hooks for point in model.hook_dict.values())
        assert not any(block.mlp._forward_pre_hooks for block in model.blocks)


def test_the_model_is_as_before_and_what_would_see_nothing_is_refused() -> None:
    model = fresh_encoder("bert classes").train()
    model.blocks[0].attn.W_Q.requires_grad_(False)
    before = [(name, id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()]
    masked = Masked(model, Masks(edges(model)))
    mask = random_values(masked.sites).requires_grad_()
    probe(run(masked, "bert classes", mask)).backward()
    after = [(name, id(p), p.requires_grad, p.detach()) for name, p in model.named_parameters()]
    assert [entry[:3] for entry in before] == [entry[:3] for entry in after]
    assert all(torch.equal(old[3], new[3]) for old, new in zip(before, after, strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    for point in ("hook_resid_mid", "hook_normalized_resid_post", "ln2.hook_scale", "hook_mlp_in"):
        model.add_hook(f"blocks.1.{point}", lambda value, hook: value)
        with pytest.raises(ValueError, match="residual stream of its own"):
            run(masked, "bert classes", mask)
        model.reset_hooks()


def test_hooks_of_a_user_are_on_writers_before_and_on_readers_after() -> None:
    """Doubling a head by hand is doubling what its edges carry; an MLP's neurons are those of what it reads."""
    name = "bert classes"
    model, seen = fresh_encoder(name), {}
    masked = Masked(model, Masks(edges(model)), Zero())
    mask = random_values(masked.sites)
    masked(clean(name), mask=mask)

    def doubled(value: Tensor, hook: Any) -> Tensor:
        result = value.clone()
        result[:, :, 2] *= 2
        return result

    with model.hooks([("blocks.1.attn.hook_z", doubled)]):
        found = masked(clean(name), mask=mask)
    from_head = torch.tensor([edge.startswith("a1.h2->") for edge in masked.graph.edges()])
    assert error(found, masked(clean(name), mask=torch.where(from_head, 2 * mask, mask))) <= 1e-9
    with model.hooks([("blocks.1.mlp.hook_pre", lambda value, hook: seen.__setitem__("pre", value))]):
        _, streams = masked.run_with_cache(clean(name), mask=mask)
    mlp = model.blocks[1].mlp
    assert error(seen["pre"], streams["m1"] @ mlp.W_in + mlp.b_in) <= 1e-9


def test_separate_embeddings_are_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="normalises it, which mixes them"):
        edges(kept_encoder("bert classes"), embeddings="separate")


def test_low_precision_keeps_whole_masks_exact() -> None:
    """In bfloat16 the self-test holds, and gradients point where those in float32 do."""
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        model = kept_encoder("bert classes", dtype)
        masked = Masked(model, Masks(edges(model)), Resample())
        mask = random_values(masked.sites).float().requires_grad_()
        probe(masked(clean("bert classes"), corrupt("bert classes"), mask=mask).float()).backward()
        gradients.append(mask.grad)
    assert torch.cosine_similarity(*gradients, dim=0) >= 0.99


def test_counting_is_that_of_the_graph_and_of_the_documented_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """``Q L (L - 1) + L^2 + 2 L`` norms of a stream in a run without gradients."""
    from tlprune.backends import post_norms

    counted, original = [], torch.nn.functional.layer_norm

    def counting(stream: Tensor, *rest: Any) -> Tensor:
        counted.append(stream.shape[0])
        return original(stream, *rest)

    monkeypatch.setattr(post_norms.F, "layer_norm", counting)
    model = kept_encoder("bert classes")
    for joined, per_layer in (("split", 12), ("joined", 4)):
        masked = Masked(model, Masks(edges(model, qkv=joined)))  # pyright: ignore[reportArgumentType]
        ones = torch.ones(len(masked.sites), dtype=torch.float64)
        run(masked, "bert classes", ones)
        counted.clear()
        with torch.no_grad():
            run(masked, "bert classes", ones)
        assert sum(counted) == per_layer * 3 * 2 + 9 + 6
        assert backend_of(model).architecture.post_norm


def test_no_readers_stream_is_kept_for_the_backward() -> None:
    """Of a run with gradients only what writers sent is kept: no tensor has a stream for each of a block's readers."""
    masked, kept = masked_of("bert classes", edges), []
    mask = random_values(masked.sites).requires_grad_()
    run(masked, "bert classes", mask.detach())

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(masked, "bert classes", mask)
    assert len(kept) > 10
    assert max(map(math.prod, kept)) < len(masked.graph.readers[0].names) * 3 * LENGTH * 24
