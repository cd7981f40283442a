"""The method of one-shot pruning: its sites, names, settings and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from encoders import hf_model_of
from styles import fresh, random_batch

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.methods.saliency_pass import Observer, Total
from tlprune.methods.strategies import STRATEGIES
from tlprune.models.transformer_lens import has_hooked_transformer
from tlprune.sites import Weights
from tlprune.task import Stream, Tokenisation


def task_of(examples: int = 8) -> tp.Task:
    stream = Stream(*(random_batch(examples, seed=seed) for seed in (1, 2, 3)))
    return tp.Task("random", {"main": stream}, Tokenisation(prepend_bos=True))


# ---- sites


def linear_parameters(model: Any) -> int:
    """Parameters of a transformers model's linear layers, the classifier left out."""
    layers = {name: one for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    return sum(p.numel() for name, one in layers.items() if name != "classifier" for p in one.parameters())


def test_the_count_on_bert_base_is_that_of_linear_layers_but_the_classifier() -> None:
    with torch.device("meta"):
        full = transformers.BertForSequenceClassification(transformers.BertConfig())
    assert linear_parameters(full) == 85_608_192
    assert sum(parameter.numel() for parameter in full.parameters()) == 109_483_778


@pytest.mark.parametrize("name", ["bert classes", "bert number"])
def test_prunable_weights_of_an_encoder_are_its_linear_layers_but_the_classifier(name: str) -> None:
    plain = hf_model_of(name)
    count = linear_parameters(plain)
    found = [tp.prunable(tp.bridge(plain))]
    found += [tp.prunable(tp.from_huggingface(hf_model_of(name), device="cpu"))] if has_hooked_transformer() else []
    assert [len(one) for one in found] == [count] * len(found)
    assert all(one == found[0] for one in found)


def test_prunable_weights_of_a_decoder_are_those_of_its_blocks() -> None:
    model = fresh("gpt2")
    names = [matrix.name for matrix in weights_of(model)]
    assert len(names) == 3 * 12
    assert all(name.startswith("blocks.") for name in names) and "blocks.2.mlp.b_out" in names
    width, neurons = model.cfg.d_model, model.cfg.d_mlp
    assert len(tp.prunable(model)) == 3 * (4 * width**2 + 4 * width + 2 * width * neurons + neurons + width)


def test_a_bias_that_a_decoder_lacks_is_no_site() -> None:
    model = fresh("llama")
    with torch.no_grad():
        for name, parameter in backend_of(model).parameters().items():
            if ".b_" in name:
                parameter.zero_()
    assert all(".W_" in matrix.name for matrix in weights_of(model))
    shapes = {matrix.name: matrix.shape for matrix in weights_of(model)}
    assert shapes["blocks.0.attn.W_K"] == (2, 32, 8)  # two groups for four heads


def weights_of(model: object) -> tuple:
    group = tp.prunable(model).group("weights")
    assert isinstance(group, Weights)
    return group.matrices


# ---- names


def test_names_stand_for_the_released_strategies() -> None:
    assert len(STRATEGIES) == 15
    assert tp.saliency_strategy("LayerGradCAMShift") == tp.Saliency(criterion=tp.GradCAM(shift=10), scope="layer")
    released = tp.saliency_strategy("GlobalGradCAMShift", density=0.25)
    assert released == tp.Saliency(criterion=tp.GradCAM(shift=10, shifted="product"), scope="global", density=0.25)
    smooth = tp.saliency_strategy("LayerSmoothGradCAMShift")
    assert smooth.criterion == tp.SmoothGradCAM(samples=10, scale=1e-3, shift=10) and smooth.most == 100
    assert tp.saliency_strategy("GlobalMagWeight").most == 1000


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_comes_back_from_provenance(name: str) -> None:
    model = fresh("attention_only")
    method = tp.saliency_strategy(name, batches=1, batch_size=4)
    scores = method.score(model, task_of())
    assert tp.method_from(scores.provenance) == method
    assert scores.sites == tp.prunable(model) and bool((scores.values >= 0).all())


# ---- chance


def test_a_seed_repeats_random_scores_and_noise_and_another_gives_others() -> None:
    model = fresh("gpt2")
    for criterion in (tp.RandomCriterion(), tp.SmoothGrad(samples=1, scale=0.1)):
        method = tp.Saliency(criterion=criterion, batch_size=8)
        first, again, other = (replace(method, seed=seed).score(model, task_of()).values for seed in (0, 0, 1))
        assert torch.equal(first, again) and not torch.equal(first, other)


# ---- refusals


def test_a_task_without_labels_is_refused_by_criteria_that_need_them_alone() -> None:
    model, task = fresh("gpt2"), task_of()
    main = task.streams["main"]
    bare = replace(main.train, answers=torch.full_like(main.train.answers, -100))
    unlabelled = replace(task, streams={"main": replace(main, train=bare)})
    for criterion in (tp.GradCAM(), tp.SmoothGrad(), tp.SNIP()):
        with pytest.raises(ValueError, match="no training example has one"):
            tp.Saliency(criterion=criterion).score(model, unlabelled)
    assert len(tp.Saliency(criterion=tp.Wanda()).score(model, unlabelled).values) == len(tp.prunable(model))


def test_a_model_without_the_named_classifier_is_refused() -> None:
    model = fresh("gpt2")
    with pytest.raises(ValueError, match="the classifier 'score' alone but this model has unembed"):
        tp.Saliency(classifier="score").score(model, task_of())
    assert tp.prunable(model, classifier="unembed") == tp.prunable(model)


def test_numbers_need_a_regression() -> None:
    model, task = fresh("gpt2"), task_of()
    main = task.streams["main"]
    numbers = replace(main.train, targets=torch.zeros(len(main.train)))
    with pytest.raises(ValueError, match="one output but this one has 29"):
        tp.Saliency().score(model, replace(task, streams={"main": replace(main, train=numbers)}))


def test_methods_of_different_passes_share_none() -> None:
    methods = [tp.Saliency(batch_size=size) for size in (4, 8)]
    with pytest.raises(ValueError, match="the same batch_size, seed and classifier"):
        tp.saliency_scores(fresh("gpt2"), task_of(), methods)
    with pytest.raises(ValueError, match="or none"):
        tp.saliency_scores(fresh("gpt2"), task_of(), [])


# ---- cutting


def test_one_pass_gives_circuits_of_every_size() -> None:
    model, task = fresh("gpt2"), task_of()
    method = tp.Saliency(criterion=tp.Magnitude(), scope="global")
    scores = method.score(model, task)
    for density in (0.361, 0.147, 0.0408, 1.0):
        circuit = replace(method, density=density).cut(model, scores)
        assert len(circuit) == round(density * len(scores.sites))
        assert float(scores.values[circuit.kept].min()) >= max([0.0, *scores.values[~circuit.kept].tolist()])
    assert replace(method, sparsity=0.75).find(model, task) == replace(method, density=0.25).find(model, task)


def test_a_name_is_no_criterion() -> None:
    """The type checker of tests may be faster than the message."""
    with pytest.raises((ValueError, TypeError), match="LayerGradCAM"):
        tp.Saliency(criterion="LayerGradCAM")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("settings", [{"shift": float("nan")}, {"shifted": "nothing"}])
def test_what_cannot_be_shifted_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=r"shift must be finite|shifted"):
        tp.GradCAM(**settings)


@pytest.mark.parametrize(("settings", "message"), [({"samples": 0}, "at least 1"), ({"scale": -1.0}, "at least 0")])
def test_noise_that_is_none_is_refused(settings: dict[str, Any], message: str) -> None:
    for kind in (tp.SmoothGrad, tp.SmoothGradCAM):
        with pytest.raises(ValueError, match=message):
            kind(**settings)


@pytest.mark.parametrize("scope", ["layer", "global", "output"])
def test_weights_compete_within_their_scope(scope: Any) -> None:
    planted = tp.planted("copy")
    method = tp.Saliency(criterion=tp.Magnitude(), scope=scope, density=0.3)
    scores, circuit = method.score(planted.model, planted.task), method.find(planted.model, planted.task)
    assert len(circuit) == round(0.3 * len(circuit.sites))
    weights = circuit.sites.group("weights")
    assert isinstance(weights, Weights)
    kept, values = (tensor.split(weights.sizes) for tensor in (circuit.kept, scores.values))
    shares = [float(part.double().mean()) for part in kept]
    if scope == "global":
        assert max(shares) - min(shares) > 0.1
        assert float(scores.values[circuit.kept].min()) >= float(scores.values[~circuit.kept].max())
    else:
        for part, share in zip(kept, shares, strict=True):
            assert abs(share * len(part) - 0.3 * len(part)) < (1 if scope == "layer" else len(part) / 2)
    if scope == "layer":
        for part, own in zip(kept, values, strict=True):
            assert float(own[part].min()) >= float(own[~part].max())


def test_a_compression_keeps_what_leaves_so_many_parameters() -> None:
    planted = tp.planted("copy")
    total = sum(value.numel() for value in planted.model.parameters())
    circuit = tp.Saliency(criterion=tp.Magnitude(), compression=1.2).find(planted.model, planted.task)
    remaining = total - len(circuit.sites) + len(circuit)
    assert total / remaining == pytest.approx(1.2, rel=1e-3)
    with pytest.raises(ValueError, match="lies between 1 and"):
        tp.Saliency(criterion=tp.Magnitude(), compression=1e6).find(planted.model, planted.task)


# ---- memory


def test_gradients_of_a_further_pass_are_added_as_they_come() -> None:
    """So that no second copy of all of them is ever there."""
    model, batch = fresh("gpt2"), random_batch(4)
    weights = tp.prunable(model).group("weights")
    assert isinstance(weights, Weights)
    run = Observer(backend_of(model), weights, seed=0)
    run._run(batch, 1, gradient=True)
    last, once = run.leaves["blocks.2.mlp.W_out"], {}
    before = last.grad.clone()
    run.leaves["blocks.0.attn.W_Q"].register_hook(lambda _: once.update(last=last.grad.clone()))
    run._run(batch, 1, gradient=True)
    torch.testing.assert_close(once["last"], 2 * before)


@pytest.mark.parametrize("criterion", [tp.GradCAM(), tp.Wanda()])
def test_totals_lie_where_the_scores_will_be(criterion: Any) -> None:
    model, batch = fresh("gpt2"), random_batch(4)
    weights = tp.prunable(model).group("weights")
    assert isinstance(weights, Weights)
    total = Total(criterion, 1, weights, backend_of(model).parameters())
    Observer(backend_of(model), weights, seed=0).look(batch, [total])
    own = sum(
        part.numel() for part in total.parts.values() if part.untyped_storage().data_ptr() != total.flat.data_ptr()
    )
    assert own < 0.2 * len(weights)
    assert total.scores(0) is total.flat
