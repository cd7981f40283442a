"""The known data sets as tasks, one function each."""

from __future__ import annotations

from typing import Any

from tlprune.task import Task
from tlprune.tasks.labelled.classifying import classification
from tlprune.tasks.labelled.known import ENTAILMENT

NOT_ENTAILED = {"neutral": "non-entailment", "contradiction": "non-entailment"}


def sst2(model: Any, source: Any = None, **options: Any) -> Task:
    """Is a sentence, or part of one, of a film review negative or positive? (Socher et al. 2013; GLUE)

    Training examples are phrases, so parts of one sentence may be in training and validation; sentences of the test
    are in neither. ``options`` are those of :func:`~tlprune.tasks.classification`.
    """
    return classification(model, "sst2", source=source, **options)


def cola(model: Any, source: Any = None, **options: Any) -> Task:
    """Is a sentence acceptable English? (Warstadt et al. 2018; GLUE)

    ``test="out-of-domain"`` takes sentences of other books. The figure in use is Matthews correlation. ``options`` are
    those of :func:`~tlprune.tasks.classification`.
    """
    return classification(model, "cola", source=source, **options)


def stsb(model: Any, source: Any = None, **options: Any) -> Task:
    """How much do two sentences say the same, from 0 to 5? A regression. (Cer et al. 2017; GLUE)

    Its test set has labels: ``test="test"``. ``options`` are those of :func:`~tlprune.tasks.classification`.
    """
    return classification(model, "stsb", source=source, **options)


def mnli(model: Any, source: Any = None, **options: Any) -> Task:
    """Does the first sentence entail the second, contradict it, or neither? (Williams et al. 2018; GLUE)

    The test is the matched development set; ``test="mismatched"`` takes the other. ``options`` are those of
    :func:`~tlprune.tasks.classification`; ``classes`` names a model's outputs if they have another order, and
    ``only=("entailment", "contradiction")`` leaves neutral pairs out.
    """
    return classification(model, "mnli", source=source, **options)


def mnli_subset(model: Any, source: Any = None, **options: Any) -> Task:
    """Some thousand pairs of MNLI. Its part ``"dev"`` is not MNLI's development set, and figures do not compare.

    ``options`` are those of :func:`~tlprune.tasks.classification`.
    """
    return classification(model, "mnli-subset", source=source, **options)


def qqp(model: Any, source: Any = None, **options: Any) -> Task:
    """Do two questions ask the same? (Quora; GLUE)

    ``options`` are those of :func:`~tlprune.tasks.classification`.
    """
    return classification(model, "qqp", source=source, **options)


def qnli(model: Any, source: Any = None, **options: Any) -> Task:
    """Does a sentence of Wikipedia answer a question? (Rajpurkar et al. 2016; GLUE)

    ``options`` are those of :func:`~tlprune.tasks.classification`.
    """
    return classification(model, "qnli", source=source, **options)


def imdb(model: Any, source: Any = None, **options: Any) -> Task:
    """Is a film review negative or positive? (Maas et al. 2011)

    Reviews are long, and only their first ``max_length`` tokens are read. There is no development set, so the test is
    the test set. ``options`` are those of :func:`~tlprune.tasks.classification`.
    """
    return classification(model, "imdb", source=source, **options)


def tweet_sentiment(model: Any, source: Any = None, **options: Any) -> Task:
    """Is a tweet negative, neutral or positive? (Rosenthal et al. 2017; TweetEval, Barbieri et al. 2020)

    Its test set has labels: ``test="test"``. ``options`` are those of :func:`~tlprune.tasks.classification`;
    ``only=("negative", "positive")`` leaves neutral tweets out.
    """
    return classification(model, "tweet-sentiment", source=source, **options)


def ag_news(model: Any, source: Any = None, **options: Any) -> Task:
    """Which of four sections is a piece of news of? (Zhang et al. 2015)

    There is no development set, so the test is the test set. ``options`` are those of
    :func:`~tlprune.tasks.classification`.
    """
    return classification(model, "ag-news", source=source, **options)


def dbpedia(model: Any, source: Any = None, **options: Any) -> Task:
    """Which of 14 kinds of thing is an article about? Title and beginning are a pair. (Zhang et al. 2015)

    There is no development set, so the test is the test set. ``options`` are those of
    :func:`~tlprune.tasks.classification`.
    """
    return classification(model, "dbpedia", source=source, **options)


def hans(model: Any, source: Any = None, **options: Any) -> Task:
    """Does the first sentence entail the second, where word overlap misleads? 30 sub-cases. (McCoy et al. 2019)

    Made for models of MNLI: their neutral and contradiction both count as non-entailment, and the likeliest of their
    three outputs decides. ``batch.labels`` number the sub-cases, ``task.label_names`` names them, and
    :func:`~tlprune.subcases` tells them apart. All three splits are drawn from the evaluation set, which is all that
    most folders hold; a circuit found on another task may be measured on all of it with
    ``train_count=2, validation_count=2``.

    Args:
        model: a model that carries its tokenizer, or a tokenizer.
        source: where the data are.
        options: of :func:`~tlprune.tasks.classification`; ``classes`` names the model's outputs in their order, by
            default entailment, neutral, contradiction.
    """
    chosen = {"train": "dev", "classes": ENTAILMENT, "merge": NOT_ENTAILED, **options}
    return classification(model, "hans", source=source, **chosen)


def paws(model: Any, source: Any = None, **options: Any) -> Task:
    """Are two sentences of nearly the same words paraphrases? From Wikipedia. (Zhang et al. 2019)

    ``options`` are those of :func:`~tlprune.tasks.classification`.
    """
    return classification(model, "paws", source=source, **options)


def paws_qqp(model: Any, source: Any = None, **options: Any) -> Task:
    """Do two questions of nearly the same words ask the same? For models of QQP. (Zhang et al. 2019)

    Its files are made from Quora's by its authors' program. Its adversarial part are the pairs that are no duplicates:
    ``batch.rows((batch.answers[:, 0] == 0).nonzero()[:, 0])``. ``options`` are those of
    :func:`~tlprune.tasks.classification`.
    """
    return classification(model, "paws-qqp", source=source, **options)
