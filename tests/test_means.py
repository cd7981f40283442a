"""Means of activations: streamed, without padding, saved with what they are of, and refused elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from styles import CLEAN, CORRUPT, OTHERS, STYLES, backend_of_style, error, fresh, model_of

from tlprune.backends.activations import Wanted
from tlprune.masking.constants import Constant
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.masking.means import Mean, MeasuredMean
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
