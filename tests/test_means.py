"""Means of activations: streamed, without padding, saved with what they are of, and refused elsewhere."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from styles import CLEAN, CORRUPT, OTHERS, STYLES, backend_of_style, error, fresh, model_of

from tlprune.backends.activations import Activations, Wanted
from tlprune.masking.constants import Constant
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.masking.means import Mean, MeasuredMean, fingerprint
from tlprune.masking.sites import edges, heads, neurons
from tlprune.task import Tokens

PADDED = Tokens(OTHERS.ids, torch.tensor([[1] * 6] * 3 + [[1] * 5 + [0], [1] * 3 + [0] * 3]))


def layers_of(style: str) -> tuple[int, ...]:
    return () if STYLES[style].get("attn_only") else tuple(range(model_of(style).cfg.n_layers))


@pytest.mark.parametrize("over", ["positions", "examples"])
@pytest.mark.parametrize("style", STYLES)
def test_saved_means_are_the_means(style: str, over: str, tmp_path: Path) -> None:
    model = model_of(style)
    measured = Mean(OTHERS, over=over, batch_size=2).measure(model, neurons=layers_of(style))
    measured.save(tmp_path / "means.safetensors")
    loaded = MeasuredMean.load(tmp_path / "means.safetensors", reference=OTHERS)
    assert loaded.as_dict() == measured.as_dict() == Mean(OTHERS, over=over).as_dict()
    pairs = zip(loaded.activations.tensors, measured.activations.tensors, strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    for sites in (edges(model), heads(model)):
        masked = [Masked(model, Masks(sites), ablation) for ablation in (Mean(OTHERS, over=over), loaded)]
        mask = torch.zeros(len(sites), dtype=torch.float64)
        fresh_means, from_file = (one(CLEAN, CORRUPT, mask=mask) for one in masked)
        assert error(fresh_means, from_file) <= 1e-12


def test_neurons_have_the_mean_of_real_tokens() -> None:
    model = model_of("gpt2")
    lengths = PADDED.attention_mask.sum(1).tolist()
    seen = [
        model.run_with_cache(ids[None, :length])[1]["blocks.1.mlp.hook_post"]
        for ids, length in zip(PADDED.ids, lengths, strict=True)
    ]
    found = Mean(PADDED, batch_size=2).means(backend_of_style("gpt2"), Wanted(streams=False, neurons=(1,)))
    assert error(found.neurons[1], torch.cat(seen, 1).mean(1, keepdim=True)) <= 1e-12
    assert found.streams == ()


def test_other_models_prompts_and_files_are_refused(tmp_path: Path) -> None:
    measured, path = Mean(OTHERS).measure(model_of("gpt2")), tmp_path / "means.safetensors"
    measured.save(path)
    other = fresh("gpt2")
    with torch.no_grad():
        other.embed.W_E += 1
    masked = Masked(other, Masks(heads(other)), MeasuredMean.load(path))
    with pytest.raises(ValueError, match="These means are of model 'gpt2'"):
        masked(CLEAN)
    with pytest.raises(ValueError, match="are of other prompts"):
        MeasuredMean.load(path, reference=CLEAN)
    with pytest.raises(ValueError, match="are of other prompts"):
        MeasuredMean.load(path, reference=PADDED)  # the same tokens, of which some do not count
    model = model_of("gpt2")
    with pytest.raises(ValueError, match=r"lack the neurons of layers \[0, 1, 2\].*neurons=\(0, 1, 2\)"):
        Masked(model, Masks(neurons(model)), measured)(CLEAN)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is not a means"):
        MeasuredMean.load(path)
    with pytest.raises(ValueError, match="Cannot read the means"):
        MeasuredMean.load(tmp_path / "none")


def test_means_need_prompts_of_a_known_kind() -> None:
    model = model_of("gpt2")
    with pytest.raises(ValueError, match="needs reference prompts but has none"):
        Masked(model, Masks(heads(model)), Mean())(CLEAN)
    per_position = Mean(OTHERS, over="examples").measure(model)
    with pytest.raises(ValueError, match="prompts of one length"):
        Masked(model, Masks(heads(model)), per_position)(CLEAN.ids[:, :4])
    with pytest.raises(ValueError, match="Learned constants are the same at all positions"):
        Constant(model, per_position)
    with pytest.raises(ValueError, match=r"lack neurons of layers \(1,\)"):
        Constant(model, Mean(OTHERS).measure(model), neurons=(1,))


@pytest.mark.parametrize("style", STYLES)
def test_constants_start_as_the_mean(style: str) -> None:
    model = model_of(style)
    for sites in (edges(model), heads(model)):
        mask = torch.full((len(sites),), 0.3, dtype=torch.float64)
        mean, constant = Mean(OTHERS), Constant(model, Mean(OTHERS))
        found = Masked(model, Masks(sites), constant)(CLEAN, mask=mask)
        assert error(found, Masked(model, Masks(sites), mean)(CLEAN, mask=mask)) <= 1e-9


# ---- how they are measured


@pytest.mark.parametrize("over", ["positions", "examples"])
def test_one_batch_is_held_however_many_prompts_there_are(over: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the model runs, nothing is left of what it showed of earlier prompts."""
    backend, many = backend_of_style("gpt2"), Tokens(OTHERS.ids.repeat(5, 1))
    whole = Mean(OTHERS, over=over).means(backend, Wanted())
    observe, seen, sizes, held = backend.observe, list[weakref.ref[torch.Tensor]](), list[int](), list[int]()

    def watched(tokens: Tokens, wanted: Wanted) -> Activations:
        held.append(sum(reference() is not None for reference in seen))
        sizes.append(len(tokens.ids))
        found = observe(tokens, wanted).map(torch.clone)
        seen.extend(weakref.ref(tensor) for tensor in found.tensors)
        return found

    monkeypatch.setattr(backend, "observe", watched)
    found = Mean(many, over=over, batch_size=4).means(backend, Wanted())
    assert sizes == [4] * 6 + [1]
    assert held == [0] * 7
    assert all(error(one, other) <= 1e-12 for one, other in zip(found.tensors, whole.tensors, strict=True))


@pytest.mark.parametrize("side", ["left", "right"])
def test_numbers_at_padded_places_do_not_count_even_where_they_are_none(side: str) -> None:
    model = fresh("gpt2")
    mask = torch.tensor([[1] * 6] * 3 + [[1] * 5 + [0], [1] * 3 + [0] * 3])
    tokens = Tokens(OTHERS.ids, mask if side == "right" else mask.flip(1))
    expected = Mean(tokens, batch_size=8).measure(model).activations
    padded = tokens.attention_mask[torch.argsort(tokens.lengths, stable=True)] == 0

    def spoilt(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return value.masked_fill(padded[..., None, None], torch.nan)

    with model.hooks([("blocks.2.attn.hook_z", spoilt)]):
        found = Mean(tokens, batch_size=8).measure(model).activations
    assert all(bool(tensor.isfinite().all()) for tensor in found.tensors)
    assert all(error(one, other) <= 1e-12 for one, other in zip(found.tensors, expected.tensors, strict=True))


def test_sums_of_low_precision_are_taken_in_float32() -> None:
    """A bfloat16 sum stops at 256 times a term; four hundred equal prompts have the mean of one."""
    model = fresh("gpt2", torch.bfloat16)
    one = Mean(Tokens(OTHERS.ids[:1])).measure(model).activations
    many = Mean(Tokens(OTHERS.ids[:1].repeat(400, 1)), batch_size=1).measure(model).activations
    assert all(tensor.dtype == torch.bfloat16 for tensor in many.tensors)
    for mean, single in zip(many.heads, one.heads, strict=True):
        assert error(mean.float(), single.float()) <= 0.02 * float(single.abs().max())


def test_the_order_of_prompts_and_the_size_of_batches_change_nothing_but_rounding() -> None:
    model, order = model_of("gpt2"), torch.tensor([4, 0, 3, 1, 2])
    expected = Mean(PADDED, batch_size=5).measure(model).activations
    found = Mean(PADDED.rows(order), batch_size=1).measure(model).activations
    assert all(error(one, other) <= 1e-12 for one, other in zip(found.tensors, expected.tensors, strict=True))


def test_pairs_cut_at_another_place_are_other_prompts() -> None:
    types = torch.tensor([[0, 0, 0, 1, 1, 1]] * 5)
    whole = fingerprint(Tokens(OTHERS.ids, None, types))
    assert whole != fingerprint(Tokens(OTHERS.ids, None, types.flip(1)))
    assert whole != fingerprint(Tokens(OTHERS.ids))
    assert whole == fingerprint(Tokens(OTHERS.ids, None, types.clone()))
