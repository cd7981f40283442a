"""Boolean expressions: what an expression of True and False is worth, after solved examples or an instruction.

Behaviour of BIG-Bench Hard's ``boolean_expressions`` (Suzgun et al. 2022), in which Edge Pruning compares circuits of
few-shot and instruction prompts; the wordings here are written for this library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from tlprune.choices import choice
from tlprune.task import Task, Tokenisation
from tlprune.tasks.expressions import WORDS, Words, depth, draw, exchanges, value
from tlprune.tasks.pairs import Pair
from tlprune.tasks.rows import task_of_rows
from tlprune.tasks.sampling import check_templates, filled
from tlprune.tasks.spelled import spelled_row, spelling
from tlprune.tasks.tokenising import beginning, padding_token, token_ids, tokenizer_of

Prompts = Literal["few-shot", "instruction"]
TEMPLATES: Mapping[str, str] = {
    "few-shot": "Q: {expression} is\nA:",
    "instruction": "Say whether the following Boolean expression is True or False.\nExpression: {expression}\nAnswer:",
}
SPAN_NAMES = ("changed", "end")
_BETWEEN = "\n\n"
_PATIENCE = 1000


def boolean_expressions(
    model: Any,
    prompts: Prompts = "few-shot",
    *,
    train: int = 200,
    validation: int = 100,
    test: int = 200,
    seed: int = 0,
    shots: int = 4,
    literals: Sequence[int] = (3, 4, 5),
    depths: Sequence[int] = (0, 1, 2),
    template: str | None = None,
) -> Task:
    """Prompts such as "Q: not ( True and False ) or False is A:", which True completes.

    The twin has one literal or one operator exchanged with its opposite, so that the other answer, the foil, is right;
    solved examples and all other tokens stay. Expressions of each number of literals and depth of parentheses, and
    True and False among them, are equally many, up to one. An expression that one split has, as a prompt or as a twin,
    is in no other, and none is among the solved examples.

    An answer of several tokens is read token by token, each given the true ones before it, in the twin, too;
    :func:`~tlprune.greedy_answers` generates it instead. ``batch.labels`` number the kinds of expressions and
    ``task.label_names`` names them, for :func:`~tlprune.subcases`.

    Spans: ``changed``, the word that the twin exchanges; ``end``, the last token of the prompt.

    Args:
        model: a model with a tokenizer, or a Hugging Face tokenizer.
        prompts: ``"few-shot"``: after solved examples; ``"instruction"``: after a sentence that says what to do.
        train: examples to learn from.
        validation: examples for thresholds and early stopping.
        test: examples for evaluation.
        seed: fixes the solved examples and every draw.
        shots: solved examples of few-shot prompts, of True and False in turn.
        literals: numbers of literals that an expression may have, each at least 2.
        depths: depths of parentheses that it may have; of ``n`` literals at most ``n - 2`` can be had.
        template: text with the slot ``{expression}``, after which the answer follows; of each solved example, too.

    Raises:
        ValueError: there are fewer distinct expressions than asked for, the tokenizer has no twins with as many tokens
            or does not know the words, or settings leave no expression.

    Source: Bhaskar et al., "Finding Transformer Circuits with Edge Pruning" (NeurIPS 2024), section 5.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = "? = True False and or not ( )".split()
        >>> known = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "?"))
        >>> known.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=known, unk_token="?")
        >>> sizes = {"train": 16, "validation": 8, "test": 8}
        >>> batch = boolean_expressions(tokenizer, "instruction", template="{expression} =", **sizes).test
        >>> for tokens in (batch.clean, batch.corrupt):
        ...     print(tokenizer.decode(tokens.ids[0][tokens.attention_mask[0] == 1]))
        ( False or False ) and ( True or False ) or True =
        ( False or False ) and ( True or False ) or False =
        >>> tokenizer.decode(batch.answers[0])
        'True'
    """
    tokenizer = tokenizer_of(model)
    default: str = choice("kind of prompts", prompts, TEMPLATES)
    template = default if template is None else template
    check_templates([template], required=("expression",), known=("expression",))
    _check_words(tokenizer)
    kinds = _kinds(literals, depths)
    source = _Source(tokenizer, template, kinds, Random(seed))
    source.solve(shots if prompts == "few-shot" else 0)
    sizes = {"train": train, "validation": validation, "test": test}
    pairs = {split: source.pairs(split, count) for split, count in sizes.items()}
    first, most = beginning(tokenizer, None), _longest_answer(tokenizer, pairs["train"])
    rows = {
        split: [spelled_row(tokenizer, pair, first, most=most, span_names=SPAN_NAMES) for pair in own]
        for split, own in pairs.items()
    }
    options = {
        "seed": seed, "prompts": prompts, "template": template, "solved": source.solved,
        "literals": list(literals), "depths": list(depths),
    }  # fmt: skip
    task = task_of_rows(
        f"boolean-{prompts}", rows, Tokenisation(bool(first)),
        padding=padding_token(tokenizer), options=options, span_names=SPAN_NAMES,
    )  # fmt: skip
    return dataclasses.replace(task, label_names=tuple(f"{count} literals, depth {deep}" for count, deep in kinds))


def _kinds(literals: Sequence[int], depths: Sequence[int]) -> list[tuple[int, int]]:
    """Numbers of literals with depths; a group within parentheses has one literal less than what is around it."""
    kinds = [(count, deep) for count in literals for deep in depths if count >= 2 and 0 <= deep <= count - 2]
    if not kinds or min(literals) < 2:
        raise ValueError(
            f"Expressions of n literals, 2 or more, have depths up to n - 2 but literals are {list(literals)} and "
            f"depths {list(depths)}. Give such numbers."
        )
    return kinds


def _check_words(tokenizer: Any) -> None:
    spelt = [tuple(token_ids(tokenizer, f" {word}")) for word in WORDS]
    if len(set(spelt)) < len(WORDS):
        pieces = [tokenizer.convert_ids_to_tokens(list(ids)) for ids in spelt]
        raise ValueError(
            f"Boolean expressions need a tokenizer that tells {' '.join(WORDS)} apart but this one makes of them "
            f"{pieces}. Use a model with another tokenizer."
        )


def _longest_answer(tokenizer: Any, pairs: Sequence[Pair]) -> int:
    if not pairs:
        raise ValueError("Boolean expressions need training examples but train is 0. Ask for some.")
    return max(len(spelling(tokenizer, pairs[0].clean, f" {worth}")) for worth in (True, False))


@dataclass
class _Source:
    """Draws pairs; remembers which split each expression belongs to."""

    tokenizer: Any
    template: str
    kinds: Sequence[tuple[int, int]]
    rng: Random
    solved: str = ""
    owners: dict[Words, str] = field(default_factory=dict)
    asked: set[Words] = field(default_factory=set)

    def solve(self, count: int) -> None:
        """Put solved examples in front of all prompts, kinds and answers in turn."""
        for number in range(count):
            worth = number % 2 == 0
            words = self._expression(self.kinds[number % len(self.kinds)], worth, "solved")
            self.owners[words] = "solved"
            self.solved += filled(self.template, {"expression": " ".join(words)})[0] + f" {worth}" + _BETWEEN

    def pairs(self, split: str, count: int) -> list[Pair]:
        """So many pairs for a split, cells of kind and answer in turn."""
        cells = [(kind, worth) for kind in self.kinds for worth in (True, False)]
        order = self.rng.sample(cells, len(cells))
        return [self._pair(split, *order[number % len(order)]) for number in range(count)]

    def _pair(self, split: str, kind: tuple[int, int], worth: bool) -> Pair:
        for _ in range(_PATIENCE // 10):
            words = self._expression(kind, worth, split)
            if found := self._twin(split, words):
                self.asked.add(words)
                self.owners |= dict.fromkeys((words, found[1]), split)
                return self._written(words, *found, worth, self.kinds.index(kind))
        raise self._exhausted(kind, worth)

    def _expression(self, kind: tuple[int, int], worth: bool, split: str) -> Words:
        """One of a kind and a value that is not asked for yet and belongs to no other split."""
        for _ in range(_PATIENCE):
            words = draw(self.rng, kind[0])
            new = words not in self.asked and self.owners.get(words, split) == split
            if new and depth(words) == kind[1] and value(words) == worth:
                return words
        raise self._exhausted(kind, worth)

    def _twin(self, split: str, words: Words) -> tuple[int, Words] | None:
        """An exchange that changes tokens but not their number, with the place of the changed word."""
        choices, own = list(exchanges(words)), self._tokens(words)
        for place, other in self.rng.sample(choices, len(choices)):
            tokens = self._tokens(other)
            if self.owners.get(other, split) == split and len(tokens) == len(own) and tokens != own:
                return place, other
        return None

    def _tokens(self, words: Words) -> list[int]:
        return token_ids(self.tokenizer, self._prompt(words)[0])

    def _prompt(self, words: Words) -> tuple[str, int]:
        """The prompt, and the character at which the expression begins."""
        text, places = filled(self.template, {"expression": " ".join(words)})
        return self.solved + text, len(self.solved) + places["expression"][1] - len(" ".join(words))

    def _written(self, words: Words, place: int, other: Words, worth: bool, label: int) -> Pair:
        (clean, begin), (corrupt, _) = self._prompt(words), self._prompt(other)
        start = begin + len(" ".join(words[:place]))  # with the space before the word
        changed = (start, begin + len(" ".join(words[: place + 1])))
        return Pair(clean, corrupt, f" {worth}", f" {not worth}", label, {"changed": changed})

    def _exhausted(self, kind: tuple[int, int], worth: bool) -> ValueError:
        return ValueError(
            "Each pair needs a new expression, and a twin with as many tokens, one word's of which are others, but "
            f"after {len(self.asked)} there was no further {worth} one of {kind[0]} literals and depth {kind[1]}. Ask "
            "for fewer examples, allow other literals= or depths=, or take a tokenizer that splits opposites alike."
        )
