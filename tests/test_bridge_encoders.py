"""Masks on bridged encoders, against Hugging Face's modules written out by hand, on TransformerLens 3 and 4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from encoders import MODELS, VOCABULARY, call_hf, hf_model_of, prompts
from hooked import NEEDS_HOOKED_TRANSFORMER
from plain_encoder import PlainEncoder, plain_logits, written
from styles import error, probe
from test_bridge_lent import mixed_settings, state
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.graph import Architecture, Convention, Graph
from tlprune.models.transformer_lens import has_hooked_transformer
from tlprune.task import Stream, Tokenisation, Tokens

FEW = ("bert classes", "bert words", "roberta classes", "roberta words")
CONVENTIONS = [Convention(), Convention("kept"), Convention(qkv="joined"), Convention("kept", qkv="joined")]
SIDES = (None, "right", "left")
each_model = pytest.mark.parametrize("name", MODELS)
of_few = pytest.mark.parametrize("name", FEW)
each_side = pytest.mark.parametrize("side", SIDES)


def bridged(name: str, **changes: Any) -> Any:
    return tp.bridge(hf_model_of(name, **changes))


def tokens_of(name: str, side: str | None = "right") -> tuple[Tokens, Tokens]:
    return prompts(name, 1, padding=side), prompts(name, 2, padding=side)


def values_for(sites: Any, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.1 + 0.8 * torch.rand(len(sites), generator=generator, dtype=torch.float64)).requires_grad_()


def whole(name: str, tokens: Tokens, model: Any = None) -> Tensor:
    """Hugging Face's own output, one row per prompt but for words."""
    model = hf_model_of(name) if model is None else model
    if "choices" in name:  # three prompts are one question with three choices
        types, mask = (None if part is None else part[None] for part in (tokens.token_types, tokens.attention_mask))
        return model(tokens.ids[None], attention_mask=mask, token_type_ids=types).logits.view(-1, 1, 1).detach()
    found = call_hf(model, tokens)
    if "logits" in found:
        return (found.logits if "words" in name else found.logits[:, None]).detach()
    return found.pooler_output[:, None].detach()


# ---- the model itself


@each_side
@each_model
def test_logits_are_those_of_hugging_face(name: str, side: str | None) -> None:
    clean, _ = tokens_of(name, side)
    backend, positions = backend_of(bridged(name)), torch.tensor([[0, 5], [2, 3], [1, 1]])
    words = "words" in name
    assert backend.predicts == ("tokens" if words else "prompts")
    expected = whole(name, clean)
    assert error(backend.logits(clean, None), expected) <= 1e-9
    expected = expected[torch.arange(3)[:, None], positions] if words else expected
    assert error(backend.logits(clean, positions), expected) <= 1e-9


@each_side
def test_a_model_without_a_pooler_says_the_mean_state_of_real_tokens(side: str | None) -> None:
    config = hf_model_of("bert").config
    model, clean = transformers.BertModel(config, add_pooling_layer=False).double().eval(), tokens_of("bert", side)[0]
    states = call_hf(model, clean).last_hidden_state.detach()
    mask = torch.ones(clean.ids.shape) if clean.attention_mask is None else clean.attention_mask
    expected = torch.stack([row[real.bool()].mean(0) for row, real in zip(states, mask, strict=True)])
    assert error(backend_of(tp.bridge(model)).logits(clean, None), expected[:, None]) <= 1e-9


@each_model
def test_the_graph_is_that_of_a_post_norm_model(name: str) -> None:
    model = bridged(name)
    assert backend_of(model).architecture == Architecture(3, 4, 4, post_norm=True) == Graph.of(model).architecture
    assert model.cfg.architecture == MODELS[name][0] == backend_of(model).fingerprint()["name"]
    assert model.cfg.n_ctx == 16 - 2 * name.startswith("roberta")
    words = "words" in name
    assert model.cfg.d_vocab_out == (VOCABULARY if words else MODELS[name][1].get("num_labels", 1))


# ---- edges


@each_side
@each_model
def test_all_ones_is_the_model_and_all_zeros_the_counterfactual(name: str, side: str | None) -> None:
    model, (clean, corrupt) = bridged(name), tokens_of(name, side)
    masked = tp.Masked(model, tp.Masks(tp.edges(model)))
    ones = torch.ones(len(masked.sites), dtype=torch.float64)
    words = clean.attention_mask is not None and "words" in name
    real = clean.attention_mask.bool() if words else ...  # pyright: ignore[reportOptionalMemberAccess]
    assert error(masked(clean, corrupt, mask=ones)[real], whole(name, clean)[real]) <= 1e-9
    assert error(masked(clean, corrupt, mask=0 * ones)[real], whole(name, corrupt)[real]) <= 1e-9


def replacing(name: str, kind: str, corrupt: Tokens) -> tuple[Any, dict[str, Tensor]]:
    """An ablation, and what its writers send, computed by hand."""
    seen = {writer: value.detach() for writer, value in written(hf_model_of(name), corrupt).items()}
    if kind == "resample":
        return tp.Resample(), seen
    if kind == "zero":
        return tp.Zero(), {writer: torch.zeros_like(value) for writer, value in seen.items()}
    assert corrupt.attention_mask is not None
    real = corrupt.attention_mask.bool()
    return tp.Mean(corrupt), {writer: value[real].mean(0).expand_as(value) for writer, value in seen.items()}


def check_edges(name: str, convention: Convention, kind: str, side: str | None = "right") -> None:
    model, (clean, corrupt) = bridged(name), tokens_of(name, side)
    sites = tp.edges(model, embeddings=convention.embeddings, kv=convention.kv, qkv=convention.qkv)
    ablation, replaced = replacing(name, kind, corrupt)
    mask = values_for(sites)
    found = tp.Masked(model, tp.Masks(sites), ablation)(clean, corrupt if kind == "resample" else None, mask=mask)
    expected = plain_logits(hf_model_of(name).requires_grad_(False), sites.graph, clean, replaced, mask)
    ours, theirs = (torch.autograd.grad(probe(logits), mask)[0] for logits in (found, expected))
    assert error(found, expected) <= 1e-9
    assert float((ours - theirs).abs().max() / theirs.abs().max()) <= 1e-9


@pytest.mark.parametrize("kind", ["resample", "zero", "mean"])
@pytest.mark.parametrize("convention", CONVENTIONS, ids=str)
@of_few
def test_edge_masks_are_the_definition_in_value_and_gradient(name: str, convention: Convention, kind: str) -> None:
    check_edges(name, convention, kind)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in FEW])
def test_edge_masks_of_other_heads_are_too(name: str) -> None:
    check_edges(name, Convention(), "resample")


@pytest.mark.parametrize("side", [None, "left"])
@of_few
def test_edge_masks_are_the_definition_wherever_padding_is(name: str, side: str | None) -> None:
    check_edges(name, Convention(), "resample", side)


def test_all_kept_by_hand_is_hugging_face() -> None:
    """The definition itself: its plain run is the model."""
    for name in FEW:
        clean, model = tokens_of(name)[0], hf_model_of(name)
        values, plain = written(model, clean), PlainEncoder(model)
        stream = values["input"]
        for layer in range(3):
            stream = plain.after_attention(layer, sum((values[f"a{layer}.h{head}"] for head in range(4)), stream))
            stream = plain.after_mlp(layer, stream + values[f"m{layer}"])
        assert error(plain.head(stream, clean.attention_mask), whole(name, clean)) <= 1e-9


# ---- nodes, neurons, weights: what they do is an edit of edges or of Hugging Face's weights


@pytest.mark.parametrize("kind", ["resample", "mean"])
@of_few
def test_masks_of_nodes_are_those_of_all_their_edges(name: str, kind: str) -> None:
    model, (clean, corrupt) = bridged(name), tokens_of(name)
    nodes, graph = tp.nodes(model), Graph.of(model)
    ablation, _ = replacing(name, kind, corrupt)
    mask, twin = values_for(nodes), corrupt if kind == "resample" else None
    names = [nodes.name(index) for index in range(len(nodes))]
    writers = [names.index(graph.name(index).partition("->")[0]) for index in range(graph.n_edges)]
    by_node = tp.Masked(model, tp.Masks(nodes), ablation)(clean, twin, mask=mask)
    by_edge = tp.Masked(model, tp.Masks(tp.edges(model)), ablation)(clean, twin, mask=mask[writers])
    ours, theirs = (torch.autograd.grad(probe(logits), mask)[0] for logits in (by_node, by_edge))
    assert error(by_node, by_edge) <= 1e-9
    assert error(ours, theirs) <= 1e-9


def layer_of(model: Any, layer: int) -> Any:
    return PlainEncoder(model).blocks[layer]


@torch.no_grad()
def without(model: Any, site: str) -> Any:
    """A Hugging Face model in which a head, a neuron or an MLP writes nothing, by its weights."""
    if site == "a1.h2":
        layer_of(model, 1).attention.output.dense.weight[:, 12:18] = 0
    elif site == "m0.n7":
        layer_of(model, 0).output.dense.weight[:, 7] = 0
    else:
        layer_of(model, 2).output.dense.weight.zero_()
        layer_of(model, 2).output.dense.bias.zero_()
    return model


@pytest.mark.parametrize("site", ["a1.h2", "m0.n7", "m2"])
@of_few
def test_a_zeroed_head_neuron_or_mlp_is_a_zeroed_part_of_a_matrix(name: str, site: str) -> None:
    model, (clean, _) = bridged(name), tokens_of(name)
    sites = (tp.heads if "h" in site else tp.neurons if "n" in site else tp.mlps)(model)
    mask = torch.tensor([float(sites.name(index) != site) for index in range(len(sites))], dtype=torch.float64)
    assert mask.sum() == len(sites) - 1
    found = tp.Masked(model, tp.Masks(sites), tp.Zero())(clean, mask=mask)
    assert error(found, whole(name, clean, without(hf_model_of(name), site))) <= 1e-9
    assert error(found, whole(name, clean)) > 1e-4


# Where a weight is in Hugging Face's model, and how its mask lies there.
WEIGHTS = {
    "bert words": {
        "embed.embed.W_E": ("bert.embeddings.word_embeddings.weight", lambda m: m),
        "embed.token_type_embed.W_token_type": ("bert.embeddings.token_type_embeddings.weight", lambda m: m),
        "embed.ln.b": ("bert.embeddings.LayerNorm.bias", lambda m: m),
        "blocks.1.attn.W_K": ("bert.encoder.layer.1.attention.self.key.weight", lambda m: m.mT.flatten(0, 1)),
        "blocks.0.attn.W_O": ("bert.encoder.layer.0.attention.output.dense.weight", lambda m: m.flatten(0, 1).T),
        "blocks.2.mlp.W_in": ("bert.encoder.layer.2.intermediate.dense.weight", lambda m: m.T),
        "blocks.1.ln2.w": ("bert.encoder.layer.1.output.LayerNorm.weight", lambda m: m),
        "mlm_head.W": ("cls.predictions.transform.dense.weight", lambda m: m.T),
        "mlm_head.ln.w": ("cls.predictions.transform.LayerNorm.weight", lambda m: m),
        "unembed.b_U": ("cls.predictions.decoder.bias", lambda m: m),
    },
    "bert classes": {
        "pooler.W": ("bert.pooler.dense.weight", lambda m: m.T),
        "classifier.W": ("classifier.weight", lambda m: m.T),
    },
    "roberta classes": {
        "embed.pos_embed.W_pos": ("roberta.embeddings.position_embeddings.weight", lambda m: m),
        "embed.token_type_embed.W_token_type": ("roberta.embeddings.token_type_embeddings.weight", lambda m: m[:1]),
        "pooler.b": ("classifier.dense.bias", lambda m: m),
        "classifier.W": ("classifier.out_proj.weight", lambda m: m.T),
    },
    "bert": {"pooler.W": ("pooler.dense.weight", lambda m: m.T)},
}  # fmt: skip


@pytest.mark.parametrize(("name", "weight"), [(name, weight) for name, some in WEIGHTS.items() for weight in some])
def test_masked_weights_are_multiplied_weights(name: str, weight: str) -> None:
    untied: dict[str, Any] = {"tie_word_embeddings": False} if "words" in name else {}
    model, (clean, _), scaled = bridged(name, **untied), tokens_of(name), hf_model_of(name, **untied)
    shape = backend_of(model).parameters()[weight].shape
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    place, back = WEIGHTS[name][weight]
    with torch.no_grad():
        dict(scaled.named_parameters())[place].mul_(back(mask))
    found = tp.Masked(model, tp.Masks(tp.weights(model, weight)), tp.Zero())(clean, mask=mask.flatten())
    assert error(found, whole(name, clean, scaled)) <= 1e-9
    assert error(found, whole(name, clean, hf_model_of(name, **untied))) > 1e-5


def test_a_tied_embedding_is_masked_where_it_is_named_and_not_where_it_unembeds() -> None:
    model, (clean, _) = bridged("bert words"), tokens_of("bert words")
    none = torch.zeros(len(tp.weights(model, "unembed.W_U")), dtype=torch.float64)
    found = tp.Masked(model, tp.Masks(tp.weights(model, "unembed.W_U")), tp.Zero())(clean, mask=none)
    bias = hf_model_of("bert words").cls.predictions.decoder.bias.detach()
    assert error(found, bias.expand_as(found)) <= 1e-12
    found = tp.Masked(model, tp.Masks(tp.weights(model, "embed.embed.W_E")), tp.Zero())(clean, mask=none)
    nothing, options = torch.zeros(*clean.ids.shape, 24, dtype=torch.float64), {"token_type_ids": clean.token_types}
    expected = hf_model_of("bert words")(inputs_embeds=nothing, attention_mask=clean.attention_mask, **options).logits
    assert error(found, expected.detach()) <= 1e-9


# ---- frozen norms


@pytest.mark.parametrize("name", ["bert words", "roberta classes"])
def test_frozen_norms_make_logits_linear_in_the_last_edges(name: str) -> None:
    """A stream behind norms that divide by fixed scales is affine in its own edges, and so are linear heads on it."""
    model, (clean, corrupt) = bridged(name), tokens_of(name)
    masked = tp.Masked(model, tp.Masks(tp.edges(model)), norm="frozen")
    ones = torch.ones(masked.graph.n_edges, dtype=torch.float64)
    assert error(masked(clean, corrupt, mask=ones), whole(name, clean)) <= 1e-9
    readers = masked.graph.readers[-1]
    last, half = ones.clone(), ones.clone()
    last[readers.start :], half[readers.start :] = 0, 0.5
    seen = [masked.run_with_cache(clean, corrupt, mask=mask)[1]["logits"] for mask in (ones, last, half)]
    assert error(seen[2], (seen[0] + seen[1]) / 2) <= 1e-9
    free = tp.Masked(model, tp.Masks(tp.edges(model))).run_with_cache(clean, corrupt, mask=half)[1]["logits"]
    assert error(seen[2], free) > 1e-3


def test_a_frozen_norm_of_the_head_divides_by_its_clean_scale() -> None:
    name, (clean, corrupt) = "bert words", tokens_of("bert words")
    model, hf, positions = bridged(name), hf_model_of(name), torch.tensor([[0, 5], [2, 3], [1, 1]])
    masked = tp.Masked(model, tp.Masks(tp.edges(model)), norm="frozen")
    last = masked.graph.readers[-1]
    mask = torch.ones(len(masked.sites), dtype=torch.float64)
    mask[last.start :] = 0.4
    found, seen = masked.run_with_cache(clean, corrupt, mask=mask)
    head = hf.cls.predictions

    def inner(states: Tensor) -> Tensor:
        value = head.transform.transform_act_fn(head.transform.dense(states))
        return value - value.mean(-1, keepdim=True)

    states = hf.bert(clean.ids, attention_mask=clean.attention_mask, token_type_ids=clean.token_types)[0]
    scale = (inner(states).square().mean(-1, keepdim=True) + hf.config.layer_norm_eps).sqrt()
    norm = head.transform.LayerNorm
    expected = head.decoder(inner(seen["logits"]) / scale * norm.weight + norm.bias)
    assert error(found, expected.detach()) <= 1e-9
    chosen = masked(clean, corrupt, mask=mask, positions=positions)
    assert error(chosen, found[torch.arange(3)[:, None], positions]) <= 1e-12


# ---- lent


@pytest.mark.parametrize("name", ["bert classes", "roberta words", "bert choices"])
def test_nothing_changes_in_a_call_or_its_backward(name: str) -> None:
    model, (clean, corrupt) = bridged(name), tokens_of(name)
    mixed_settings(model)
    if "choices" not in name:
        model(clean.ids)  # a bridge sets up some hooks of its own in its first run
    before = state(model)
    masked = tp.Masked(model, tp.Masks(tp.edges(model)))
    logits = masked(clean, corrupt, mask=values_for(masked.sites))
    if "choices" not in name:
        assert state(model) == before
    probe(logits).backward()
    sites = tp.heads(model) + tp.neurons(model) + tp.weights(model, "blocks.*.W_*|embed.*")
    probe(tp.Masked(model, tp.Masks(sites), norm="frozen")(clean, corrupt)).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    if "choices" not in name:
        assert state(model) == before


@pytest.mark.parametrize("point", ["embed.hook_out", "blocks.0.attn.hook_pattern", "blocks.1.mlp.out.hook_in"])
def test_nothing_changes_when_a_call_fails(point: str) -> None:
    model, (clean, corrupt) = bridged("bert words"), tokens_of("bert words")
    masked = tp.Masked(model, tp.Masks(tp.edges(model) + tp.weights(model, "blocks.*.W_*")))
    masked(clean, corrupt)
    model.hook_dict[point].add_hook(lambda value, hook: 1 // 0)
    before = state(model)
    with pytest.raises(ZeroDivisionError):
        masked(clean, corrupt)
    assert state(model) == before


def test_a_user_sees_masked_activations() -> None:
    """Readers' inputs as mixed, writers' outputs as written: with every edge kept, those of the model."""
    model, (clean, corrupt) = bridged("bert classes"), tokens_of("bert classes", None)
    _, expected = model.run_with_cache(clean.ids, token_type_ids=clean.token_types)
    masked, seen = tp.Masked(model, tp.Masks(tp.edges(model))), {}
    masked(clean, corrupt)
    points = ["attn.q.hook_out", "attn.o.hook_in", "attn.hook_pattern", "mlp.in.hook_in", "mlp.out.hook_out"]
    for point in points:
        model.hook_dict[f"blocks.1.{point}"].add_hook(lambda value, hook: seen.__setitem__(hook.name, value.clone()))
    masked(clean, corrupt, mask=torch.ones(masked.graph.n_edges))
    assert len(seen) == len(points)
    for name, value in seen.items():
        assert error(value, expected[name]) <= 1e-9, name


@pytest.mark.parametrize(
    "point",
    [
        *("hook_in", "hook_out", "ln1.hook_in", "ln2.hook_out", "attn.hook_in", "attn.hook_out", "mlp.hook_in"),
        *("attn.o.hook_out", "attn.q.hook_in"),
    ],
)
def test_a_hook_where_no_activation_is_left_is_refused(point: str) -> None:
    model, (clean, corrupt) = bridged("bert classes"), tokens_of("bert classes")
    model.hook_dict[f"blocks.1.{point}"].add_hook(lambda value, hook: None)
    with pytest.raises(ValueError, match=r"holds no activation.*mlp\.in\.hook_in"):
        tp.Masked(model, tp.Masks(tp.edges(model)))(clean, corrupt)


@pytest.mark.parametrize("name", ["bert words", "roberta classes"])
def test_installed_masks_are_the_masked_model(name: str) -> None:
    model, (clean, _) = bridged(name), tokens_of(name)
    options = {"attention_mask": clean.attention_mask, "token_type_ids": clean.token_types}
    before = model(clean.ids, **options)
    for sites in (tp.edges(model), tp.heads(model) + tp.neurons(model), tp.weights(model, "blocks.*.attn.W_Q")):
        kept = torch.rand(len(sites), generator=torch.Generator().manual_seed(0)) < 0.6
        masked = tp.Masked(model, tp.Circuit(sites, kept), tp.Zero())
        with masked.installed() as quiet:
            inside = quiet(clean.ids, **options)
        expected = masked(clean)
        assert error(inside.view_as(expected), expected) <= 1e-9
        assert torch.equal(model(clean.ids, **options), before)


# ---- refusals


def trunk_of(name: str, **settings: Any) -> Any:
    """A bridge as TransformerLens builds it, of a class that tp.bridge would not take."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = getattr(transformers, name)(transformers.BertConfig(**hf_model_of("bert").config.to_dict() | settings))
    return build_bridge_from_module(model.eval(), "BertForMaskedLM", hf_config=model.config)


@pytest.mark.parametrize("name", ["bert words", "roberta words"])
def test_a_bridge_as_transformerlens_builds_it_is_taken_too(name: str) -> None:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    if name == "roberta words" and has_hooked_transformer():
        pytest.skip("TransformerLens 3 has no bridge of RoBERTa")
    hf = hf_model_of(name)
    model, (clean, corrupt) = build_bridge_from_module(hf, MODELS[name][0], hf_config=hf.config), tokens_of(name)
    masked, ours = (tp.Masked(one, tp.Masks(tp.edges(one))) for one in (model.eval(), bridged(name)))
    mask = values_for(masked.sites).detach()
    assert Graph.of(model) == masked.graph == ours.graph
    assert error(masked(clean, corrupt, mask=mask), ours(clean, corrupt, mask=mask)) <= 1e-12
    assert backend_of(model).parameters().keys() == backend_of(bridged(name)).parameters().keys()


def test_other_heads_and_blocks_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"BertForNextSentencePrediction has another.*BertForMultipleChoice"):
        backend_of(trunk_of("BertForNextSentencePrediction"))
    with pytest.raises(ValueError, match="this BertForMaskedLM has an MLP computed in chunks"):
        backend_of(trunk_of("BertForMaskedLM", chunk_size_feed_forward=2))
    with pytest.raises(ValueError, match="a decoder's attention"):
        backend_of(trunk_of("BertForMaskedLM", is_decoder=True))
    with pytest.raises(ValueError, match="relative positions"):
        backend_of(trunk_of("BertForMaskedLM", position_embedding_type="relative_key"))
    with pytest.raises(ValueError, match="a decoder's attention"):
        tp.bridge(hf_model_of("bert words", is_decoder=True))


def test_modes_that_change_numbers_are_refused() -> None:
    model = bridged("bert classes", hidden_dropout_prob=0.1).train()
    with pytest.raises(ValueError, match=r"training mode.*Call model\.eval\(\)"):
        backend_of(model)
    with pytest.raises(ValueError, match="this encoder normalises it"):
        tp.edges(model.eval(), embeddings="separate")


# ---- precision and methods


def test_bfloat16_is_as_exact_as_the_model_itself() -> None:
    name, (clean, corrupt) = "bert classes", tokens_of("bert classes")
    low, high = hf_model_of(name, torch.bfloat16), hf_model_of(name).requires_grad_(False)
    high.load_state_dict(low.state_dict())
    model = tp.bridge(low)
    sites = tp.edges(model)
    mask = values_for(sites).detach().float().requires_grad_()
    exact = mask.detach().double().requires_grad_()
    expected = plain_logits(high, sites.graph, clean, written(high, corrupt), exact)
    own = float((backend_of(model).logits(clean, None).double() - whole(name, clean, high)).square().mean().sqrt())
    found = tp.Masked(model, tp.Masks(sites))(clean, corrupt, mask=mask)
    assert own > 1e-4
    assert float((found - expected).detach().square().mean().sqrt()) <= 2 * own
    ours, theirs = (
        torch.autograd.grad(probe(logits.float()), one)[0].double()
        for logits, one in ((found, mask), (expected, exact))
    )
    assert float(torch.cosine_similarity(ours, theirs, dim=0)) >= 0.999


@torch.no_grad()
def one_head_classifier() -> Any:
    """A bridge of one layer in which head 1 alone carries anything: other heads and the MLP write nothing."""
    model = hf_model_of("bert classes", torch.float32, num_hidden_layers=1)
    block = layer_of(model, 0)
    block.attention.output.dense.weight[:, [*range(6), *range(12, 24)]] = 0
    block.attention.output.dense.weight *= 5
    block.output.dense.weight.zero_()
    model.classifier.weight *= 5
    return tp.bridge(model)


def classes_of(model: Any, seed: int) -> tp.Batch:
    """Prompts that agree with their twins at the first position, which the head reads; labelled by the model."""
    clean, corrupt = prompts("bert classes", seed, examples=32), prompts("bert classes", seed + 9, examples=32)
    clean.ids[:, 0] = corrupt.ids[:, 0] = 2
    answers = backend_of(model).logits(clean, None)[:, 0].argmax(-1, keepdim=True)
    positions = torch.zeros(32, 1, dtype=torch.long)
    return tp.Batch(torch.arange(32), clean, corrupt, positions, answers, (answers + 1) % 3)


def test_edge_pruning_finds_the_head_that_carries_the_class(tmp_path: Path) -> None:
    model = one_head_classifier()
    stream = Stream(*(classes_of(model, seed) for seed in range(3)))
    task = tp.Task("classes", {"main": stream}, Tokenisation(prepend_bos=False))
    circuit = tp.EdgePruning(edges=4, steps=60).find(model, task)
    assert {"input->a0.h1<v>", "a0.h1->logits"} <= set(circuit.edges)
    table = tp.evaluate(model, circuit, task)
    assert table["circuit"].means()["kl"] < 0.2 * table["empty"].means()["kl"]
    assert table["full model"].means()["accuracy"] == 1
    circuit.save(tmp_path / "circuit.json")
    assert tp.Circuit.load(tmp_path / "circuit.json").edges == circuit.edges


# ---- loading


@pytest.mark.parametrize("name", ["bert classes", "roberta words", "bert choices", "bert"])
def test_a_directory_gives_a_model_with_the_same_numbers(name: str, tmp_path: Path) -> None:
    """``tp.load`` gives one or the other kind, by TransformerLens; ``tp.bridge`` a bridge on every one."""
    hf_model_of(name).save_pretrained(tmp_path)
    clean, _ = tokens_of(name)
    loaded, bridge = (make(tmp_path, dtype=torch.float64, device="cpu") for make in (tp.load, tp.bridge))
    assert type(bridge).__name__ == "TransformerBridge"
    for model in (loaded, bridge):
        assert error(backend_of(model).logits(clean, None), whole(name, clean)) <= 1e-9
    assert backend_of(loaded).fingerprint() == backend_of(bridge).fingerprint()
    assert tp.edges(loaded) == tp.edges(bridge)


@NEEDS_HOOKED_TRANSFORMER
def test_a_circuit_of_one_kind_is_a_circuit_of_the_other(tmp_path: Path) -> None:
    hooked, bridge = tp.from_huggingface(hf_model_of("bert classes"), device="cpu"), bridged("bert classes")
    clean, corrupt = tokens_of("bert classes")
    kept = torch.rand(len(tp.edges(hooked)), generator=torch.Generator().manual_seed(0)) < 0.5
    tp.Circuit(tp.edges(hooked), kept).save(tmp_path / "circuit.json")
    circuit = tp.Circuit.load(tmp_path / "circuit.json")
    found = [tp.Masked(model, circuit)(clean, corrupt) for model in (hooked, bridge)]
    assert error(found[1], found[0]) <= 1e-9
