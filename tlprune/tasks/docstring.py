"""Docstrings: a function documents its arguments in order, and the next one is to be named.

Behaviour studied in Heimersheim and Janiak, "A circuit for Python docstrings in a 4-layer attention-only transformer"
(2023). The first template is theirs; the others, and all words, are chosen for this library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.learning.objectives import Logits, exact
from tlprune.task import Batch, Metric, Task
from tlprune.tasks.pairs import Pair
from tlprune.tasks.sampling import check_templates, drawn_task, filled, hold_out
from tlprune.tasks.tokenising import is_one_token, token_ids, tokenizer_of
from tlprune.tasks.words import PLAIN_WORDS, listed

# {A}, {B} and {C} are arguments in the order of the signature, {a} and {b} those that are documented, which are A and B
# in a prompt and others in its twin. {D}, {E} and {F} are arguments that nobody documents.
DOCUMENTED = '    """{purpose}\n\n    :param {a}: {about_a}\n    :param {b}: {about_b}\n    :param'
TEMPLATES: tuple[str, ...] = (
    "\ndef {function}(self, {D}, {E}, {A}, {B}, {C}, {F}):\n" + DOCUMENTED,
    "\ndef {function}(self, {D}, {A}, {B}, {C}, {E}):\n" + DOCUMENTED,
    "\ndef {function}(self, {D}, {E}, {F}, {A}, {B}, {C}):\n" + DOCUMENTED,
    "\ndef {function}(self, {A}, {B}, {C}, {D}, {E}):\n" + DOCUMENTED,
    "\ndef {function}({D}, {E}, {A}, {B}, {C}, {F}):\n" + DOCUMENTED,
    "\ndef {function}({D}, {A}, {B}, {C}, {E}, {F}):\n" + DOCUMENTED,
)
ARGUMENTS: tuple[str, ...] = listed(
    "data name file value result line user key request path output node item url model response text version string "
    "field start number values index error context image message state row end files form query fields label action "
    "target array code table source config options status module group content client filename results command base "
    "format color settings order count match tag title parent session token server host date description mode project "
    "info page header option task shape names port root size type width height depth left right top bottom weight "
    "limit offset length rate input path prefix scale alpha step level"
)
FUNCTIONS: tuple[str, ...] = listed("load save update create read write parse build find run check send get set open")
SPAN_NAMES: tuple[str, ...] = ("A_def", "B_def", "B_def+1", "C_def", "A_doc", "B_doc", "end")
_SLOTS = {"A_def": "A", "B_def": "B", "C_def": "C", "A_doc": "a", "B_doc": "b"}
_REQUIRED = ("function", "A", "B", "C", "a", "b")
_KNOWN = (*_REQUIRED, "D", "E", "F", "purpose", "about_a", "about_b")
# A pair has six arguments and five more in its twin; a third of the names is for the test.
_SMALLEST_POOL = 11
_NOTES = 7


def docstring(
    model: Any,
    *,
    train: int = 200,
    validation: int = 100,
    test: int = 200,
    seed: int = 0,
    templates: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    held_out_templates: Iterable[str] | None = None,
) -> Task:
    """Prompts such as "def load(self, size, path, mode): ... :param size: ... :param path: ... :param", then "mode".

    In the twin the arguments of the signature that matter are others, and those that are documented are others again,
    so that nothing says which comes next ("random_random" of Conmy et al. 2023). The foil is another argument of the
    signature. A third of the templates and a third of the names appear in the test only. Names that are not one token
    under the tokenizer are dropped.

    Spans: ``A_def``, ``B_def``, ``C_def``, the arguments in the signature, of which the last is the answer;
    ``B_def+1``, the comma behind the second; ``A_doc`` and ``B_doc``, the documented ones; ``end``, the last token.

    Because every other argument is wrong, the task brings metrics of its own: ``argument_margin``, the logit of the
    answer less the largest one of another argument of the prompt or its twin, and ``argument_accuracy``, 1 where that
    is above 0.

    Args:
        model: a model with a tokenizer, or a Hugging Face tokenizer.
        train: examples to learn from.
        validation: examples for thresholds and early stopping.
        test: examples for evaluation.
        seed: fixes the held-out templates and names and every draw.
        templates: text with the slots ``{function}``, ``{A}``, ``{B}``, ``{C}``, ``{a}``, ``{b}`` and, if wanted,
            ``{D}``, ``{E}``, ``{F}``, ``{purpose}``, ``{about_a}`` and ``{about_b}``. ``TEMPLATES[:1]`` is the
            published one.
        names: names of arguments.
        held_out_templates: templates for the test alone; ``None`` draws a third, an empty list shares them all.

    Raises:
        ValueError: if too few names are one token, or there are fewer distinct prompts than asked for.
    """
    rng, tokenizer = Random(seed), tokenizer_of(model)
    templates = TEMPLATES if templates is None else tuple(templates)
    check_templates(templates, required=_REQUIRED, known=_KNOWN)
    seen_templates, test_templates = hold_out(rng, templates, held_out_templates)
    known = one_token_arguments(tokenizer, ARGUMENTS if names is None else names)
    seen_names, test_names = hold_out(rng, sorted(known), None)
    notes = _notes(tokenizer, known)
    task = drawn_task(
        "docstring",
        model,
        discovery=partial(sample_pair, templates=seen_templates, names=seen_names, notes=notes),
        test=partial(sample_pair, templates=test_templates, names=test_names, notes=notes),
        rng=rng,
        sizes={"train": train, "validation": validation, "test": test},
        options={"seed": seed, "held_out_templates": test_templates, "held_out_names": test_names},
        span_names=SPAN_NAMES,
    )
    return dataclasses.replace(task, metrics=argument_metrics(known.values()))


def sample_pair(
    rng: Random,
    *,
    templates: Sequence[str] = TEMPLATES,
    names: Sequence[str] = ARGUMENTS,
    notes: Sequence[str] = PLAIN_WORDS,
) -> Pair:
    """One pair. The names must have equal token counts.

    Example:
        >>> sample_pair(Random(0), templates=["def {function}({A}, {B}, {C}): {a} {b}"])
        Pair(clean='def open(node, weight, options): node weight',
             corrupt='def open(query, offset, length): project model', answer=' options', foil=' weight', label=None,
             spans={'A_def': (9, 13), 'B_def': (14, 21), 'C_def': (22, 30), 'A_doc': (32, 37), 'B_doc': (37, 44)})
    """
    drawn = rng.sample(sorted(set(names)), _SMALLEST_POOL)
    signature, others = dict(zip("ABCDEF", drawn, strict=False)), dict(zip("ABCab", drawn[6:], strict=True))
    words = rng.sample(list(notes), _NOTES)
    filling = {"function": rng.choice(FUNCTIONS), "purpose": " ".join(words[:3])}
    filling |= {"about_a": " ".join(words[3:5]), "about_b": " ".join(words[5:])} | signature
    template = rng.choice(templates)
    clean, places = filled(template, {**filling, "a": signature["A"], "b": signature["B"]})
    corrupt, _ = filled(template, {**filling, **others})
    foil = rng.choice([name for slot, name in signature.items() if slot in places and slot != "C"])
    spans = {name: places[slot] for name, slot in _SLOTS.items()}
    return Pair(clean, corrupt, f" {signature['C']}", f" {foil}", spans=spans)


def one_token_arguments(tokenizer: Any, names: Iterable[str]) -> dict[str, int]:
    """Names that are one token of their own in a signature and behind ``:param``, with that token.

    Raises:
        ValueError: if they are too few.
    """
    found = {name: token_ids(tokenizer, f":param {name}")[-1] for name in names if _is_whole(tokenizer, name)}
    known = {name: token for name, token in found.items() if token != tokenizer.unk_token_id}
    if len(known) < 3 * _SMALLEST_POOL:
        raise ValueError(
            f"Docstrings need {3 * _SMALLEST_POOL} argument names that are one token each but under this tokenizer "
            f"only {sorted(known)} are. Give more names with names=, or use a model whose tokenizer knows code."
        )
    return known


def _notes(tokenizer: Any, names: Iterable[str]) -> list[str]:
    """Words for the descriptions, of one token each as far as there are enough, so that prompts are equally long."""
    words = [word for word in PLAIN_WORDS if word not in names]
    whole = [
        word for word in words if is_one_token(tokenizer, '"""', word) and is_one_token(tokenizer, "in", f" {word}")
    ]
    return whole if len(whole) >= _NOTES else words


def _is_whole(tokenizer: Any, name: str) -> bool:
    return all(is_one_token(tokenizer, text, f" {name}") for text in (":param", "def load(self,"))


@dataclasses.dataclass(frozen=True)
class ArgumentMargin:
    """Logit of the answer less the largest one of the other arguments in the prompt and its twin.

    Attributes:
        tokens: token ids of all names.

    Source: Heimersheim and Janiak 2023; Conmy et al. 2023, where names of further corruptions count as well.
    """

    tokens: frozenset[int]

    def __call__(self, logits: Logits, batch: Batch, reference: Logits) -> Float[Tensor, "example"]:
        values, answers = exact(logits)[:, 0], batch.answers.to(logits.device)
        return values.gather(1, answers)[:, 0] - values.masked_fill(~self._wrong(batch, values), -torch.inf).amax(1)

    def _wrong(self, batch: Batch, values: Tensor) -> Tensor:
        """Which tokens are arguments of the example, without the right one."""
        seen = torch.cat([batch.clean.ids, batch.corrupt.ids], 1).to(values.device)
        names = torch.tensor(sorted(self.tokens), device=values.device)
        there = torch.zeros_like(values, dtype=torch.bool).scatter_(1, seen, True)
        among = torch.zeros_like(values[0], dtype=torch.bool).index_fill_(0, names, True)
        return (there & among).scatter(1, batch.answers.to(values.device), False)


@dataclasses.dataclass(frozen=True)
class ArgumentAccuracy:
    """1 where the answer has a larger logit than every other argument in the prompt and its twin, else 0.

    Attributes:
        tokens: token ids of all names.

    Source: Heimersheim and Janiak 2023.
    """

    tokens: frozenset[int]

    def __call__(self, logits: Logits, batch: Batch, reference: Logits) -> Float[Tensor, "example"]:
        return (ArgumentMargin(self.tokens)(logits, batch, reference) > 0).float()


def argument_metrics(tokens: Iterable[int]) -> Mapping[str, Metric]:
    """The metrics of docstrings, given the tokens of all names."""
    known = frozenset(tokens)
    return {"argument_margin": ArgumentMargin(known), "argument_accuracy": ArgumentAccuracy(known)}
