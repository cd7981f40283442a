"""Prompted tasks: where prompt tokens stand and are read, the words, joined pairs, cuts, and what is refused."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from encoders import hf_model_of
from test_classification import FEW, SENTIMENT
from torch import Tensor

import tlprune as tp
from tlprune.tasks import Labelled, prompted
from tlprune.tasks.verbaliser import word_ids

WORDS = ("nervous", "brave")
KNOWN = ("John", "Mary", "Paul", "Anna", "James", "kind", "brave", "is")  # to every tokenizer here


def sentences(count: int, *, classes: tuple[str, ...] = SENTIMENT, pairs: bool = False) -> Labelled:
    """Different sentences of two to seven words; the label is their number, by classes, or that number."""
    rng, texts = Random(0), dict[str, int]()
    while len(texts) < count:
        length = rng.randint(2, 7)
        texts.setdefault(" ".join(rng.choices(KNOWN, k=length)), length)
    labels = tuple(length % len(classes) for length in texts.values()) if classes else tuple(map(float, texts.values()))
    return Labelled("mine", tuple(texts), tuple(reversed(texts)) if pairs else None, labels, classes)


@pytest.fixture(scope="module")
def decoder() -> Any:
    return tp.load("testbed")


@pytest.fixture
def encoder(bert: Any) -> Any:
    model = tp.from_huggingface(
        hf_model_of("bert words", vocab_size=len(bert), max_position_embeddings=32), device="cpu"
    )
    model.tokenizer = bert
    return model


def made(model: Any, *, pairs: bool = False, data: Labelled | None = None, **options: Any) -> tuple[tp.Task, Labelled]:
    data = data or sentences(50, pairs=pairs)
    options.setdefault("words", WORDS)
    return prompted(model, {"train": data}, **FEW, **options), data


def real(tokens: tp.Tokens, row: int) -> Tensor:
    mask = tokens.attention_mask
    return tokens.ids[row] if mask is None else tokens.ids[row][mask[row].bool()]


def texts_of(task: tp.Task, tokenizer: Any, vocabulary: int) -> list[str]:
    """What a batch's rows say, without prompt tokens and special ones."""
    rows = [real(task.test.clean, row) for row in range(len(task.test))]
    return [tokenizer.decode(ids[ids < vocabulary], skip_special_tokens=True) for ids in rows]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_decoders_prompt_is_behind_the_text_and_read_at_its_last(
    decoder: Any, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder.tokenizer, "padding_side", side)
    task, data = made(decoder, length=3)
    first, ids = decoder.cfg.d_vocab, word_ids(decoder.tokenizer, data.classes, WORDS)
    batch = task.test
    for tokens in (batch.clean, batch.corrupt):
        assert all(real(tokens, row)[-3:].tolist() == [first, first + 1, first + 2] for row in range(len(batch)))
    assert bool((batch.clean.ids.gather(1, batch.positions) == first + 2).all())
    assert {(len(set(batch.positions.flatten().tolist())) == 1)} == {side == "left"}
    labels: dict[str, Any] = dict(zip(data.texts, data.labels, strict=True))
    said: Any = list(ids.values())
    for row, text in enumerate(texts_of(task, decoder.tokenizer, first)):
        assert batch.answers[row].tolist() == [said[labels[text]]]
        assert batch.foils[row].tolist() == [said[1 - labels[text]]]
    assert bool((batch.clean.ids != batch.corrupt.ids).any(1).all())


@pytest.mark.parametrize("pairs", [False, True])
def test_an_encoders_prompt_is_in_front_of_what_its_tokenizer_gives(encoder: Any, pairs: bool) -> None:
    bert, task_data = encoder.tokenizer, made(encoder, pairs=pairs, length=4)
    batch, data = task_data[0].test, task_data[1]
    own = {tuple(bert(*texts)["input_ids"]) for texts in data.prompts()}
    for row in range(len(batch)):
        ids = real(batch.clean, row)
        assert ids[:4].tolist() == [len(bert) + number for number in range(4)]
        assert tuple(ids[4:].tolist()) in own
    assert batch.positions.unique().tolist() == [0]
    assert batch.clean.token_types is not None
    assert int(batch.clean.token_types[:, :5].max()) == 0
    assert int(batch.clean.token_types.max()) == int(pairs)


def test_a_decoders_pairs_are_never_glued(gpt2: Any) -> None:
    from styles import fresh

    model = fresh("gpt2", torch.float32, d_vocab=len(gpt2), n_ctx=64)
    model.tokenizer = gpt2
    task, data = made(model, pairs=True, length=2, words=("bad", "good"))
    wanted = {"\n".join(pair) for pair in data.prompts()}
    assert {*texts_of(task, gpt2, len(gpt2))} <= wanted
    other, _ = made(model, pairs=True, length=2, words=("bad", "good"), template="{pair}? {text}.")
    assert {*texts_of(other, gpt2, len(gpt2))} <= {f"{second}? {first}." for first, second in data.prompts()}
    assert task.tokenisation.prepend_bos
    assert task.test.clean.ids[0, 0] == gpt2.bos_token_id


def test_long_texts_are_cut_and_never_prompt_or_template(decoder: Any, encoder: Any) -> None:
    for model, special in ((decoder, 1), (encoder, 2)):
        task, _ = made(model, length=3, max_length=special + 2)
        ids = task.test.clean.ids
        prompt_tokens = ids >= (decoder.cfg.d_vocab if model is decoder else len(encoder.tokenizer))
        assert prompt_tokens.sum(1).unique().tolist() == [3]
        assert ids.shape[1] == 3 + special + 2
    task, data = made(decoder, length=2, template="is {text} kind", max_length=6)
    for text in texts_of(task, decoder.tokenizer, decoder.cfg.d_vocab):
        words = text.split()
        assert (words[0], words[-1], len(words) <= 5) == ("is", "kind", True)
        assert any(one.startswith(" ".join(words[1:-1])) for one in data.texts)
    assert task.test.clean.ids.shape[1] == 8
    pairs, _ = made(decoder, pairs=True, length=2, template="{text} nervous {pair}", max_length=6)
    kept = [text.split(" nervous ")[0] for text in texts_of(pairs, decoder.tokenizer, decoder.cfg.d_vocab)]
    assert all(kept)


def test_a_template_of_an_encoder_is_read_at_its_mask(encoder: Any) -> None:
    bert = encoder.tokenizer
    task, data = made(encoder, length=0, template="{text}. It was [MASK].")
    batch = task.test
    assert int(batch.clean.ids.max()) < len(bert)
    assert bool((batch.clean.ids.gather(1, batch.positions) == bert.mask_token_id).all())
    assert {tuple(real(batch.clean, row).tolist()) for row in range(len(batch))} <= {
        tuple(bert(f"{text}. It was [MASK].")["input_ids"]) for text in data.texts
    }
    assert tp.Masked(encoder, tp.Masks(tp.neurons(encoder)), tp.Zero())(batch.rows(torch.arange(2))).shape[1] == 1


def test_options_tell_the_words_and_the_prompt(decoder: Any) -> None:
    task, _ = made(decoder, length=3, words={"positive": "brave", "negative": "nervous"})
    assert task.options["prompt"] == {"length": 3, "place": "end"}
    assert list(task.options["words"]) == list(WORDS)
    assert task.fingerprint == made(decoder, length=3)[0].fingerprint != made(decoder, length=2)[0].fingerprint


def test_figures_are_of_the_words_alone(decoder: Any) -> None:
    task, _ = made(decoder, length=2)
    with tp.Prompt.random(decoder, 2).attached(decoder):
        found = tp.Masked(decoder, tp.Masks(tp.mlps(decoder)), tp.Zero())(task.test, mask=torch.ones(4))
    pair = torch.cat([found[:, 0].gather(1, task.test.answers), found[:, 0].gather(1, task.test.foils)], 1)
    metrics: Any = task.metrics
    right = metrics["word_accuracy"](found, task.test, found)
    assert torch.equal(right, (pair[:, 0] > pair[:, 1]).double())
    nats = metrics["word_cross_entropy"](found, task.test, found)
    assert torch.allclose(nats, -pair.log_softmax(-1)[:, 0])


def test_words_of_three_classes_have_no_foils_and_usual_names(encoder: Any) -> None:
    classes = ("unlikely thing", "maybe so", "likely thing")
    task, _ = made(encoder, data=sentences(50, classes=classes), words=None)
    assert list(task.options["words"]) == ["negative", "neutral", "positive"]
    assert task.test.foils.unique().tolist() == [-100]
    assert len(task.test.answers.unique()) == 3


def test_some_of_the_classes_make_a_task_of_two(encoder: Any) -> None:
    data = sentences(60, classes=("negative", "neutral", "positive"))
    task, _ = made(encoder, data=data, only=("negative", "positive"), words=None)
    assert list(task.options["words"]) == ["negative", "positive"]
    assert bool((task.test.foils >= 0).all())


def test_words_are_taken_as_within_a_text(gpt2: Any, bert: Any) -> None:
    assert list(word_ids(gpt2, ("negative", "positive")).values()) == [
        gpt2.encode(" negative")[0],
        gpt2.encode(" positive")[0],
    ]
    assert list(word_ids(bert, ("no", "yes")).values()) == bert.convert_tokens_to_ids(["no", "yes"])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"words": ("nervous", "flummoxed")}, "'flummoxed' is unknown"),
    ({"words": ("nervous", "so brave")}, "'so brave' is of 2 tokens"),
    ({"words": ("brave", "brave")}, "a word of its own"),
    ({"words": ("brave",)}, "a word for each class, negative, positive, but has 1"),
    ({"words": {"negative": "brave", "good": "kind"}}, "a word for each class"),
    ({"length": 4096}, "must fit into the model's context"),
    ({"length": -1}, "must fit into the model's context"),
    ({"length": 16, "max_length": 4000}, "must fit into the model's context"),
    ({"template": "so {pair}"}, r"holds \{text\}, once each"),
    ({"template": "so {text"}, r"holds \{text\}, once each"),
    ({"template": "so " * 9 + "{text}", "max_length": 8}, "leaves none of 8 tokens"),
    ({"data": sentences(50, classes=())}, "there must be two"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_what_makes_no_task_is_one_clear_error(decoder: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(decoder, **options)


def test_a_single_class_in_a_split_is_refused(decoder: Any) -> None:
    data = sentences(50)
    one = Labelled("mine", data.texts, None, (1,) * 50, data.classes)
    with pytest.raises(ValueError, match="have none of negative"):
        made(decoder, data=one)


def test_encoders_need_a_mask_somewhere_and_models_must_predict_tokens(encoder: Any) -> None:
    with pytest.raises(ValueError, match="is read at a mask token"):
        made(encoder, length=0, template="{text} so")
    data = sentences(50)
    masked = Labelled("mine", tuple(f"{text} [MASK]" for text in data.texts), None, data.labels, data.classes)
    with pytest.raises(ValueError, match="must be in the template alone"):
        made(encoder, length=0, template="{text} [MASK]", data=masked)
    with pytest.raises(ValueError, match="needs a model that predicts tokens"):
        made(tp.from_huggingface(hf_model_of("bert classes"), device="cpu"))
