"""Tasks for models that give a class or a number for a whole prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool

from tlprune.learning.correlations import f1, matthews, pearson, spearman
from tlprune.statistic import Statistic
from tlprune.task import MAIN, Batch, Metric, Stream, Task, Tokenisation
from tlprune.tasks.labelled.data import Labelled, described, read_labelled
from tlprune.tasks.labelled.encoding import encode, padded
from tlprune.tasks.labelled.known import DataSet
from tlprune.tasks.labelled.splitting import divided, twins
from tlprune.tasks.tokenising import backend_if_model, tokenizer_of


def classification(  # noqa: PLR0913
    model: Any,
    data: str | DataSet | Mapping[str, Labelled],
    *,
    source: Any = None,
    train: str = "train",
    test: str = "dev",
    train_count: int | None = 2000,
    validation_count: int = 500,
    test_count: int | None = None,
    classes: Sequence[str] | None = None,
    merge: Mapping[str, str] | None = None,
    only: Sequence[str] | None = None,
    max_length: int = 128,
    seed: int = 0,
) -> Task:
    """A task of labelled sentences or pairs, for a model that gives a class, or one number, per prompt.

    ``answers`` are numbers of classes. Of two classes each is the other's foil; among more there is none (-100), and
    figures that need one are left out. Of a regression the numbers are ``targets``, and there are no answers.
    ``labels`` number the sub-cases of data that have them, by their names in ``task.label_names``.

    Twins: the corrupted prompt of an example is another example of its split, padded to the same length and drawn by
    the seed, of another class wherever there is one. Their words do not correspond. So ``Mean`` has training prompts
    as its reference, in which every example stands for another of about as many times, and ``Resample`` exchanges
    whole inputs.

    Splits: the test is GLUE's development set, for the labels of its test sets are not public. Validation is held out
    of the training set, for a method sees it. No text is in two splits, and a text that occurs several times in the
    training set is taken once.

    Args:
        model: a model that carries its tokenizer, or a Hugging Face tokenizer.
        data: name of a known data set (see :func:`~tlprune.tasks.read_labelled`), the description of another, or
            examples under ``"train"`` and, if they are others, ``"test"``, such as
            :func:`~tlprune.tasks.labelled_data` gives.
        source: where the data are; see :func:`~tlprune.tasks.read_labelled`.
        train: the part for training and validation.
        test: the part for the test; where it is the same as ``train`` all three splits are drawn from it.
        train_count: training examples; ``None`` for all that are left.
        validation_count: validation examples.
        test_count: test examples, of each sub-case as many, as far as there are as many; ``None`` for all.
        classes: names of the model's outputs in their order, if they are not those of the data.
        merge: for outputs that are no class of the data the class that they count as.
        only: classes of the data to keep, in the order of their new numbers; examples of others are left out.
        max_length: tokens per prompt; longer ones are cut.
        seed: of the draws.

    Raises:
        ValueError: as reading the data does; if there are fewer examples than asked for, an output stands for no
            class, or the model predicts tokens or has another number of outputs.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> from tlprune.tasks.labelled.data import Labelled
        >>> texts = tuple(f"{name} is {word}" for name in ("John", "Mary", "Paul") for word in ("kind", "brave"))
        >>> data = Labelled("mine", texts, None, (1, 0) * 3, ("negative", "positive"))
        >>> tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
        >>> task = classification(tokenizer, {"train": data}, train_count=2, validation_count=2, seed=5)
        >>> batch = task.test
        >>> batch.answers.tolist(), batch.foils.tolist(), batch.positions.tolist()
        ([[1], [0]], [[0], [1]], [[0], [0]])
        >>> [tokenizer.decode(ids, skip_special_tokens=True) for ids in (batch.clean.ids[0], batch.corrupt.ids[0])]
        ['John is kind', 'John is brave']
    """
    tokenizer = tokenizer_of(model, predicts="prompts")
    examples = train_and_test(data, source, train, test)
    if only is not None:
        examples = {use: one.only(only) for use, one in examples.items()}
    meaning = meanings(examples["train"], classes, merge or {})
    _check_outputs(model, examples["train"], classes or examples["train"].classes, max_length=max_length)
    known = divided(
        examples["train"],
        examples.get("test"),
        train_count=train_count,
        validation_count=validation_count,
        test_count=test_count,
        seed=seed,
    )
    options = {
        "source": {name: one.fingerprint for name, one in examples.items()},
        "parts": [train, test],
        "counts": {name: len(one) for name, one in known.items()},
        "classes": list(classes or known["train"].classes),
        "merge": dict(merge or {}),
        "max_length": max_length,
        "seed": seed,
    }
    return _task(tokenizer, known, meaning, options)


def _check_outputs(model: Any, examples: Labelled, names: Sequence[str], *, max_length: int) -> None:
    """Raise a ValueError unless the model, where there is one, has an output for each name, or one for a regression."""
    backend = backend_if_model(model)
    if backend is None:
        return
    first = padded(encode(model.tokenizer, examples.rows([0]).prompts(), max_length=max_length), model.tokenizer)
    given, needed = backend.logits(first.to(backend.device), None).shape[-1], len(names) or 1
    if given != needed:
        raise ValueError(
            f"{examples.name} needs a model with {_counted(needed)} ({', '.join(names) or 'a regression'}) but this "
            f"{type(model).__name__} has {_counted(given)}. Fine-tune one for it (tlprune finetune), or name the "
            "outputs that yours has: classes=(...), with merge={output: class}."
        )


def _counted(outputs: int) -> str:
    return f"{outputs} output" + ("" if outputs == 1 else "s")


def train_and_test(
    data: str | DataSet | Mapping[str, Labelled], source: Any, train: str, test: str
) -> dict[str, Labelled]:
    """Examples for training and validation, and for the test where these are others.

    Raises:
        ValueError: as reading does, or there is one source for two parts.
    """
    if isinstance(data, Mapping):
        if {*data} not in ({"train"}, {"train", "test"}):
            raise ValueError(
                f"Examples are needed under 'train', and under 'test' where these are others, but are given under "
                f"{', '.join(map(repr, data))}. Validation examples are held out of 'train'."
            )
        return dict(data)
    if train == test:
        return {"train": read_labelled(data, train, source=source)}
    single = isinstance(source, (str, Path)) and Path(source).is_file()
    if single or not isinstance(source, (str, Path, Mapping, type(None))):
        raise ValueError(
            f"{described(data).name} needs examples of {train} and {test} but only one source of examples was given. "
            "Give a folder, a mapping of both, or the same part for both."
        )
    return {use: read_labelled(data, part, source=source) for use, part in (("train", train), ("test", test))}


def meanings(examples: Labelled, classes: Sequence[str] | None, merge: Mapping[str, str]) -> list[int]:
    """For each output of the model the number of the class that it counts as.

    Raises:
        ValueError: an output stands for no class, or a class has no output.

    Example:
        >>> pair = Labelled("hans", ("a",), ("b",), (1,), ("entailment", "non-entailment"))
        >>> merge = {"neutral": "non-entailment", "contradiction": "non-entailment"}
        >>> meanings(pair, ["contradiction", "neutral", "entailment"], merge)
        [1, 1, 0]
    """
    names = [merge.get(name, name) for name in classes or examples.classes]
    strangers, missing = ({*names} - {*examples.classes}), ({*examples.classes} - {*names})
    if strangers or missing:
        raise ValueError(
            f"Each output of the model must count as a class of {examples.name}, {', '.join(examples.classes)}, and "
            f"each class needs one, but {', '.join(sorted(strangers or missing))} "
            f"{'is none' if strangers else 'has none'}. Say so with merge={{output: class}}."
        )
    return [examples.classes.index(name) for name in names]


def _task(tokenizer: Any, splits: Mapping[str, Labelled], meaning: list[int], options: Mapping[str, Any]) -> Task:
    first = splits["train"]
    kinds = tuple(sorted({kind for one in splits.values() for kind in one.subcases or ()}))
    seed, length = options["seed"], options["max_length"]
    batches = {
        split: _batch(tokenizer, one, meaning, kinds, max_length=length, seed=seed) for split, one in splits.items()
    }
    tokenisation = Tokenisation(True, tokenizer.padding_side, "prompt")
    metrics = _metrics(first, meaning)
    return Task(first.name, {MAIN: Stream(**batches)}, tokenisation, options, metrics=metrics, label_names=kinds)


def _metrics(examples: Labelled, meaning: list[int]) -> dict[str, Metric | Statistic]:
    if examples.regression:
        return {"pearson": pearson(), "spearman": spearman()}
    if len({*meaning}) < len(meaning):
        return {}
    own: dict[str, Metric | Statistic] = {"matthews": matthews(len(meaning))}
    return own | ({"f1": f1()} if len(meaning) == 2 else {})


def _batch(
    tokenizer: Any, examples: Labelled, meaning: list[int], kinds: tuple[str, ...], *, max_length: int, seed: int
) -> Batch:
    rows = encode(tokenizer, examples.prompts(), max_length=max_length)
    width, count = max(map(len, rows)), len(rows)
    classes = None if examples.regression else [int(label) for label in examples.labels]
    others = twins(classes, count, seed=seed)
    none = torch.full((count, 1), -100)
    answers = none if classes is None else torch.tensor([[meaning.index(label)] for label in classes])
    return Batch(
        index=torch.arange(count),
        clean=padded(rows, tokenizer, width=width),
        corrupt=padded([rows[other] for other in others], tokenizer, width=width),
        positions=torch.zeros(count, 1, dtype=torch.long),
        answers=answers,
        foils=1 - answers if len(meaning) == 2 else none,
        labels=None if examples.subcases is None else torch.tensor([kinds.index(one) for one in examples.subcases]),
        accepted=_accepted(classes, meaning),
        targets=torch.tensor(examples.labels, dtype=torch.float32) if classes is None else None,
    )


def _accepted(classes: list[int] | None, meaning: list[int]) -> Bool[torch.Tensor, "example class"] | None:
    """Where several outputs count as one class, those that are right."""
    if classes is None or len({*meaning}) == len(meaning):
        return None
    return torch.tensor(classes)[:, None] == torch.tensor(meaning)
