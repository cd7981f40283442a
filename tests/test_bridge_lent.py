"""A bridge is lent for the length of one call, and what cannot be masked is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from bridges import EXACT, SIZES, bridged, hf_model
from styles import CLEAN, CORRUPT, error, probe, random_mask
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.graph import Graph

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def state(model: Any) -> dict[str, Any]:
    """All of a model that a call could leave changed, but for the values."""
    named = [*model.original_model.named_parameters(remove_duplicate=False), *model.original_model.named_buffers()]
    return {
        "parameters": [(name, id(value), value._version, value.requires_grad, value.grad) for name, value in named],
        "training": [module.training for module in model.modules()],
        "hooks": [(name, kind, dict(getattr(part, kind))) for name, part in model.named_modules() for kind in HOOKS],
        "points": [(name, list(point.fwd_hooks), list(point.bwd_hooks)) for name, point in model.hook_dict.items()],
        "config": {name: copy.copy(value) for name, value in vars(model.cfg).items()},
        "groups": [getattr(part, "num_key_value_groups", None) for part in model.modules()],
    }


def masked_of(model: Any, **options: Any) -> tp.Masked:
    return tp.Masked(model, tp.Masks(tp.edges(model, **options)))


def mixed_settings(model: Any) -> None:
    """Some parameters trainable, a hook of the user: nothing is as a fresh model has it."""
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 > 0)
    model.hook_dict["blocks.1.attn.o.hook_in"].add_hook(lambda value, hook: None)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "neox"])
def test_nothing_changes_in_a_call_or_its_backward(kind: str) -> None:
    model = bridged(kind)
    mixed_settings(model)
    model(CLEAN.ids)  # a bridge sets up some hooks of its own in its first run
    before = state(model)
    for options in ({}, {"kv": "per_query_head"}):
        masked = masked_of(model, **options)
        logits = masked(CLEAN, CORRUPT, mask=random_mask(masked.graph))
        assert state(model) == before
        probe(logits).backward()
    sites = tp.heads(model) + tp.neurons(model) + tp.weights(model, "blocks.*.W_*|embed.*|unembed.*")
    probe(tp.Masked(model, tp.Masks(sites), norm="frozen")(CLEAN, CORRUPT)).backward()
    assert state(model) == before


@pytest.mark.parametrize("point", ["embed.hook_out", "blocks.0.attn.hook_pattern", "blocks.1.mlp.out.hook_in"])
@pytest.mark.parametrize("beside", ["", "weights"])
def test_nothing_changes_when_a_call_fails(point: str, beside: str) -> None:
    model = bridged("llama")
    mixed_settings(model)
    model(CLEAN.ids)
    sites = tp.edges(model, kv="per_query_head")
    sites = sites + tp.weights(model, "blocks.*.W_*") if beside else sites
    masked = tp.Masked(model, tp.Masks(sites))
    masked(CLEAN, CORRUPT)
    model.hook_dict[point].add_hook(lambda value, hook: 1 // 0)
    before = state(model)
    with pytest.raises(ZeroDivisionError):
        masked(CLEAN, CORRUPT)
    assert state(model) == before


@torch.no_grad()
def zero_query(model: Any) -> None:
    model.model.layers[1].self_attn.q_proj.weight[16:24] = 0


@torch.no_grad()
def zero_mlp(model: Any) -> None:
    model.model.layers[1].mlp.down_proj.weight.zero_()


EDITS = {
    "blocks.1.attn.hook_q": (lambda q: q.index_fill(2, torch.tensor(2), 0.0), zero_query),
    "blocks.1.hook_mlp_out": (torch.zeros_like, zero_mlp),
}


@pytest.mark.parametrize("point", EDITS)
def test_a_hook_of_a_user_does_what_an_edit_of_the_weights_does(point: str) -> None:
    """By the names of TransformerLens; on readers after ours, on writers before."""
    change, edit = EDITS[point]
    model, other = bridged("llama"), hf_model("llama")
    edit(other)
    masked, expected = masked_of(model), masked_of(tp.bridge(other))
    mask = random_mask(masked.graph).detach()
    replaced = tp.Resample().replaced(masked_of(bridged("llama")).backend, CLEAN, CORRUPT)
    without = masked(CLEAN, mask=mask, replaced=replaced)
    expected(CLEAN, CORRUPT)
    model.hook_dict[point].add_hook(lambda value, hook: change(value))
    found = masked(CLEAN, mask=mask, replaced=replaced)
    assert error(found, expected(CLEAN, mask=mask, replaced=replaced)) <= EXACT["llama"]
    assert error(found, without) > 1e-3


def test_a_user_sees_masked_activations() -> None:
    """Readers' inputs as mixed, writers' outputs as written: with every edge kept, those of the model."""
    model = bridged("qwen3")
    _, expected = model.run_with_cache(CLEAN.ids)
    masked, seen = masked_of(model), {}
    masked(CLEAN, CORRUPT)
    points = [
        "attn.q.hook_out",
        "attn.k.hook_out",
        "attn.o.hook_in",
        "attn.hook_pattern",
        "ln2.hook_in",
        "mlp.hook_out",
    ]
    for point in points:
        model.hook_dict[f"blocks.1.{point}"].add_hook(lambda value, hook: seen.__setitem__(hook.name, value.clone()))
    masked(CLEAN, CORRUPT, mask=torch.ones(masked.graph.n_edges))
    assert len(seen) == len(points)
    for name, value in seen.items():
        assert error(value, expected[name]) <= EXACT["qwen3"], name


@pytest.mark.parametrize(
    "point",
    [
        "hook_resid_pre",
        "hook_resid_post",
        "ln1.hook_scale",
        "ln1_post.hook_out",
        "attn.hook_in",
        "attn.q.hook_in",
        "attn.o.hook_out",
    ],
)
def test_a_hook_where_no_activation_is_left_is_refused(point: str) -> None:
    model = bridged("gemma2" if point.startswith("ln1_post") else "gpt2")
    masked = masked_of(model)
    masked(CLEAN, CORRUPT)
    model.hook_dict[f"blocks.1.{point}"].add_hook(lambda value, hook: None)
    with pytest.raises(ValueError, match=r"holds no activation.*Hook a reader or writer instead"):
        masked(CLEAN, CORRUPT)
    model.reset_hooks()
    masked(CLEAN, CORRUPT)


@pytest.mark.parametrize("flag", ["use_split_qkv_input", "use_attn_result"])
def test_attention_split_by_head_is_refused(flag: str) -> None:
    model = bridged("gpt2")
    getattr(model, f"set_{flag}")(True)
    with pytest.raises(ValueError, match=rf"{flag} is on. Call model.set_{flag}\(False\)"):
        masked_of(model)(CLEAN, CORRUPT)
    getattr(model, f"set_{flag}")(False)
    masked_of(model)(CLEAN, CORRUPT)


# ---- refusals


def tiny(name: str, **settings: Any) -> Any:
    kind = name.partition("For")[0]
    config = getattr(transformers, f"{kind}Config")(**SIZES | {"pad_token_id": 0} | settings)
    return getattr(transformers, name)(config)


REFUSED = {
    "Glm4ForCausalLM": ("norms after attention and MLP", {"num_key_value_heads": 2, "head_dim": 8}),
    "NemotronForCausalLM": ("LayerNorm weights stored as an offset from one", {"num_key_value_heads": 2}),
    "Olmo2ForCausalLM": ("norms (only )?after attention and MLP", {"num_key_value_heads": 2}),
    "BloomForCausalLM": ("a norm behind its embeddings", {}),
    "MixtralForCausalLM": ("a mixture of experts", {"num_key_value_heads": 2, "num_local_experts": 2}),
    "GraniteForCausalLM": ("scaled residuals", {"num_key_value_heads": 2, "residual_multiplier": 0.5}),
    "PhiForCausalLM": ("a norm before each", {}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_whose_masks_would_be_wrong_is_refused_by_name(name: str) -> None:
    reason, settings = REFUSED[name]
    with pytest.raises(ValueError, match=f"this {name} has .*{reason}"):
        backend_of(tp.bridge(tiny(name, **settings)))


def test_a_bias_between_heads_and_a_norm_is_refused() -> None:
    hf = tiny("Gemma2ForCausalLM", num_key_value_heads=2, head_dim=8, attention_bias=True)
    model = tp.bridge(hf)
    tp.edges(model)  # all biases are 0 to begin with
    model.blocks[1].attn.o.original_component.bias.data += 1
    with pytest.raises(ValueError, match=r"layer 1 adds an output bias before it.*as in Gemma 2"):
        backend_of(model)


def test_an_encoder_decoder_is_refused() -> None:
    config = transformers.T5Config(vocab_size=29, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    with pytest.raises(ValueError, match="an encoder and a decoder"):
        backend_of(tp.bridge(transformers.T5ForConditionalGeneration(config)))


def test_a_model_without_a_bridge_is_refused() -> None:
    with pytest.raises(ValueError, match="of BertForTokenClassification it says: Unsupported"):
        tp.bridge(tiny("BertForTokenClassification"))


def test_a_model_whose_bridge_fails_is_refused() -> None:
    with pytest.raises(ValueError, match="of GPTNeoXForCausalLM it says: an assertion about its weights failed"):
        tp.bridge(tiny("GPTNeoXForCausalLM", attention_bias=False))


def test_a_model_whose_bridge_is_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="attention scores without a scale"):
        backend_of(bridged("gpt2", scale_attn_weights=False))


def test_a_model_that_drops_out_is_refused() -> None:
    model = bridged("gpt2").train()
    with pytest.raises(ValueError, match=r"training mode.*Call model\.eval\(\)"):
        backend_of(model)
    backend_of(model.eval())


def test_compatibility_mode_is_refused() -> None:
    model = bridged("gpt2", torch.float32)
    model.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(ValueError, match="compatibility mode"):
        backend_of(model)


def test_readers_per_query_head_are_refused_where_attention_groups_elsewhere() -> None:
    from tlprune.backends.bridge_support import grouping

    with pytest.raises(ValueError, match="Use kv='shared'"):
        grouping(torch.nn.Linear(2, 2), 4)


def test_a_backend_knows_the_graph_of_a_bridge() -> None:
    graph = Graph.of(bridged("llama"))
    assert (graph.architecture.n_kv_heads, graph.architecture.position_embedding) == (2, False)
    assert Graph.of(bridged("neox")).architecture.parallel
    assert not Graph.of(bridged("neox_serial")).architecture.parallel
    assert Graph.of(bridged("gpt2")).architecture.position_embedding


def test_a_missing_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A masked head that is never met, because the block was replaced, is an error and not the whole model."""
    model = bridged("gpt2")
    masked = tp.Masked(model, tp.Masks(tp.heads(model)), tp.Zero())
    masked(CLEAN)
    block = model.blocks[1].original_component

    def skip(hidden_states: Tensor, *args: Any, **options: Any) -> Any:
        return hidden_states

    monkeypatch.setattr(block, "forward", skip)
    with pytest.raises(RuntimeError, match="heads of layer 1 were not met"):
        masked(CLEAN)
