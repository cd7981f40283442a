"""Predictions from the last stream: the model's logits on every kind of model, and objectives read some at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from bridges import KINDS, bridged
from encoders import encoder_of
from encoders import hf_model_of as encoder_behind
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import STYLES, error, fresh, random_batch, random_tokens

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.learning.reading import value_of
from tlprune.masking.cache import RunCache, reference_predictions
from tlprune.masking.unembedding import unembeds_apart, vocabulary
from tlprune.task import Batch

LENGTH, WORDS = 6, 64  # more words than the 32 numbers of a stream


def batch_of(examples: int = 5, *, seed: int = 0) -> Batch:
    """Prompts read everywhere but at their end; of the first one only the second half counts."""
    batch = random_batch(examples, LENGTH, seed=seed)
    answers = batch.clean.ids[:, 1:].clone()
    answers[0, :2] = -100
    return replace(batch, positions=torch.arange(LENGTH - 1).repeat(examples, 1), answers=answers, foils=0 * answers)


def model_of_kind(kind: str, name: str, dtype: torch.dtype) -> Any:
    if kind == "encoder":
        return encoder_of(name, dtype)
    if kind == "bridged encoder":
        return tp.bridge(encoder_behind(name, dtype))
    return fresh(name, dtype) if kind == "style" else bridged(name, dtype)


EVERY = [("style", name) for name in STYLES] + [("bridge", name) for name in KINDS]
EVERY += [("bridged encoder", name) for name in ("bert words", "roberta words")]
EVERY += [pytest.param("encoder", name, marks=NEEDS_HOOKED_TRANSFORMER) for name in ("bert words", "roberta words")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_the_last_stream_unembedded_is_what_the_model_says(kind: str, name: str, dtype: torch.dtype) -> None:
    backend = backend_of(model_of_kind(kind, name, dtype))
    tokens, positions = random_tokens(3), torch.tensor([[1, 4], [0, 5], [3, 3]])
    logits, stream = backend.logits(tokens, positions), backend.final(tokens, {}, positions)
    assert stream.shape == (3, 2, backend.d_model)
    assert error(backend.unembed(stream), logits) <= (1e-6 if dtype == torch.float32 else 1e-12)
    assert error(backend.unembed(stream.flatten(0, 1)[:, None]).view_as(logits), logits) <= 3e-6
    assert unembeds_apart(backend, batch_of())
    assert vocabulary(backend) == logits.shape[-1]


@pytest.mark.parametrize("make", [fresh, bridged])
def test_edits_on_the_way_are_in_the_last_stream(make: Any) -> None:
    backend, tokens = backend_of(make("gpt2")), random_tokens(3)
    edits, positions = {("heads", 1): lambda z: 0.5 * z, ("mlp", 2): torch.zeros_like}, torch.tensor([[4]]).expand(3, 1)
    edited = backend.unembed(backend.final(tokens, edits, positions))
    assert error(edited, backend.run(tokens, edits, positions)) <= 1e-12
    assert error(edited, backend.logits(tokens, positions)) > 1e-3


def test_a_model_that_scales_its_logits_unknown_to_the_backend_keeps_them_whole() -> None:
    model = bridged("gpt2", vocab_size=WORDS)
    backend = backend_of(model)
    model.original_model.register_forward_hook(lambda module, inputs, output: output | {"logits": output.logits / 2})
    cache = RunCache(backend, tp.Zero(), batch_of(), most_predictions=0)
    assert not unembeds_apart(backend, batch_of())
    assert error(cache.reference(batch_of()), reference_predictions(backend, batch_of())) == 0


@pytest.mark.parametrize("make", [lambda: fresh("gpt2", d_vocab=WORDS), lambda: bridged("gemma2", vocab_size=WORDS)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_streams_are_kept_in_place_of_large_predictions(make: Any, dtype: torch.dtype) -> None:
    backend, batch = backend_of(make().to(dtype)), batch_of()
    caches = {most: RunCache(backend, tp.Zero(), batch, most_predictions=most) for most in (0, 1 << 30)}
    expected = reference_predictions(backend, batch)
    for most, cache in caches.items():
        some = batch.rows(torch.tensor([3, 1]))
        for _ in range(2):  # computed, then kept
            assert error(cache.reference(some), expected[[3, 1]]) <= (1e-6 if dtype == torch.float32 else 1e-12)
        rows, answers = torch.tensor([1, 0, 1]), torch.tensor([4, 2, 0])
        assert error(cache.references(some)(rows, answers), expected[[1, 3, 1], [4, 2, 0]][:, None]) <= 1e-6
        assert cache._reference.tensors[0].shape == (5, LENGTH - 1, WORDS if most else backend.d_model)


SITES: dict[str, Any] = {
    "weights": lambda model: tp.weights(model, "blocks.*.W_*|embed.W_E"),
    "heads and neurons": lambda model: tp.heads(model) + tp.neurons(model),
}
WHOLE: dict[str, Any] = {
    "unembedding": lambda model: tp.Masked(model, tp.Masks(tp.weights(model, "blocks.0.*.W_*|unembed.W_U")), tp.Zero()),
    "edges": lambda model: tp.Masked(model, tp.Masks(tp.edges(model)), tp.Zero()),
    "frozen norms": lambda model: tp.Masked(model, tp.Masks(tp.heads(model)), tp.Zero(), norm="frozen"),
}


def value_and_gradient(objective: Any, masked: tp.Masked, mask: torch.Tensor, **options: Any) -> torch.Tensor:
    batch, mask = batch_of(), mask.clone().requires_grad_()
    value = value_of(objective, masked, batch, masked.cache(batch), mask=mask, **options)
    (2 * value).backward()
    assert mask.grad is not None and mask.grad.abs().max() > 1e-6
    return torch.cat([value.detach()[None], mask.grad])


@pytest.mark.parametrize("most", [1, 3 * WORDS, 7 * WORDS, 1000 * WORDS])
@pytest.mark.parametrize("objective", [tp.KL(), tp.Uniform(), tp.CrossEntropy()], ids=lambda one: one.name)
@pytest.mark.parametrize("sites", SITES)
def test_reading_some_answers_at_a_time_changes_neither_value_nor_gradient(
    sites: str, objective: Any, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh("gpt2", d_vocab=WORDS)
    masked = tp.Masked(model, tp.Masks(SITES[sites](model)), tp.Zero())
    mask = 0.1 + 0.8 * torch.rand(len(masked.sites), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = value_and_gradient(objective, masked, mask, most=10**9)
    assert unembeds_apart(masked.backend, batch_of())
    read, unembed = [], masked.backend.unembed
    monkeypatch.setattr(masked.backend, "unembed", lambda stream: read.append(len(stream)) or unembed(stream))
    assert error(value_and_gradient(objective, masked, mask, most=most), whole) <= 1e-12
    size = max(1, most // WORDS)
    assert read == ([min(size, 23 - start) for start in range(0, 23, size)] if size < 25 else [])


@pytest.mark.parametrize("kind", WHOLE)
def test_what_masks_the_end_of_a_model_is_read_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    masked = WHOLE[kind](fresh("gpt2", d_vocab=WORDS))
    mask = torch.full((len(masked.sites),), 0.7, dtype=torch.float64)
    monkeypatch.setattr(masked.backend, "unembed", lambda stream: 1 / 0)
    value_and_gradient(tp.KL(), masked, mask, most=1)
    assert not masked.ends_plain
