"""Tasks of labelled texts for language models: a prompt and a text, and the word that the model is to say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tlprune.backends import backend_of
from tlprune.backends.prompting import embedded_tokens
from tlprune.task import MAIN, Batch, Stream, Task, Tokenisation, Tokens
from tlprune.tasks.labelled.classifying import train_and_test
from tlprune.tasks.labelled.data import Labelled
from tlprune.tasks.labelled.encoding import Encoded, padded
from tlprune.tasks.labelled.known import DataSet
from tlprune.tasks.labelled.splitting import divided, twins
from tlprune.tasks.templates import Reader, reader_for
from tlprune.tasks.tokenising import tokenizer_of
from tlprune.tasks.verbaliser import Words, word_ids, word_metrics

MOST_TEXT = 128  # tokens of a text, where nothing else is said


def prompted(  # noqa: PLR0913
    model: Any,
    data: str | DataSet | Mapping[str, Labelled],
    *,
    length: int = 16,
    words: Words | None = None,
    template: str | None = None,
    only: Sequence[str] | None = None,
    source: Any = None,
    train: str = "train",
    test: str = "dev",
    train_count: int | None = 2000,
    validation_count: int = 500,
    test_count: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
) -> Task:
    """A task of labelled sentences or pairs, for a language model that says the class in a word.

    Prompts hold ``length`` prompt tokens: ids from the model's number of embedded tokens on, which it reads as the
    vectors of the :class:`~tlprune.Prompt` that is attached to it. Encoders have them in front of all tokens, [CLS]
    included, and are read at the first, which is to be [MASK]; decoders have them behind the text and are read at the
    last. ``answers`` are the tokens of the words; of two classes each is the other's foil, among more there is none
    (-100). The task's own figures, ``word_accuracy`` and ``word_cross_entropy``, are of a model that chooses among the
    words alone.

    Splits, sub-cases and twins are those of :func:`~tlprune.tasks.classification`: a twin is another example, of
    another class wherever there is one, and holds the same prompt. Where a decoder's tokenizer pads on the left, the
    prompts of all examples stand at the same positions.

    Texts are put together as the model's tokenizer does it (encoders), or by the template. A text that is too long is
    cut at its end, of a pair the longer one; prompt and template are never cut.

    Args:
        model: a language model that carries its tokenizer: a decoder, or an encoder with a head for masked words.
        data: as of :func:`~tlprune.tasks.classification`; its labels must be classes.
        length: prompt tokens; 0 for none, so that a template says it all.
        words: for each class the word that stands for it; see ``word_ids`` of ``tlprune.tasks.verbaliser``.
        template: what is written around ``{text}``, and ``{pair}`` in pairs; in encoders without prompt tokens it has
            the mask token, which is read. By default the texts alone, a decoder's pairs with a line break between.
        only: the classes that are taken; all by default.
        source: where the data are; see :func:`~tlprune.tasks.read_labelled`.
        train: the part for training and validation.
        test: the part for the test.
        train_count: training examples; ``None`` for all that are left.
        validation_count: validation examples.
        test_count: test examples; ``None`` for all.
        max_length: tokens of a text with its template; by default 128, or what the context has room for.
        seed: of the draws.

    Raises:
        ValueError: as of :func:`~tlprune.tasks.classification`; prompt and text are longer than the model's context; a
            word is of several tokens or unknown; a split has one class only; the template lacks a field or the mask.

    Source: Wang et al., "Finding Skill Neurons in Pre-trained Transformer-based Language Models" (EMNLP 2022), 2.1.

    Example:
        >>> import tlprune as tp
        >>> texts = tuple(f"{name} is {word}" for name in ("John", "Mary", "Paul") for word in ("kind", "brave"))
        >>> data = tp.tasks.Labelled("mine", texts, None, (1, 0) * 3, ("negative", "positive"))
        >>> model = tp.load("testbed")
        >>> counts = {"train_count": 2, "validation_count": 2, "test_count": 2, "seed": 1}
        >>> task = prompted(model, {"train": data}, length=2, words=("nervous", "brave"), **counts)
        >>> row, place = task.test.clean.ids[0], int(task.test.positions[0])
        >>> place == len(row) - 1, (row[-2:] - model.cfg.d_vocab).tolist()
        (True, [0, 1])
        >>> model.tokenizer.decode(task.test.answers[0])
        'brave'
    """
    tokenizer, examples = tokenizer_of(model), train_and_test(data, source, train, test)
    if only is not None:
        examples = {use: one.only(only) for use, one in examples.items()}
    said = word_ids(tokenizer, _classes(examples["train"]), words)
    reader = reader_for(model, examples["train"].pairs is not None, length=length, template=template)
    most = text_room(model, length, max_length)
    counts = {"train_count": train_count, "validation_count": validation_count, "test_count": test_count}
    splits = divided(examples["train"], examples.get("test"), **counts, seed=seed)
    _refuse_single_classes(splits)
    options = {
        "source": {name: one.fingerprint for name, one in examples.items()},
        "parts": [train, test],
        "counts": {name: len(one) for name, one in splits.items()},
        "classes": list(splits["train"].classes),
        "words": said,
        "prompt": {"length": length, "place": reader.place},
        "template": template,
        "max_length": most,
        "seed": seed,
    }
    kinds = tuple(sorted({kind for one in splits.values() for kind in one.subcases or ()}))
    first = embedded_tokens(backend_of(model).embedding)
    prompt = [first + number for number in range(length)]
    ids = list(said.values())
    batches = {
        split: _batch(reader, one, ids, prompt=prompt, kinds=kinds, max_length=most, seed=seed)
        for split, one in splits.items()
    }
    tokenisation = Tokenisation(reader.begins, tokenizer.padding_side, "last" if reader.place == "end" else "tagged")
    metrics = word_metrics(ids)
    return Task(
        splits["train"].name, {MAIN: Stream(**batches)}, tokenisation, options, metrics=metrics, label_names=kinds
    )


def _classes(examples: Labelled) -> tuple[str, ...]:
    if len(examples.classes) < 2:
        raise ValueError(
            f"A word stands for each class, of which there must be two, but {examples.name} has "
            f"{len(examples.classes) or 'numbers in place of them'}. Take data of classes."
        )
    return examples.classes


def text_room(model: Any, length: int, max_length: int | None) -> int:
    """Tokens that a text may have beside a prompt.

    Raises:
        ValueError: both do not fit into the model's context.
    """
    context = int(model.cfg.n_ctx)
    if length < 0 or context - length < 1 or (max_length is not None and max_length + length > context):
        text = "some text" if max_length is None else f"{max_length} tokens of text"
        raise ValueError(
            f"A prompt of {length} tokens and {text} must fit into the model's context of {context} tokens. Take a "
            f"shorter prompt (length=), or less text (max_length={max(1, context - max(length, 0))})."
        )
    return min(MOST_TEXT, context - length) if max_length is None else max_length


def _refuse_single_classes(splits: Mapping[str, Labelled]) -> None:
    wanted = {int(label) for one in splits.values() for label in one.labels}
    for name, one in splits.items():
        found = {int(label) for label in one.labels}
        if len(found) < 2 or (name == "train" and found != wanted):
            missing = ", ".join(one.classes[label] for label in sorted({*range(len(one.classes))} - found))
            raise ValueError(
                f"Each split needs examples of two classes, and training of all, but the {len(one)} {name} examples of "
                f"{one.name} have none of {missing}. Ask for more examples, or another seed."
            )


def _batch(
    reader: Reader,
    examples: Labelled,
    ids: Sequence[int],
    *,
    prompt: list[int],
    kinds: tuple[str, ...],
    max_length: int,
    seed: int,
) -> Batch:
    rows = [with_prompt(row, prompt, reader.place) for row in reader.encode(examples.prompts(), max_length)]
    classes = [int(label) for label in examples.labels]
    width, others = max(map(len, rows)), twins(classes, len(rows), seed=seed)
    clean = padded(rows, reader.tokenizer, width=width)
    answers = torch.tensor([[ids[label]] for label in classes])
    return Batch(
        index=torch.arange(len(rows)),
        clean=clean,
        corrupt=padded([rows[other] for other in others], reader.tokenizer, width=width),
        positions=_starts(clean) + torch.tensor([[reader.read_at(row, len(prompt))] for row in rows]),
        answers=answers,
        foils=ids[0] + ids[1] - answers if len(ids) == 2 else torch.full_like(answers, -100),
        labels=None if examples.subcases is None else torch.tensor([kinds.index(one) for one in examples.subcases]),
    )


def with_prompt(row: Encoded, prompt: list[int], place: str) -> Encoded:
    """A text with prompt tokens in front or behind; they are of the first sentence.

    Example:
        >>> with_prompt(Encoded([5, 6], [0, 1]), [30, 31], "start")
        Encoded(ids=[30, 31, 5, 6], types=[0, 0, 0, 1])
    """
    types = None if row.types is None else [0] * len(prompt)
    if place == "start":
        return Encoded(prompt + row.ids, None if types is None else types + (row.types or []))
    return Encoded(row.ids + prompt, None if types is None else (row.types or []) + types)


def _starts(tokens: Tokens) -> torch.Tensor:
    """The first position of each example that is no padding."""
    mask = torch.ones_like(tokens.ids) if tokens.attention_mask is None else tokens.attention_mask
    return mask.argmax(1, keepdim=True)
