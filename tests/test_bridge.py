"""Masks on a TransformerBridge: theorems, and the definition written out on Hugging Face's own weights.

These run on every TransformerLens that is supported.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bridges import CASES, EXACT, KINDS, NAMES, bridged, hf_model
from plain_decoder import plain_logits
from styles import CLEAN, CORRUPT, error, probe, random_mask, random_tokens
from torch import Tensor

import tlprune as tp
from tlprune.graph import Convention, Graph
from tlprune.masking.sites import edges
from tlprune.task import Tokens

each_kind = pytest.mark.parametrize("kind", KINDS)
each_case = pytest.mark.parametrize(("kind", "convention"), CASES, ids=NAMES)


def masked_of(model: Any, convention: Convention | None = None, ablation: Any = None) -> tp.Masked:
    chosen = convention or Convention()
    sites = edges(model, embeddings=chosen.embeddings, kv=chosen.kv, qkv=chosen.qkv)
    return tp.Masked(model, tp.Masks(sites), ablation)


@torch.no_grad()
def plain(model: Any, tokens: Tokens) -> Tensor:
    return model(tokens.ids).logits


# ---- edges


@each_case
def test_all_kept_is_the_model_and_all_ablated_its_twin(kind: str, convention: Convention) -> None:
    model, whole = bridged(kind), hf_model(kind)
    masked = masked_of(model, convention)
    ones = torch.ones(len(masked.sites), dtype=torch.float64)
    assert error(masked(CLEAN, CORRUPT, mask=ones), plain(whole, CLEAN)) <= EXACT[kind]
    nothing = masked(CLEAN, CORRUPT, mask=0 * ones)
    if convention.embeddings != "kept":
        assert error(nothing, plain(whole, CORRUPT)) <= EXACT[kind]
    assert error(nothing, plain(whole, CLEAN)) > 1e-2


@each_case
def test_logits_and_mask_gradients_are_those_of_the_definition(kind: str, convention: Convention) -> None:
    model, whole = bridged(kind), hf_model(kind).requires_grad_(False)
    masked = masked_of(model, convention)
    mask = random_mask(masked.graph)
    found = masked(CLEAN, CORRUPT, mask=mask)
    expected = plain_logits(whole, masked.graph, CLEAN.ids, CORRUPT.ids, mask)
    assert error(found, expected) <= EXACT[kind]
    ours, theirs = (torch.autograd.grad(probe(logits), mask)[0] for logits in (found, expected))
    assert float(theirs.abs().max()) > 1e-4
    assert float((ours - theirs).abs().max() / theirs.abs().max()) <= 10 * EXACT[kind]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_mask_per_example_is_each_example_alone(kind: str) -> None:
    masked = masked_of(bridged(kind))
    masks = random_mask(masked.graph, 3).detach()
    together = masked(CLEAN, CORRUPT, mask=masks)
    expected = plain_logits(hf_model(kind), masked.graph, CLEAN.ids, CORRUPT.ids, masks)
    assert error(together, expected.detach()) <= EXACT[kind]


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "gemma2", "neox"])
def test_logits_at_some_positions_are_rows_of_all(kind: str) -> None:
    model = bridged(kind)
    masked, positions = masked_of(model), torch.tensor([[5, 0], [3, 3], [1, 4]])
    mask = random_mask(masked.graph).detach()
    everywhere = masked(CLEAN, CORRUPT, mask=mask)
    chosen = masked(CLEAN, CORRUPT, mask=mask, positions=positions)
    assert error(chosen, everywhere[torch.arange(3)[:, None], positions]) <= EXACT[kind]
    rows = masked.backend.logits(CLEAN, positions)
    assert error(rows, plain(hf_model(kind), CLEAN)[torch.arange(3)[:, None], positions]) <= EXACT[kind]


@each_kind
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(kind: str, side: str) -> None:
    """Prompts of 6 and 4 tokens in one batch are the two prompts alone, under one random mask.

    In float32: in float64 TransformerLens' own Llama gives NaN for a position that sees no other.
    """
    masked = masked_of(bridged(kind, torch.float32))
    mask, short = random_mask(masked.graph, dtype=torch.float32), slice(2, None) if side == "left" else slice(None, 4)
    attention = torch.ones(2, 6, dtype=torch.long)
    attention[1] = 0
    attention[1, short] = 1
    together = masked(Tokens(CLEAN.ids[:2], attention), Tokens(CORRUPT.ids[:2], attention), mask=mask)
    long = masked(Tokens(CLEAN.ids[:1]), Tokens(CORRUPT.ids[:1]), mask=mask)
    alone = masked(Tokens(CLEAN.ids[1:2, short]), Tokens(CORRUPT.ids[1:2, short]), mask=mask)
    assert error(together[:1], long) <= 2e-5
    assert error(together[1:, short], alone) <= 2e-5


def test_zero_and_mean_are_sums_without_and_with_means() -> None:
    """Resampling from one prompt is the mean over that prompt alone, and everything ablated to zero is the biases."""
    model, whole = bridged("gpt2"), hf_model("gpt2")
    one, twin = Tokens(CLEAN.ids[:1]), Tokens(CORRUPT.ids[:1])
    mask = random_mask(Graph.of(model)).detach()
    by_mean = masked_of(model, ablation=tp.Mean(twin, over="examples"))(one, mask=mask)
    assert error(by_mean, masked_of(model)(one, twin, mask=mask)) <= 1e-9
    nothing = masked_of(model, ablation=tp.Zero())(one, mask=0 * mask)
    biases = sum(block.attn.c_proj.bias for block in whole.transformer.h)
    assert error(nothing[0, 0], whole.lm_head(whole.transformer.ln_f(biases)).detach()) <= 1e-9


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3", "neox"])
def test_frozen_norms_make_logits_linear_in_the_last_edges(kind: str) -> None:
    """With norms that divide by fixed scales, a logits reader is affine in its own edges; all kept, it is the model."""
    model = bridged(kind)
    masks = tp.Masks(edges(model))
    masked = tp.Masked(model, masks, norm="frozen")
    ones = torch.ones(masked.graph.n_edges, dtype=torch.float64)
    assert error(masked(CLEAN, CORRUPT, mask=ones), plain(hf_model(kind), CLEAN)) <= EXACT[kind]
    last, half = ones.clone(), ones.clone()
    readers = masked.graph.readers[-1]
    last[readers.start :], half[readers.start :] = 0, 0.5
    high, low, middle = (masked(CLEAN, CORRUPT, mask=mask) for mask in (ones, last, half))
    assert error(middle, (high + low) / 2) <= EXACT[kind]
    free = tp.Masked(model, masks)(CLEAN, CORRUPT, mask=half)
    assert error(middle, free) > 1e-3


# ---- nodes, neurons, weights: what they do is an edit of the weights


@torch.no_grad()
def without_head(model: Any, layer: int, head: int) -> Any:
    kind, d_head = type(model).__name__, model.config.hidden_size // model.config.num_attention_heads
    part = slice(head * d_head, (head + 1) * d_head)
    if kind == "GPT2LMHeadModel":
        model.transformer.h[layer].attn.c_proj.weight[part] = 0
    elif kind != "GPTNeoXForCausalLM":
        model.model.layers[layer].self_attn.o_proj.weight[:, part] = 0
    else:
        model.gpt_neox.layers[layer].attention.dense.weight[:, part] = 0
    return model


@torch.no_grad()
def without_neuron(model: Any, layer: int, neuron: int) -> Any:
    kind = type(model).__name__
    if kind == "GPT2LMHeadModel":
        model.transformer.h[layer].mlp.c_proj.weight[neuron] = 0
    elif kind != "GPTNeoXForCausalLM":
        model.model.layers[layer].mlp.down_proj.weight[:, neuron] = 0
    else:
        model.gpt_neox.layers[layer].mlp.dense_4h_to_h.weight[:, neuron] = 0
    return model


THREE = ["gpt2", "llama", "neox"]


@pytest.mark.parametrize("kind", [*THREE, "gemma2"])
def test_a_zeroed_head_or_neuron_is_a_zeroed_part_of_a_matrix(kind: str) -> None:
    model = bridged(kind)
    for sites, name, edit in (
        (tp.heads(model), "a1.h2", without_head(hf_model(kind), 1, 2)),
        (tp.neurons(model), "m0.n7", without_neuron(hf_model(kind), 0, 7)),
    ):
        mask = torch.tensor([float(sites.name(index) != name) for index in range(len(sites))], dtype=torch.float64)
        assert mask.sum() == len(sites) - 1
        found = tp.Masked(model, tp.Masks(sites), tp.Zero())(CLEAN, mask=mask)
        assert error(found, plain(edit, CLEAN)) <= EXACT[kind]
        assert error(found, plain(hf_model(kind), CLEAN)) > 1e-3


@pytest.mark.parametrize("kind", [*THREE, "gemma"])
def test_masks_of_nodes_are_those_of_all_their_edges(kind: str) -> None:
    """A writer's mask and the same mask on each of its edges are one thing, with the same gradient, summed.

    Not so where a norm is behind attention: masks of heads act in front of it, those of edges behind.
    """
    model = bridged(kind)
    nodes = tp.nodes(model, "input|a*|m*")
    graph = Graph.of(model)
    mask = torch.linspace(0.2, 0.9, len(nodes), dtype=torch.float64).requires_grad_()
    names = [nodes.name(index) for index in range(len(nodes))]
    writers = [names.index(graph.name(index).partition("->")[0]) for index in range(graph.n_edges)]
    by_node = tp.Masked(model, tp.Masks(nodes))(CLEAN, CORRUPT, mask=mask)
    by_edge = masked_of(model)(CLEAN, CORRUPT, mask=mask[writers])
    assert error(by_node, by_edge) <= EXACT[kind]
    ours, theirs = (torch.autograd.grad(probe(logits), mask)[0] for logits in (by_node, by_edge))
    assert error(ours, theirs) <= EXACT[kind]


@torch.no_grad()
def scaled(model: Any, values: dict[str, Tensor]) -> Any:
    """A Hugging Face model whose weights of some names are multiplied."""
    for name, value in values.items():
        parameter = dict(model.named_parameters())[name]
        parameter.mul_(value)
    return model


WEIGHTS = {
    "gpt2": {
        "blocks.1.attn.W_Q": ("transformer.h.1.attn.c_attn.weight", lambda m: _beside(m.movedim(0, 1).flatten(1), 0)),
        "blocks.1.attn.W_O": ("transformer.h.1.attn.c_proj.weight", lambda m: m.flatten(0, 1)),
        "blocks.2.mlp.W_in": ("transformer.h.2.mlp.c_fc.weight", lambda m: m),
        "blocks.0.attn.b_V": ("transformer.h.0.attn.c_attn.bias", lambda m: _beside(m.flatten(), 2)),
        "blocks.0.ln2.w": ("transformer.h.0.ln_2.weight", lambda m: m),
    },
    "llama": {
        "embed.W_E": ("model.embed_tokens.weight", lambda m: m),
        "unembed.W_U": ("lm_head.weight", lambda m: m.T),
        "blocks.1.attn.W_K": ("model.layers.1.self_attn.k_proj.weight", lambda m: m.mT.flatten(0, 1)),
        "blocks.0.attn.W_O": ("model.layers.0.self_attn.o_proj.weight", lambda m: m.flatten(0, 1).T),
        "blocks.1.mlp.W_gate": ("model.layers.1.mlp.gate_proj.weight", lambda m: m.T),
    },
    "gemma3": {
        "embed.W_E": ("model.embed_tokens.weight", lambda m: m),
        "blocks.1.attn.W_O": ("model.layers.1.self_attn.o_proj.weight", lambda m: m.flatten(0, 1).T),
    },
}  # fmt: skip


def _beside(part: Tensor, place: int) -> Tensor:
    """A mask of q, k or v among ones for the other two, as GPT-2 keeps them in one tensor."""
    ones = torch.ones_like(part)
    return torch.cat([part if index == place else ones for index in range(3)], -1)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in WEIGHTS.items() for name in names])
def test_masked_weights_are_multiplied_weights(kind: str, name: str) -> None:
    model = bridged(kind)
    sites = tp.weights(model, name)
    shape = dict(masked_of(model).backend.parameters())[name].shape
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    where, back = WEIGHTS[kind][name]  # pyright: ignore[reportGeneralTypeIssues]
    found = tp.Masked(model, tp.Masks(sites), tp.Zero())(CLEAN, mask=mask.flatten())
    assert error(found, plain(scaled(hf_model(kind), {where: back(mask)}), CLEAN)) <= EXACT[kind]
    assert error(found, plain(hf_model(kind), CLEAN)) > 1e-4


GAINS = {
    "ln1": "input_layernorm",
    "ln1_post": "post_attention_layernorm",
    "ln2": "pre_feedforward_layernorm",
    "ln2_post": "post_feedforward_layernorm",
}


@pytest.mark.parametrize("name", GAINS)
@pytest.mark.parametrize("beside", ["", "edges"])
def test_a_masked_gain_is_a_multiplied_gain_where_the_one_is_left_out(name: str, beside: str) -> None:
    """Gemma 2 stores ``g - 1``, so a mask ``m`` leaves ``m g - 1`` there. With all edges kept nothing else changes."""
    model, whole = bridged("gemma2"), hf_model("gemma2")
    gain = tp.weights(model, f"blocks.1.{name}.w")
    sites = gain + edges(model) if beside else gain
    mask = torch.ones(len(sites), dtype=torch.float64)
    values = torch.rand(len(gain), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    mask[sites.part("weights")] = values
    found = tp.Masked(model, tp.Masks(sites), tp.Zero())(CLEAN, mask=mask)
    with torch.no_grad():
        weight = whole.get_submodule(f"model.layers.1.{GAINS[name]}").weight
        weight.copy_(values * (1 + weight) - 1)
    assert error(found, plain(whole, CLEAN)) <= EXACT["gemma2"]
    assert error(found, plain(hf_model("gemma2"), CLEAN)) > 1e-3


def test_a_tied_embedding_is_masked_where_it_is_named_and_not_where_it_unembeds() -> None:
    model, whole = bridged("gpt2"), hf_model("gpt2")
    ablated = torch.zeros(len(tp.weights(model, "embed.W_E")), dtype=torch.float64)
    found = tp.Masked(model, tp.Masks(tp.weights(model, "embed.W_E")), tp.Zero())(CLEAN, mask=ablated)
    expected = whole(inputs_embeds=torch.zeros(3, 6, 32, dtype=torch.float64)).logits
    assert error(found, expected.detach()) <= 1e-9
    unread = tp.Masked(model, tp.Masks(tp.weights(model, "unembed.W_U")), tp.Zero())(CLEAN, mask=ablated)
    assert error(unread, torch.zeros_like(unread)) <= 1e-12


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
@pytest.mark.parametrize("name", ["embed.W_E", "unembed.W_U"])
def test_a_tied_embedding_is_installed_where_it_is_named(kind: str, name: str) -> None:
    model = bridged(kind)
    sites = tp.weights(model, name)
    kept = torch.rand(len(sites), generator=torch.Generator().manual_seed(0)) < 0.5
    masked = tp.Masked(model, tp.Circuit(sites, kept), tp.Zero())
    expected = masked(CLEAN)
    with masked.installed() as quiet:
        assert error(quiet(CLEAN.ids), expected) <= EXACT[kind]
    assert error(expected, plain(hf_model(kind), CLEAN)) > 1e-3
    assert error(model(CLEAN.ids), plain(hf_model(kind), CLEAN)) <= EXACT[kind]
    assert model.embed.original_component.weight is model.unembed.original_component.weight


@pytest.mark.parametrize("kind", THREE)
def test_gradients_of_weight_masks_are_weight_times_gradient(kind: str) -> None:
    """``dL/dm = W dL/d(mW)``; at m = 1, with Hugging Face's own gradient on the right."""
    model, whole = bridged(kind), hf_model(kind)
    sites = tp.weights(model, "unembed.W_U|ln_final.w")
    ones = torch.ones(len(sites), dtype=torch.float64, requires_grad=True)
    probe(tp.Masked(model, tp.Masks(sites), tp.Zero())(CLEAN, mask=ones)).backward()
    head = whole.get_output_embeddings()
    final = {"gpt2": "transformer.ln_f", "llama": "model.norm", "neox": "gpt_neox.final_layer_norm"}[kind]
    norm = whole.get_submodule(final)
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # its own, where it is tied to the embedding
    probe(whole(CLEAN.ids).logits).backward()
    parts = [(norm.weight * norm.weight.grad), (head.weight * head.weight.grad).T.flatten()]
    assert error(ones.grad, torch.cat(parts).detach()) <= EXACT[kind]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_edges_beside_weights_read_masked_weights_and_keep_unmasked_twins(kind: str) -> None:
    """All edges and W_Q, W_K, W_V of a layer halved: the model with these halved, as long as edges are all kept."""
    model = bridged(kind)
    sites = edges(model) + tp.weights(model, "blocks.1.attn.W_[QKV]")
    mask = torch.ones(len(sites), dtype=torch.float64)
    mask[sites.part("weights")] = 0.5
    together = tp.Masked(model, tp.Masks(sites))(CLEAN, CORRUPT, mask=mask)
    alone = tp.Masked(model, tp.Masks(tp.weights(model, "blocks.1.attn.W_[QKV]")), tp.Zero())
    assert error(together, alone(CLEAN, mask=mask[sites.part("weights")])) <= EXACT[kind]
    assert error(together, plain(hf_model(kind), CLEAN)) > 1e-3


# ---- precision


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "gemma", "gemma2", "neox"])
def test_bfloat16_is_as_exact_as_the_model_itself(kind: str) -> None:
    low, high = bridged(kind, torch.bfloat16), hf_model(kind)
    high.load_state_dict(hf_model(kind, torch.bfloat16).state_dict())
    graph = Graph.of(low)
    mask = random_mask(graph, dtype=torch.float32)
    exact = mask.detach().double().requires_grad_()
    own = spread(masked_of(low).backend.logits(CLEAN, None), plain(high, CLEAN))
    found = masked_of(low)(CLEAN, CORRUPT, mask=mask)
    expected = plain_logits(high, graph, CLEAN.ids, CORRUPT.ids, exact)
    assert own > 1e-4
    assert spread(found, expected) <= 2 * own
    ours, theirs = (
        torch.autograd.grad(probe(logits.float()), one)[0].double()
        for logits, one in ((found, mask), (expected, exact))
    )
    assert float(torch.cosine_similarity(ours, theirs, dim=0)) >= 0.999


def spread(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).detach().square().mean().sqrt())


# ---- what stays while a context is open


def test_installed_masks_are_the_masked_model() -> None:
    model = bridged("llama")
    circuit = tp.connected_random(Graph.of(model), 40)
    masked = tp.Masked(model, circuit, tp.Zero())
    expected, prompts = masked(CLEAN), random_tokens(9).ids
    with masked.installed() as quiet:
        assert error(quiet(CLEAN.ids), expected) <= EXACT["llama"]
        quiet(prompts)
    assert error(model(CLEAN.ids), plain(hf_model("llama"), CLEAN)) <= EXACT["llama"]


def test_installed_weights_are_put_back() -> None:
    model = bridged("gpt2")
    sites = tp.weights(model, "blocks.*.attn.W_Q")
    none = tp.Circuit(sites, torch.zeros(len(sites), dtype=torch.bool))
    masked = tp.Masked(model, none, tp.Zero())
    expected = masked(CLEAN)
    with masked.installed() as quiet:
        assert error(quiet(CLEAN.ids), expected) <= 1e-9
    assert error(expected, plain(hf_model("gpt2"), CLEAN)) > 1e-3
    assert error(model(CLEAN.ids), plain(hf_model("gpt2"), CLEAN)) <= 1e-9


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("cache", [True, False])
def test_generation_under_installed_masks_is_one_masked_run_after_the_other(kind: str, cache: bool) -> None:
    """With a cache of keys and values, too: what is written there is masked already."""
    model = bridged(kind, torch.float32)
    masked = tp.Masked(model, tp.connected_random(Graph.of(model), 40), tp.Zero())
    expected = CLEAN.ids[:1]
    for _ in range(4):
        expected = torch.cat([expected, masked(expected)[:, -1:].argmax(-1)], 1)
    options = {"max_new_tokens": 4, "do_sample": False, "return_type": "tokens", "verbose": False}
    with masked.installed() as quiet:
        found = quiet.generate(CLEAN.ids[:1], use_past_kv_cache=cache, stop_at_eos=False, **options)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["gpt2", "mistral", "neox"])
def test_other_attention_implementations_change_nothing(kind: str) -> None:
    """A bridge computes attention itself; of Hugging Face's it takes the mask, in whatever form that comes."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    whole = hf_model(kind, torch.float32)
    whole.set_attn_implementation("sdpa")
    other = build_bridge_from_module(whole, type(whole).__name__, hf_config=whole.config).eval()
    attention = torch.ones(3, 6, dtype=torch.long)
    attention[1, :2] = 0
    clean, corrupt = Tokens(CLEAN.ids, attention), Tokens(CORRUPT.ids, attention)
    mask = random_mask(Graph.of(other), dtype=torch.float32).detach()
    found, expected = (masked_of(one)(clean, corrupt, mask=mask) for one in (other, bridged(kind, torch.float32)))
    assert error(found[attention.bool()], expected[attention.bool()]) <= 1e-5
