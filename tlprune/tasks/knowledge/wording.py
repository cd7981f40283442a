"""Which sentence a fact gets: of a template's variants, and of the training templates, the likeliest to a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tlprune.tasks.knowledge.facts import Fact, Worded
from tlprune.tasks.knowledge.sentences import Sentence, UnfitTailError, encoded, tail_log_probs
from tlprune.tasks.tokenising import beginning, tokenizer_of

MultiToken = Literal["raise", "skip"]
Uses = tuple[list[Sentence], ...]


@dataclass(frozen=True)
class Chosen:
    """The sentences of one fact.

    Attributes:
        fact: what they say.
        train: the sentence of the lowest perplexity among those for training.
        every: one sentence for each training template.
        validation: one sentence for each template that is held out for validation.
        test: one for each that is held out for the test.
    """

    fact: Fact
    train: Sentence
    every: tuple[Sentence, ...]
    validation: tuple[Sentence, ...]
    test: tuple[Sentence, ...]


def chosen_wordings(
    model: Any, facts: Iterable[Worded], *, multi_token: MultiToken = "raise", prepend_bos: bool | None = None
) -> list[Chosen]:
    """The sentences of each fact by which it is asked for.

    The perplexity of a sentence is that of its tail, ``1 / p(tail | what comes before)``. In each template the variant
    of the lowest perplexity is taken, and of the training templates that of the lowest; held-out templates have no say
    in this. Of equals the first is taken. A tokenizer in place of a model knows no perplexity: all are equal then.

    Args:
        model: a model with a tokenizer, or a tokenizer.
        facts: in words.
        multi_token: what to do about facts whose tail is not one token in each of their sentences; ``"skip"`` leaves
            them out.
        prepend_bos: as in :func:`~tlprune.tasks.jsonl`.

    Raises:
        ValueError: such a fact, which it names.

    Source: Bayazit et al. 2024, "Discovering Knowledge-Critical Subnetworks in Pretrained Language Models", whose facts
    have the template of the lowest perplexity.
    """
    tokenizer = tokenizer_of(model)
    first = beginning(tokenizer, prepend_bos)
    fit = [(one.fact, uses) for one in facts if (uses := _encoded(tokenizer, one, first, multi_token)) is not None]
    every = [sentence for _, uses in fit for group in uses for sentence in group]
    likely = _likely(model, tokenizer, every)
    return [_chosen(fact, uses, likely) for fact, uses in fit]


def _encoded(tokenizer: Any, one: Worded, first: Sequence[int], multi_token: MultiToken) -> Uses | None:
    """The variants for training, validation and test; nothing for a fact that is left out."""
    try:
        return tuple(
            [encoded(tokenizer, one.fact, name, text, first=first) for name, texts in use.items() for text in texts]
            for use in (one.train, one.validation, one.test)
        )
    except UnfitTailError:
        if multi_token == "raise":
            raise
        return None


def _likely(model: Any, tokenizer: Any, sentences: Sequence[Sentence]) -> Mapping[Sentence, float]:
    if model is tokenizer:
        return dict.fromkeys(sentences, 0.0)
    distinct = list(dict.fromkeys(sentences))
    return dict(zip(distinct, tail_log_probs(model, distinct).tolist(), strict=True))


def _chosen(fact: Fact, uses: Uses, likely: Mapping[Sentence, float]) -> Chosen:
    best = max(uses[0], key=likely.__getitem__)
    return Chosen(fact, best, *(_variants(use, likely) for use in uses))


def _variants(sentences: Sequence[Sentence], likely: Mapping[Sentence, float]) -> tuple[Sentence, ...]:
    """The likeliest sentence of each template."""
    templates = dict.fromkeys(one.template for one in sentences)
    return tuple(
        max((one for one in sentences if one.template == template), key=likely.__getitem__) for template in templates
    )
