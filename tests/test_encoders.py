"""Encoders from Hugging Face: every output is theirs, with padding and token types, whatever the head."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from encoders import MODELS, call, call_hf, encoder_of, fresh_encoder, hf_model_of, mask_of, prompts
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import error

import tlprune as tp
from tlprune.models.encoder import Head
from tlprune.task import Tokens

pytestmark = NEEDS_HOOKED_TRANSFORMER
each_model = pytest.mark.parametrize("name", MODELS)
each_padding = pytest.mark.parametrize("padding", [None, "right", "left"])
BARE = ("bert", "roberta")


@each_padding
@each_model
def test_every_output_is_that_of_hugging_face(name: str, padding: str | None) -> None:
    hf_model, tokens = hf_model_of(name), prompts(name, padding=padding)
    model = tp.from_huggingface(hf_model, device="cpu")
    states = call_hf(getattr(hf_model, hf_model.base_model_prefix, hf_model), tokens).last_hidden_state
    assert error(call(model, tokens, return_type="states"), states) <= 1e-12
    if "choices" in name:
        return
    theirs = call_hf(hf_model, tokens)
    expected = theirs.pooler_output if name in BARE else theirs.logits
    assert error(call(model, tokens), expected) <= 1e-12


@each_padding
@pytest.mark.parametrize("name", ["bert choices", "roberta choices"])
def test_scores_of_choices_are_those_of_hugging_face(name: str, padding: str | None) -> None:
    """Given as questions with their choices, or as rows."""
    hf_model, model = hf_model_of(name), encoder_of(name)
    rows = prompts(name, padding=padding, examples=8)
    parts = (rows.ids, rows.token_types, rows.attention_mask)
    ids, types, mask = (None if part is None else part.unflatten(0, (4, 2)) for part in parts)
    labels = torch.tensor([0, 1, 1, 0])
    theirs = hf_model(ids, attention_mask=mask, token_type_ids=types, labels=labels)
    found = model(ids, token_type_ids=types, one_zero_attention_mask=mask)
    assert error(found, theirs.logits) <= 1e-12
    assert error(model.head.loss(found, labels), theirs.loss) <= 1e-12
    assert error(call(model, rows), theirs.logits.view(8, 1)) <= 1e-12


LABELS = {
    "bert classes": torch.tensor([0, 2, 1]),
    "bert labels": torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=torch.float64),
    "bert number": torch.tensor([0.5, -1, 2], dtype=torch.float64),
    "bert words": torch.randint(31, (3, 7), generator=torch.Generator().manual_seed(0)).masked_fill(
        mask_of(3, "right") == 0, -100
    ),
    "roberta classes": torch.tensor([0, 1, 1]),
    "roberta number": torch.tensor([0.5, -1, 2], dtype=torch.float64),
    "roberta words": torch.full((3, 7), -100).index_fill(1, torch.tensor([2]), 5),
}


@pytest.mark.parametrize("name", LABELS)
def test_losses_are_those_of_hugging_face(name: str) -> None:
    tokens, model = prompts(name, padding="right"), encoder_of(name)
    expected = call_hf(hf_model_of(name), tokens, labels=LABELS[name]).loss
    assert error(model.head.loss(call(model, tokens), LABELS[name]), expected) <= 1e-12


@pytest.mark.parametrize("name", BARE)
def test_a_model_without_a_task_can_give_the_mean_state_of_real_tokens(name: str) -> None:
    tokens = prompts(name, padding="right")
    model = fresh_encoder(name)
    model.head = Head("pooling", pooling="mean")
    states = call(model, tokens, return_type="states")
    expected = torch.stack(
        [row[: int(mask.sum())].mean(0) for row, mask in zip(states, tokens.attention_mask, strict=True)]
    )
    assert error(call(model, tokens), expected) <= 1e-12
    with pytest.raises(ValueError, match="no loss of its own"):
        model.head.loss(expected, torch.zeros(3))


@each_model
def test_padding_on_the_right_changes_no_state(name: str) -> None:
    """Each prompt as if it were alone. (On the left it moves the positions of BERT, in Hugging Face too.)"""
    model = encoder_of(name)
    tokens = prompts(name, padding="right")
    states = call(model, tokens, return_type="states")
    for row, mask in enumerate(tokens.attention_mask):
        length = int(mask.sum())
        types = None if tokens.token_types is None else tokens.token_types[row : row + 1, :length]
        alone = call(model, Tokens(tokens.ids[row : row + 1, :length], None, types), return_type="states")
        assert error(states[row : row + 1, :length], alone) <= 1e-12


@each_model
def test_hooks_caches_and_copies_work_as_on_any_hooked_model(name: str) -> None:
    model, tokens = fresh_encoder(name), prompts(name)
    expected = call(model, tokens)
    logits, cache = model.run_with_cache(tokens.ids, token_type_ids=tokens.token_types)
    assert torch.equal(logits, expected)
    assert set(cache) <= set(model.hook_dict)
    assert cache["blocks.2.hook_normalized_resid_post"].shape == (3, 7, 24)
    zeroed = model.run_with_hooks(
        tokens.ids, token_type_ids=tokens.token_types,
        fwd_hooks=[("blocks.0.attn.hook_z", lambda value, hook: torch.zeros_like(value))],
    )  # fmt: skip
    assert error(zeroed, expected) > 1e-3
    assert torch.equal(call(copy.deepcopy(model), tokens), expected)
    assert all(value.isfinite().all() for value in model.state_dict().values() if value.dim() > 0)
    assert (model.cfg.n_layers, model.cfg.d_model, len(model.blocks)) == (3, 24, 3)


def test_weights_are_rounded_where_another_precision_is_asked_for() -> None:
    hf_model = hf_model_of("bert classes", torch.float32)
    model = tp.from_huggingface(hf_model, device="cpu", dtype=torch.float64)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert error(model(prompts("bert classes").ids), hf_model.double()(prompts("bert classes").ids).logits) <= 1e-12


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "when", "john", "and", "mary", "went", "home")


def tokenizer_of(**options: Any) -> Any:
    import transformers

    return transformers.BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}, **options)


def test_strings_and_pairs_go_through_the_tokenizer() -> None:
    model, hf_model = fresh_encoder("bert classes"), hf_model_of("bert classes")
    with pytest.raises(ValueError, match="Strings need a tokenizer"):
        model(["when john went"])
    model.set_tokenizer(tokenizer_of())
    for texts in (["when john and mary went home", "john"], [("john", "went home"), ("when mary went", "home")]):
        found = tokenizer_of()(texts, return_tensors="pt", padding=True)
        assert error(model(texts), hf_model(**found).logits) <= 1e-12
    assert bool(found["token_type_ids"].any())
    expected = model(found["input_ids"], one_zero_attention_mask=found["attention_mask"])
    model.set_tokenizer(tokenizer_of(model_input_names=["input_ids", "attention_mask"]))
    assert torch.equal(model(texts), expected)


def test_masked_words_are_filled_in() -> None:
    model = fresh_encoder("bert words", vocab_size=len(WORDS))
    model.set_tokenizer(tokenizer_of())
    texts = ["john [MASK] home", "mary went [MASK]"]
    ids = tokenizer_of()(texts, return_tensors="pt")["input_ids"]
    best = model(ids)[ids == 4].argmax(-1)
    expected = [f"Prediction {place}: {WORDS[number]}" for place, number in enumerate(best.tolist())]
    assert model(texts, return_type="predictions") == expected


def test_what_no_encoder_has_is_refused() -> None:
    import transformers

    with pytest.raises(ValueError, match="GPT2Model cannot be converted"):
        tp.from_huggingface(transformers.GPT2Model(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2)))
    for changes, reason in (({"is_decoder": True}, "decoder's attention"), ({"type_vocab_size": 3}, "3 token types"),
                            ({"hidden_act": "tanh"}, "activation 'tanh'")):  # fmt: skip
        with pytest.raises(ValueError, match=reason):
            fresh_encoder("bert classes", **changes)
    with pytest.raises(ValueError, match="one score but the head has 2"):
        Head("multiple_choice", labels=2)


def test_the_random_models_are_random() -> None:
    """Norms and biases included, or a converter that drops them would pass."""
    for name in MODELS:
        assert all(float(p.detach().std()) > 0 for p in hf_model_of(name).parameters() if p.numel() > 1)
