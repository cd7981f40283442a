"""Soft prompts: vectors equal to embeddings are the tokens, gradients reach them, and misuse is one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bridges import bridged
from encoders import fresh_encoder, hf_model_of, plain_encoder
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import fresh, refuses_choice
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.backends.prompting import embedded_tokens
from tlprune.prompts.making import SPREAD, embedded
from tlprune.task import Tokens

MODELS: dict[str, Any] = {
    "gpt2": lambda: fresh("gpt2"),
    "llama": lambda: fresh("llama"),
    "bert words": lambda: fresh_encoder("bert words"),
    "roberta words": lambda: fresh_encoder("roberta words"),
    "bridged gpt2": lambda: bridged("gpt2"),
    "bridged gemma2": lambda: bridged("gemma2"),
    "bridged bert words": lambda: tp.bridge(hf_model_of("bert words")),
    "bridged roberta words": lambda: tp.bridge(hf_model_of("roberta words")),
    "plain encoder": plain_encoder,
}
ENCODERS = [name for name in MODELS if "bert" in name or "encoder" in name]
each_model = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=NEEDS_HOOKED_TRANSFORMER if "plain" in name else ()) for name in MODELS]
)
PROMPT, EXAMPLES, WIDTH = 3, 2, 7


def two_ways(name: str, model: Any, *, side: str | None = None) -> tuple[Tokens, Tokens, Tensor]:
    """The same prompts with real tokens and with prompt tokens, and the vectors that make them equal."""
    generator = torch.Generator().manual_seed(5)
    tokens = embedded_tokens(backend_of(model).embedding)
    plain = torch.randint(3, tokens, (EXAMPLES, WIDTH), generator=generator)
    words = torch.randint(3, tokens, (PROMPT,), generator=generator)
    place = slice(0, PROMPT) if name in ENCODERS else slice(WIDTH - PROMPT, WIDTH)
    plain[:, place] = words
    soft = plain.clone()
    soft[:, place] = tokens + torch.arange(PROMPT)
    mask = None if side is None else torch.ones_like(plain)
    if mask is not None:
        mask[0, :2] = 0
    return Tokens(plain, mask), Tokens(soft, mask), embedded(model, words.tolist())


def masked_runs(model: Any) -> dict[str, Any]:
    """A masked model for each kind of sites, with mask values strictly between 0 and 1."""
    sites = {"edges": tp.edges(model), "nodes": tp.heads(model) + tp.mlps(model), "neurons": tp.neurons(model)}
    return {kind: tp.Masked(model, tp.Masks(own), tp.Zero()) for kind, own in sites.items()}


def values_for(masked: Any) -> Tensor:
    return 0.2 + 0.7 * torch.rand(len(masked.sites), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@each_model
@pytest.mark.parametrize("side", [None, "left"])
def test_vectors_that_equal_embeddings_are_those_tokens(name: str, side: str | None) -> None:
    model = MODELS[name]()
    if side is not None and (name in ENCODERS or "gemma" in name):
        return  # an encoder's prompt would be padding; a window of padding alone gives no numbers
    plain, soft, vectors = two_ways(name, model, side=side)
    backend = backend_of(model)
    with torch.no_grad(), tp.Prompt(vectors).attached(model):
        found, seen = backend.logits(soft, None), backend.observe(soft)
    with torch.no_grad():
        wanted, told = backend.logits(plain, None), backend.observe(plain)
    real = slice(None) if plain.attention_mask is None else plain.attention_mask.bool()
    assert torch.equal(found[real], wanted[real])
    assert all(torch.equal(one[real], other[real]) for one, other in zip(seen.tensors, told.tensors, strict=True))


@pytest.mark.parametrize(
    "name",
    [  # a bridge's Llama norms in float32, which central differences feel
        *("gpt2", pytest.param("llama", marks=NEEDS_HOOKED_TRANSFORMER), "bert words", "bridged gpt2"),
        "bridged bert words",
    ],
)
def test_masked_runs_take_prompts_and_their_gradients_are_right(name: str) -> None:
    """Central differences, at a random direction, with masks inside (0, 1)."""
    model = MODELS[name]()
    plain, soft, vectors = two_ways(name, model)
    direction = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(2), dtype=vectors.dtype)
    for kind, masked in masked_runs(model).items():
        mask = values_for(masked)
        wanted = masked(plain, mask=mask)

        def run(at: Tensor, masked: Any = masked, mask: Tensor = mask) -> Tensor:
            with tp.Prompt(at).attached(model):
                return masked(soft, mask=mask)

        assert float((run(vectors) - wanted).abs().max()) < 1e-9, kind
        weighing = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(3), dtype=wanted.dtype)
        (gradient,) = torch.autograd.grad((run(leaf := vectors.clone().requires_grad_()) * weighing).sum(), leaf)
        step = 1e-5
        rise = ((run(vectors + step * direction) - run(vectors - step * direction)) * weighing).sum() / (2 * step)
        slope = (gradient * direction).sum()
        assert float(slope.abs()) > 1e-3, kind
        assert float((rise - slope).abs()) < 1e-6 * max(1.0, float(slope.abs())), kind
    assert all(parameter.grad is None for parameter in model.parameters())


@each_model
def test_nothing_stays_on_the_model(name: str) -> None:
    model = MODELS[name]()
    plain, soft, vectors = two_ways(name, model)
    backend = backend_of(model)
    before = backend.logits(plain, None)
    with pytest.raises(ValueError, match="at least 5 vectors"), tp.Prompt(vectors + 1).attached(model):
        backend.logits(Tokens(soft.ids + 2), None)
    assert torch.equal(backend.logits(plain, None), before)
    assert not backend.embedding._forward_hooks
    assert not backend.embedding._forward_pre_hooks
    with pytest.raises(ValueError, match=r"at least 3 vectors.*no prompt is attached"):
        backend.logits(soft, None)
    with pytest.raises(ValueError, match="no prompt is attached"):
        backend.observe(soft)


@each_model
def test_a_prompt_that_is_too_short_wide_or_one_too_many_is_refused(name: str) -> None:
    model = MODELS[name]()
    _, soft, vectors = two_ways(name, model)
    backend = backend_of(model)
    with tp.Prompt(vectors[:2]).attached(model):
        with pytest.raises(ValueError, match=r"at least 3 vectors.*has 2"):
            backend.logits(soft, None)
        with pytest.raises(ValueError, match=r"at least 3 vectors.*has 2"):
            backend.embedding(soft.ids)
        with pytest.raises(ValueError, match="one prompt at a time"), tp.Prompt(vectors).attached(model):
            pass
    with pytest.raises(ValueError, match="prompt's vectors have 5"), tp.Prompt(vectors[:, :5]).attached(model):
        pass
    with tp.Prompt(torch.cat([vectors, vectors])).attached(model):  # longer than needed is fine
        longer = backend.logits(soft, None)
    with tp.Prompt(vectors).attached(model):
        assert torch.equal(backend.logits(soft, None), longer)


def test_another_precision_rounds_the_vectors_and_passes_their_gradient() -> None:
    model = fresh("gpt2", torch.bfloat16)
    _, soft, vectors = two_ways("gpt2", model)
    assert vectors.dtype == torch.float32
    leaf = vectors.clone().requires_grad_()
    with tp.Prompt(leaf).attached(model):
        logits = backend_of(model).logits(soft, None)
    assert logits.dtype == torch.bfloat16
    logits.float().logsumexp(-1).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.float32
    assert bool((leaf.grad != 0).all(1).all())


def test_a_decoders_random_prompt_is_small_noise_of_a_seed() -> None:
    model = fresh("gpt2")
    prompt = tp.Prompt.random(model, 400, seed=3)
    assert (len(prompt), prompt.place, prompt.frozen) == (400, "end", 0)
    # 12,800 draws: the standard error of the deviation is 0.0002.
    assert float(prompt.vectors.std()) == pytest.approx(SPREAD, abs=0.001)
    assert prompt.hash == tp.Prompt.random(model, 400, seed=3).hash
    assert prompt.hash != tp.Prompt.random(model, 400, seed=4).hash
    with pytest.raises(ValueError, match="at least one vector but 0"):
        tp.Prompt.random(model, 0)


@pytest.mark.parametrize("bridge", [pytest.param(False, marks=NEEDS_HOOKED_TRANSFORMER), True])
def test_an_encoders_prompts_begin_with_the_embedding_of_mask(bert: Any, bridge: bool) -> None:
    hf_model = hf_model_of("bert words", vocab_size=len(bert))
    model = tp.bridge(hf_model) if bridge else tp.from_huggingface(hf_model, device="cpu")
    with pytest.raises(ValueError, match=r"no such token|carries none"):
        tp.Prompt.random(model, 4)
    model.tokenizer = bert
    table = hf_model.bert.embeddings.word_embeddings.weight.detach()
    prompt, written = tp.Prompt.random(model, 4), tp.Prompt.written(model, "It was")
    for one in (prompt, written):
        assert (one.place, one.frozen) == ("start", 1)
        assert torch.equal(one.vectors[0].to(table.dtype), table[bert.mask_token_id])
    assert (len(prompt), prompt.record["made"]) == (4, "random")
    assert torch.equal(
        written.vectors[1:].to(table.dtype), table[bert("it was", add_special_tokens=False)["input_ids"]]
    )
    assert written.record == {"made": "written", "text": "It was"}


def test_written_prompts_need_known_words() -> None:
    model = tp.load("testbed")
    for text, said in (("", "has none"), (" flummoxed", "an unknown one")):
        with pytest.raises(ValueError, match=rf"needs known tokens but '{text}' {said}|needs known tokens.*{said}"):
            tp.Prompt.written(model, text)


def test_a_saved_prompt_comes_back_bit_for_bit(tmp_path: Path) -> None:
    prompt = tp.Prompt.random(fresh("llama"), 5, seed=2)
    prompt.save(tmp_path / "new" / "folder")
    again = tp.Prompt.load(tmp_path / "new" / "folder")
    assert torch.equal(again.vectors, prompt.vectors)
    assert (again.place, again.frozen, again.record, again.hash) == ("end", 0, prompt.record, prompt.hash)
    with pytest.raises(ValueError, match="Cannot read the prompt"):
        tp.Prompt.load(tmp_path)
    (tmp_path / "prompt.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="is not a prompt"):
        tp.Prompt.load(tmp_path)


def test_the_hash_tells_place_and_frozen_ones_apart_and_not_the_record() -> None:
    vectors = torch.ones(2, 3)
    kinds = [
        tp.Prompt(vectors),
        tp.Prompt(vectors, "start"),
        tp.Prompt(vectors, "end", 1),
        tp.Prompt(vectors.view(3, 2)),
    ]
    assert len({one.hash for one in kinds}) == 4
    assert tp.Prompt(vectors, record={"made": "so"}).hash == kinds[0].hash


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"vectors": torch.zeros(0, 3)}, "at least one vector"),
        ({"vectors": torch.ones(2, 3), "frozen": 3}, "freezes 3"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tp.Prompt(**options)


def test_a_place_is_one_of_two() -> None:
    place: Any = "middle"
    with refuses_choice("place must be one of start, end"):
        tp.Prompt(torch.ones(2, 3), place)
