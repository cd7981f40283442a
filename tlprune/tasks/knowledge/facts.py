"""Facts, the templates that put them into words, and the words of one fact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

HEAD, TAIL = "{head}", "{tail}"


@dataclass(frozen=True, order=True)
class Fact:
    """Something that is so: a head stands in a relation to a tail.

    Attributes:
        head: what the fact is about.
        relation: name of the relation; templates go by it.
        tail: what a model is asked for; in its sentence a single token.

    Example:
        >>> print(Fact("Vienna", "capital of", "Austria"))
        (Vienna, capital of, Austria)
    """

    head: str
    relation: str
    tail: str

    def __str__(self) -> str:
        return f"({self.head}, {self.relation}, {self.tail})"


@dataclass(frozen=True)
class Templates:
    """Sentences with ``{head}`` and, at the end, ``{tail}``, by what they are for.

    What follows the tail is left out, because a model predicts from left to right. No template of one use may serve
    another.

    Attributes:
        train: methods see facts in the one of these that the model finds most probable.
        validation: held-out paraphrases to choose a mask by.
        test: held-out paraphrases for the final figures.

    Raises:
        ValueError: there is none to train with, one lacks a slot or has its head behind its tail, or one has two uses.

    Example:
        >>> capital = Templates(("{head} is the capital of {tail}",), test=("{head} rules over {tail} .",))
        >>> capital.test
        ('{head} rules over {tail}',)
    """

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for use in ("train", "validation", "test"):
            object.__setattr__(self, use, tuple(map(_up_to_tail, getattr(self, use))))
        if not self.train:
            raise ValueError("Templates need one to train with but there is none. Give Templates(train=(...)).")
        every = [*self.train, *self.validation, *self.test]
        for template in every:
            if every.count(template) > 1:
                raise ValueError(
                    f"A template has one use but {template!r} is given {every.count(template)} times. Hold out others."
                )

    @classmethod
    def split(cls, templates: Sequence[str]) -> Templates:
        """Uses by the order: of three or more the last is for the test and the one before it for validation.

        Of two the second is for the test; a single one is for training.

        Example:
            >>> Templates.split(["{head} is in {tail}", "{head} lies in {tail}", "find {head} in {tail}"]).validation
            ('{head} lies in {tail}',)
        """
        if len(templates) < 3:
            return cls(tuple(templates[:1]), (), tuple(templates[1:]))
        return cls(tuple(templates[:-2]), tuple(templates[-2:-1]), tuple(templates[-1:]))


def _up_to_tail(template: str) -> str:
    begin, tail, _ = template.partition(TAIL)
    if not tail or HEAD not in begin:
        raise ValueError(
            f"A template needs {HEAD} and behind it {TAIL} but is {template!r}. Write one such as "
            f"'{HEAD} lives in {TAIL}'."
        )
    return begin + tail


@dataclass(frozen=True)
class Worded:
    """A fact and its sentences, each of which ends with the tail.

    Attributes:
        fact: what they say.
        train: by the name of the template, sentences to train with: variants that count as one wording, such as with
            and without an article.
        validation: held-out paraphrases, in the same form.
        test: others.
    """

    fact: Fact
    train: Mapping[str, tuple[str, ...]]
    validation: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    test: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def worded(facts: Iterable[Fact], templates: Mapping[str, Templates] | Mapping[str, Sequence[str]]) -> list[Worded]:
    """Facts in the words of templates.

    Args:
        facts: to be put into words.
        templates: by relation; plain lists of them are split by :meth:`Templates.split`.

    Raises:
        ValueError: a relation has no templates.

    Example:
        >>> (one,) = worded([Fact("Vienna", "in", "Austria")], {"in": ["{head} is in {tail}", "find {head} in {tail}"]})
        >>> one.train, one.test
        ({'{head} is in {tail}': ('Vienna is in Austria',)}, {'find {head} in {tail}': ('find Vienna in Austria',)})
    """
    uses = {
        name: known if isinstance(known, Templates) else Templates.split(list(known))
        for name, known in templates.items()
    }
    return [_worded(fact, uses) for fact in facts]


def _worded(fact: Fact, templates: Mapping[str, Templates]) -> Worded:
    if fact.relation not in templates:
        raise ValueError(
            f"The fact {fact} needs a template of its relation but there are templates of "
            f"{', '.join(templates) or 'none'}. Add templates[{fact.relation!r}]."
        )
    own = templates[fact.relation]
    return Worded(fact, *(_filled(fact, use) for use in (own.train, own.validation, own.test)))


def _filled(fact: Fact, templates: Iterable[str]) -> dict[str, tuple[str, ...]]:
    return {text: (text.replace(HEAD, fact.head).replace(TAIL, fact.tail),) for text in templates}
