"""Relevance patching: its rules against a definition of their own, what they conserve, and where they are gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bridges import bridged
from encoders import fresh_encoder, kept_encoder
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import CLEAN, CORRUPT, STYLES, backend_of_style, fresh, probe, refuses_choice
from test_attribution import apart, linear_model, loss_of, task_of
from test_encoder_nodes import clean, corrupt
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.backends.activations import Backend
from tlprune.graph import Graph
from tlprune.masking.gradients import edge_gradients
from tlprune.masking.relevance import relevance_rules

OUT_OF_INPUT = "input->"


def relevance(backend: Backend, tokens: tp.Tokens, twins: tp.Tokens, *, patterns: bool) -> tuple[Tensor, Tensor]:
    """Scores of a probe of all logits, and the logits."""
    rules, seen = relevance_rules(backend, tokens, patterns=patterns), []

    def loss(logits: Tensor) -> Tensor:
        seen.append(logits.detach())
        return probe(logits)

    graph = Graph.of(backend.model)
    return edge_gradients(backend, graph, tokens, backend.observe(twins), loss, rules=rules), seen[0]


def without_biases(style: str) -> Any:
    model = fresh(style)
    with torch.no_grad():
        for name, value in backend_of(model).parameters().items():
            if name.rpartition(".")[2].startswith("b"):
                value.zero_()
    return model


# ---- values


@pytest.mark.parametrize("patterns", [True, False])
@pytest.mark.parametrize("style", STYLES)
def test_the_rules_change_no_value(style: str, patterns: bool) -> None:
    backend = backend_of_style(style)
    _, logits = relevance(backend, CLEAN, CORRUPT, patterns=patterns)
    assert apart(logits, backend.logits(CLEAN, None).detach()) <= 1e-9


# ---- what is conserved


@pytest.mark.parametrize("style", ["gpt2", "llama", "parallel", "attention_only", "no_norm", "qk_norm"])
def test_a_logit_difference_is_conserved_without_biases(style: str) -> None:
    """Every function is then its input times factors, so ``x . R`` is one number at the input and at the logits."""
    model, task = without_biases(style), task_of()
    batch = task.discovery.train()
    scores = tp.RelP(attention="frozen").score(model, task, ablation=tp.Zero())
    logits = backend_of(model).logits(batch.clean, batch.positions)
    difference = -float(tp.LogitDifference()(logits, batch, logits).detach())
    for part in (OUT_OF_INPUT, "->logits"):
        chosen = torch.tensor([part in name for name in scores.graph.edges()])
        assert float(scores.values[chosen].sum()) == pytest.approx(difference, rel=1e-9)


def test_gradients_conserve_no_logit_difference() -> None:
    """Nor do relevances through attention patterns."""
    model, task = without_biases("gpt2"), task_of()
    batch = task.discovery.train()
    logits = backend_of(model).logits(batch.clean, batch.positions)
    difference = -float(tp.LogitDifference()(logits, batch, logits).detach())
    for method in (tp.EAP(), tp.RelP()):
        scores = method.score(model, task, ablation=tp.Zero())
        chosen = torch.tensor([name.startswith(OUT_OF_INPUT) for name in scores.graph.edges()])
        assert float(scores.values[chosen].sum()) != pytest.approx(difference, rel=1e-2)


# ---- the rules, one by one


def reference(model: Any, *, gated: bool) -> Tensor:
    """Scores of the edges from the input into the first MLP and from there to the logits, in ordinary autograd, of a
    model of one layer whose attention writes nothing."""
    backend = backend_of(model)
    weights = {name: value.detach() for name, value in backend.parameters().items()}
    x, other = (backend.observe(tokens).streams[0] for tokens in (CLEAN, CORRUPT))
    stream = [x.clone().requires_grad_() for _ in range(2)]

    def norm(value: Tensor, name: str) -> Tensor:
        centred = value if gated else value - value.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + model.cfg.eps).sqrt().detach()
        return centred / scale * weights[f"{name}.w"] + (0 if gated else weights[f"{name}.b"])

    def activation(value: Tensor) -> Tensor:
        after = torch.nn.functional.silu(value) if gated else torch.nn.functional.gelu(value, approximate="tanh")
        return value * (after / value).detach()

    read = norm(stream[0], "blocks.0.ln2")
    if gated:
        product = activation(read @ weights["blocks.0.mlp.W_gate"]) * (read @ weights["blocks.0.mlp.W_in"])
        hidden = product / 2 + product.detach() / 2 + weights["blocks.0.mlp.b_in"]
    else:
        hidden = activation(read @ weights["blocks.0.mlp.W_in"] + weights["blocks.0.mlp.b_in"])
    written = hidden @ weights["blocks.0.mlp.W_out"] + weights["blocks.0.mlp.b_out"]
    logits = norm(stream[1] + written, "ln_final") @ weights["unembed.W_U"] + weights["unembed.b_U"]
    gradients = torch.autograd.grad(probe(logits), stream)
    return torch.stack([((x - other) * gradient).sum() for gradient in gradients])


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize(("style", "gated"), [("gpt2", False), ("llama", True)])
def test_norms_activations_and_gates_follow_their_rules(style: str, gated: bool) -> None:
    model = fresh(style, n_layers=1)
    with torch.no_grad():
        model.blocks[0].attn.W_O.zero_()
        model.blocks[0].attn.b_O.zero_()
    found, _ = relevance(backend_of(model), CLEAN, CORRUPT, patterns=True)
    graph = Graph.of(model)
    chosen = torch.stack([found[graph.index(name)] for name in ("input->m0", "input->logits")])
    assert apart(chosen, reference(model, gated=gated)) <= 1e-9


@pytest.mark.parametrize("attention", ["gradient", "frozen"])
def test_without_norms_and_mlps_it_is_eap_but_for_frozen_patterns(attention: Any) -> None:
    model, task = linear_model(), task_of()
    eap, found = (method.score(model, task) for method in (tp.EAP(), tp.RelP(attention=attention)))
    into_values = torch.tensor([name.endswith(("<v>", "->logits")) for name in eap.graph.edges()])
    last = torch.tensor(["->a1." in name or "->logits" in name for name in eap.graph.edges()])
    assert apart(found.values[into_values & last], eap.values[into_values & last]) <= 1e-9
    if attention == "gradient":
        assert apart(found.values, eap.values) <= 1e-9
    else:
        assert not found.values[~into_values].any()
        assert eap.values[~into_values].any()


def test_relevance_is_exact_through_an_activation_that_zero_ablation_takes_to_zero() -> None:
    """``f(x) - f(0) = x f(x) / x``, however flat ``f`` is at ``x``; its slope there says something else."""
    model, task = fresh("no_norm", n_layers=1, act_fn="gelu"), task_of()
    with torch.no_grad():
        for name in ("attn.W_O", "attn.b_O", "mlp.b_in"):
            backend_of(model).parameters()[f"blocks.0.{name}"].zero_()
    edges, batch = tp.edges(model), task.discovery.train()
    index, ones = edges.index("input->m0"), torch.ones(len(edges), dtype=torch.float64)
    ends = [loss_of(model, batch, ones.index_fill(0, torch.tensor(index), value), tp.Zero()) for value in (0.0, 1.0)]
    rise = float((ends[0] - ends[1]).detach())
    assert tp.RelP().score(model, task, ablation=tp.Zero())["input->m0"] == pytest.approx(rise, rel=1e-9)
    assert tp.EAP().score(model, task, ablation=tp.Zero())["input->m0"] != pytest.approx(rise, rel=0.1)


# ---- other kinds of model


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_the_rules_change_no_value_of_a_bridge(kind: str) -> None:
    backend = backend_of(bridged(kind, torch.float32))
    _, logits = relevance(backend, CLEAN, CORRUPT, patterns=False)
    assert apart(logits, backend.logits(CLEAN, None).detach()) <= 1e-4


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_a_bridge_and_a_hooked_transformer_of_one_checkpoint_agree(kind: str) -> None:
    from bridges import hf_model

    pair = [backend_of(make(hf_model(kind, torch.float32))) for make in (tp.bridge, tp.from_huggingface)]
    found = [relevance(backend, CLEAN, CORRUPT, patterns=True)[0] for backend in pair]
    assert apart(*found) <= 1e-3


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("patterns", [True, False])
def test_the_rules_change_no_value_of_an_encoder(patterns: bool) -> None:
    backend = backend_of(kept_encoder("bert classes"))
    found, logits = relevance(backend, clean("bert classes"), corrupt("bert classes"), patterns=patterns)
    assert apart(logits, backend.logits(clean("bert classes"), None).detach()) <= 1e-9
    graph = Graph.of(backend.model)
    into_patterns = torch.tensor([name.endswith(("<q>", "<k>")) for name in graph.edges()])
    assert bool(found[into_patterns].any()) == patterns


@NEEDS_HOOKED_TRANSFORMER
def test_an_encoder_without_biases_conserves_what_its_blocks_pass_on() -> None:
    """What the head reads comes from the input in the end, since each sum is divided by a number."""
    model = fresh_encoder("bert words")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.rpartition(".")[2].startswith("b") and not name.startswith("embed"):
                value.zero_()
    backend, graph = backend_of(model), Graph.of(model)
    tokens = clean("bert words")
    rules, nothing = relevance_rules(backend, tokens, patterns=False), tp.Zero().replaced(backend, tokens, None)
    found = edge_gradients(backend, graph, tokens, nothing, probe, rules=rules)
    chosen = [torch.tensor([part in name for name in graph.edges()]) for part in (OUT_OF_INPUT, "->logits")]
    sums = [float(found[part].sum()) for part in chosen]
    assert abs(sums[0]) > 1e-3 and sums[0] == pytest.approx(sums[1], rel=1e-9)


# ---- refusals


@NEEDS_HOOKED_TRANSFORMER
def test_activations_that_are_normalised_are_refused() -> None:
    model = fresh("gpt2", act_fn="solu_ln")
    with pytest.raises(ValueError, match=r"need activation functions of one number each, but 'gpt2' has 'solu_ln'"):
        tp.RelP().score(model, task_of())


def test_unknown_words_are_refused() -> None:
    with refuses_choice("attention must be 'gradient' or 'frozen' but is 'none'"):
        tp.RelP(attention="none")  # pyright: ignore
