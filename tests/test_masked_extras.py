"""What a masked model offers beside logits: what readers see, masks that stay for a while, norms at the clean scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from styles import CLEAN, CORRUPT, NORMED_HEADS, OTHERS, STYLES, backend_of_style, error, fresh, model_of, probe
from test_node_theorems import random_values
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.masking.ablation import GaussianNoise, Resample, Zero
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.masking.means import Mean
from tlprune.masking.sites import edges, heads, layers, mlps, neurons, nodes, weights
from tlprune.sites import Sites

MIXTURES: dict[str, Callable[[Any], Sites]] = {
    "edges": edges,
    "edges without embeddings": lambda model: edges(model, embeddings="kept"),
    "separate embeddings": lambda model: edges(model, embeddings="separate") + nodes(model, embeddings="separate"),
    "heads": heads,
    "weights": weights,
    "edges and weights": lambda model: edges(model) + weights(model),
    "layers and heads": lambda model: heads(model) + layers(model),
}
each_mixture = pytest.mark.parametrize("mixture", MIXTURES)
each_style = pytest.mark.parametrize("style", STYLES)


def half(sites: Sites, seed: int = 0) -> Circuit:
    return Circuit(sites, torch.rand(len(sites), generator=torch.Generator().manual_seed(seed)) < 0.6)


# ---- installed


@each_mixture
@each_style
def test_an_installed_circuit_is_the_circuit_and_leaves_nothing(style: str, mixture: str) -> None:
    model = fresh(style)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    circuit = half(MIXTURES[mixture](model))
    for ablation in (Zero(), Mean(OTHERS)):
        masked = Masked(model, circuit, ablation)
        expected, plain = masked(CLEAN), model(CLEAN.ids)
        with masked.installed() as lent:
            assert lent is model
            assert error(model(CLEAN.ids), expected) <= 1e-9
            assert error(model(OTHERS.ids), masked_on(model, circuit, ablation, style)) <= 1e-9
        assert torch.equal(model(CLEAN.ids), plain)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert not any(point._forward_hooks for point in model.hook_dict.values())


def masked_on(model: Any, circuit: Circuit, ablation: Any, style: str) -> Tensor:
    """The same circuit on another copy of the model, which is not installed."""
    return Masked(fresh(style), circuit, ablation)(OTHERS)


@pytest.mark.parametrize("style", ["gpt2", "llama", "parallel"])
def test_generation_under_a_mask_is_the_masked_model_step_by_step(style: str) -> None:
    """With its cache of keys and values, a run per new token (TransformerLens 3.9 lacks it for learned positions)."""
    model = fresh(style)
    masked = Masked(model, half(edges(model) + heads(model)), Zero())
    ids = CLEAN.ids
    for _ in range(4):
        ids = torch.cat([ids, masked(ids)[:, -1:].argmax(-1)], 1)
    with masked.installed():
        found = model.generate(
            CLEAN.ids,
            max_new_tokens=4,
            do_sample=False,
            stop_at_eos=False,
            use_past_kv_cache=style != "gpt2",
            verbose=False,
        )
    assert torch.equal(found, ids)


def test_no_masked_call_runs_on_a_model_that_is_masked_already() -> None:
    model = fresh("gpt2")
    masked = Masked(model, half(edges(model)), Zero())
    with masked.installed():
        with pytest.raises(RuntimeError, match="has masks installed"):
            Masked(model, half(heads(model)))(CLEAN, CORRUPT)
        with pytest.raises(RuntimeError, match="has masks installed"), masked.installed():
            pass
        with pytest.raises(RuntimeError, match="has masks installed"):
            masked.run_with_cache(CLEAN)
    assert masked(CLEAN).isfinite().all()


def test_a_mask_is_taken_off_after_an_exception() -> None:
    model = fresh("gpt2")
    plain = model(CLEAN.ids)
    masked = Masked(model, half(edges(model) + weights(model)), Zero())
    with pytest.raises(KeyError), masked.installed():
        raise KeyError
    assert torch.equal(model(CLEAN.ids), plain)


@pytest.mark.parametrize(
    ("sites", "ablation", "options"),
    [
        (edges, Resample(), {}),
        (heads, GaussianNoise(), {}),
        (heads, Mean(OTHERS, over="examples"), {}),
        (lambda model: heads(model, spans=("end",)), Zero(), {}),
        (heads, Zero(), {"norm": "frozen"}),
    ],
)
def test_what_needs_the_prompts_cannot_be_installed(sites: Any, ablation: Any, options: Any) -> None:
    model = model_of("gpt2")
    masked = Masked(model, half(sites(model)), ablation, **options)
    with pytest.raises(ValueError, match="An installed mask meets new tokens"), masked.installed():
        pass


# ---- what readers see


@each_style
def test_the_cache_shows_the_inputs_of_readers(style: str) -> None:
    """With every edge kept they are the model's own stream; under masks, what the definition says."""
    model = model_of(style)
    masked = Masked(model, Masks(edges(model)))
    ones = torch.ones(len(masked.sites), dtype=torch.float64)
    logits, seen = masked.run_with_cache(CLEAN, CORRUPT, mask=ones)
    assert error(logits, model(CLEAN.ids)) <= 1e-9
    clean, corrupt = (backend_of_style(style).observe(tokens) for tokens in (CLEAN, CORRUPT))
    assert list(seen) == [name for readers in masked.graph.readers for name in readers.names]
    for readers, stream in zip(masked.graph.readers, clean.streams, strict=True):
        assert all(error(seen[name], stream) <= 1e-9 for name in readers.names)
    first = masked.graph.readers[0]
    mask = random_values(masked.sites)
    _, seen = masked.run_with_cache(CLEAN, CORRUPT, mask=mask)
    for name, gate in zip(first.names, first.block(mask)[:, 0], strict=True):
        expected = corrupt.streams[0] + gate * (clean.streams[0] - corrupt.streams[0])
        assert error(seen[name], expected) <= 1e-9
        assert not seen[name].requires_grad


def test_without_edges_all_readers_of_a_place_see_one_stream() -> None:
    model = model_of("gpt2")
    masked = Masked(model, half(heads(model) + mlps(model)), Zero())
    streams: dict[str, Tensor] = {}
    with masked.installed():
        _, cache = model.run_with_cache(CLEAN.ids)
        streams = {f"m{layer}": cache[f"blocks.{layer}.hook_resid_mid"] for layer in range(3)}
        streams |= {f"a{layer}.h2<k>": cache[f"blocks.{layer}.hook_resid_pre"] for layer in range(3)}
        streams["logits"] = cache["blocks.2.hook_resid_post"]
    logits, seen = masked.run_with_cache(CLEAN)
    assert error(logits, masked(CLEAN)) <= 1e-9
    assert all(error(seen[name], stream) <= 1e-9 for name, stream in streams.items())


# ---- norms


@each_style
def test_frozen_norms_change_nothing_where_everything_is_kept(style: str) -> None:
    model = model_of(style)
    for sites in (edges, heads, lambda model: edges(model) + weights(model)):
        masked = Masked(model, Masks(sites(model)), norm="frozen")
        ones = torch.ones(len(masked.sites), dtype=torch.float64)
        assert error(masked(CLEAN, CORRUPT, mask=ones), model(CLEAN.ids)) <= 1e-9


@pytest.mark.parametrize("style", [style for style in STYLES if STYLES[style]["normalization_type"]])
@pytest.mark.parametrize("kind", ["edges", "heads"])
def test_frozen_norms_divide_by_the_clean_scale(style: str, kind: str) -> None:
    """As if every norm of the model had its clean scale written in by hooks of TransformerLens."""
    model = model_of(style)
    _, clean = model.run_with_cache(CLEAN.ids)
    norms = ("ln1.hook_scale", "ln2.hook_scale", "ln_final.hook_scale", "_post.hook_scale")
    masked = Masked(model, Masks(MIXTURES[kind](model)), norm="frozen")
    mask = random_values(masked.sites)
    found = masked(CLEAN, CORRUPT, mask=mask)
    per_node = Masked(model, Masks(nodes(model)), norm="frozen")
    if kind == "heads":
        hooks = [(name, lambda value, hook: clean[hook.name]) for name in clean if name.endswith(norms)]
        replaced = Resample().replaced(backend_of_style(style), CLEAN, CORRUPT)
        with model.hooks(hooks):
            expected = Masked(model, Masks(heads(model)))(CLEAN, CORRUPT, mask=mask, replaced=replaced)
        assert error(found, expected) <= 1e-9
    else:
        graph = masked.graph
        values = random_values(per_node.sites)
        if style in NORMED_HEADS:
            values[[".h" in per_node.sites.name(index) for index in range(len(values))]] = 1
        writers = torch.cat([torch.arange(readers.width).repeat(len(readers.names)) for readers in graph.readers])
        shared = masked(CLEAN, CORRUPT, mask=values[writers])
        assert error(shared, per_node(CLEAN, CORRUPT, mask=values)) <= 1e-9
    assert error(found, Masked(model, Masks(MIXTURES[kind](model)))(CLEAN, CORRUPT, mask=mask)) > 1e-4


@pytest.mark.parametrize("style", ["gpt2", "llama", "parallel"])
def test_frozen_norms_do_not_undo_the_scale_of_a_single_writer(style: str) -> None:
    """Under zero ablation q, k and v of the first layer then shrink in proportion to their mask."""
    model = model_of(style)
    masked = Masked(model, Masks(edges(model)), Zero(), norm="frozen")
    mask = torch.ones(len(masked.sites), dtype=torch.float64)
    first = masked.graph.readers[0]
    first.block(mask)[:] = 0.25
    seen: dict[str, Tensor] = {}
    plain = model.run_with_cache(CLEAN.ids)[1]["blocks.0.attn.hook_v"]
    point = model.hook_dict["blocks.0.attn.hook_v"]
    handle = point.register_forward_hook(lambda module, inputs, value: seen.__setitem__("v", value.detach()))
    masked(CLEAN, mask=mask)
    handle.remove()
    attention, norm = model.blocks[0].attn, model.blocks[0].ln1
    shift = getattr(norm, "b", torch.zeros(model.cfg.d_model, dtype=torch.float64))
    constant = attention.b_V + torch.einsum("d,hde->he", shift, attention.W_V)
    constant = constant[:: len(constant) // plain.shape[2]]  # of grouped heads, one for each group
    assert error(seen["v"] - constant, 0.25 * (plain - constant)) <= 1e-9


def test_frozen_norms_at_answer_positions_and_in_gradients() -> None:
    model = model_of("gpt2")
    masked = Masked(model, Masks(edges(model)), norm="frozen")
    mask = random_values(masked.sites).requires_grad_()
    last = torch.tensor([[5], [2], [4]])
    chosen = masked(CLEAN, CORRUPT, mask=mask, positions=last)
    everywhere = masked(CLEAN, CORRUPT, mask=mask)
    assert error(chosen, everywhere[torch.arange(3)[:, None], last]) <= 1e-12
    probe(everywhere).backward()
    assert mask.grad is not None
    direction = torch.randn(len(mask), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        up, down = (probe(masked(CLEAN, CORRUPT, mask=mask + step * direction)) for step in (1e-6, -1e-6))
    assert abs(float(mask.grad @ direction) - float(up - down) / 2e-6) <= 1e-7


# ---- a circuit as a callable


def test_a_circuit_on_a_model_takes_the_ablation_it_was_found_under() -> None:
    model = model_of("gpt2")
    zero = Circuit.from_edges(model, ["input->logits"], provenance={"ablation": Zero().as_dict()})
    assert error(zero.on(model)(CLEAN), Masked(model, zero, Zero())(CLEAN)) == 0
    by_hand = Circuit.from_edges(model, ["input->logits"])
    assert error(by_hand.on(model)(CLEAN, CORRUPT), Masked(model, by_hand)(CLEAN, CORRUPT)) == 0
    noise = half(neurons(model)).like(
        half(neurons(model)).kept, {"ablation": GaussianNoise(0.2, seed=3).as_dict(), "model": {"weights": None}}
    )
    noise = noise.like(noise.kept, {"ablation": noise.provenance["ablation"]})
    assert error(noise.on(model)(CLEAN), Masked(model, noise, GaussianNoise(0.2, seed=3))(CLEAN)) == 0
    mean = by_hand.like(by_hand.kept, {"ablation": Mean(OTHERS).as_dict()})
    with pytest.raises(ValueError, match="found under mean ablation, whose reference data are not in it"):
        mean.on(model)
    other = by_hand.like(by_hand.kept, {"model": {"name": "other", "weights": "abc"}})
    with pytest.raises(ValueError, match="was found on model 'other'"):
        other.on(model)


# ---- the model is lent


@pytest.mark.parametrize("mixture", ["heads", "weights", "edges and weights", "layers and heads"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_before_after_every_kind_of_call(mixture: str, fails: bool) -> None:
    model = fresh("llama")
    model.blocks[0].attn.W_Q.requires_grad_(False)
    model.train()
    before = [(name, id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()]
    masked = Masked(model, Masks(MIXTURES[mixture](model)), Zero(), norm="frozen")
    mask = random_values(masked.sites).requires_grad_()
    masked(CLEAN, mask=mask)

    def failing(value: Tensor, hook: Any) -> Tensor:
        raise KeyError

    if fails:
        model.add_hook("blocks.1.hook_mlp_out", failing)
        with pytest.raises(KeyError):
            masked(CLEAN, mask=mask)
        model.reset_hooks()
    probe(masked(CLEAN, mask=mask)).backward()
    after = [(name, id(p), p.requires_grad, p.detach()) for name, p in model.named_parameters()]
    assert [entry[:3] for entry in before] == [entry[:3] for entry in after]
    assert all(torch.equal(old[3], new[3]) for old, new in zip(before, after, strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert not any(point._forward_hooks for point in model.hook_dict.values())


def test_hooks_of_a_user_see_a_writer_before_its_mask() -> None:
    """Doubling a head by hand and masking it is masking the doubled head."""
    model = fresh("gpt2")
    masked = Masked(model, Masks(heads(model)), Zero())
    mask = torch.ones(len(masked.sites), dtype=torch.float64)
    mask[masked.sites.index("a1.h2")] = 0.25
    masked(CLEAN, mask=mask)

    def doubled(value: Tensor, hook: Any) -> Tensor:
        result = value.clone()
        result[:, :, 2] *= 2
        return result

    with model.hooks([("blocks.1.attn.hook_z", doubled)]):
        found = masked(CLEAN, mask=mask)
    mask[masked.sites.index("a1.h2")] = 0.5
    assert error(found, masked(CLEAN, mask=mask)) <= 1e-9
