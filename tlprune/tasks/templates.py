"""Texts as a language model reads them: by its tokenizer, or within a template, cut where they are too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, Literal

from tlprune.tasks.labelled.encoding import Encoded, encode
from tlprune.tasks.tokenising import beginning, prompt_place, token_bounds, token_ids, tokenizer_of

FIELDS = ("text", "pair")


@dataclass(frozen=True)
class Reader:
    """How texts become tokens, and at which one the model is read.

    Attributes:
        tokenizer: of the model.
        place: of the prompt: ``"start"`` in encoders, ``"end"`` in decoders.
        template: what is written around the texts; ``None`` for the tokenizer's own way.
        reads_mask: the model is read at the mask token of the template, because there are no prompt tokens.
    """

    tokenizer: Any
    place: Literal["start", "end"]
    template: str | None
    reads_mask: bool

    @property
    def begins(self) -> bool:
        """Whether a token of its own begins a text."""
        return self.place == "start" or bool(beginning(self.tokenizer, None))

    def encode(self, prompts: Sequence[tuple[str, ...]], most: int) -> list[Encoded]:
        """Token ids of texts or pairs, of at most so many tokens.

        Raises:
            ValueError: there is no room for text beside the template, or the mask token is in a text.
        """
        if self.template is None:
            return encode(self.tokenizer, prompts, max_length=most)
        rows = [self._fitted(texts, most) for texts in prompts]
        if self.reads_mask:
            for row, texts in zip(rows, prompts, strict=True):
                if row.ids.count(self.tokenizer.mask_token_id) != 1:
                    raise ValueError(f"The mask token must be in the template alone but is in {texts}. Mend the text.")
        return rows

    def read_at(self, row: Encoded, length: int) -> int:
        """The token at which a row with ``length`` prompt tokens is read, from its first."""
        if self.reads_mask:
            return row.ids.index(self.tokenizer.mask_token_id)
        return 0 if self.place == "start" else len(row) - 1

    def _fitted(self, texts: tuple[str, ...], most: int) -> Encoded:
        """The texts within the template, with the longest cut until all fit."""
        row, cut = self._written(texts), list(texts)
        kept = [len(token_ids(self.tokenizer, text)) for text in texts] if len(row) > most else []
        while (over := len(row) - most) > 0:
            if sum(kept) <= over:
                raise ValueError(
                    f"A template needs room for text but {self.template!r} leaves none of {most} tokens. Shorten it, "
                    "or give a larger max_length."
                )
            for _ in range(over):
                kept[kept.index(max(kept))] -= 1
            cut = [cut_text(self.tokenizer, *one) for one in zip(texts, kept, strict=True)]
            row = self._written(cut)
        return row

    def _written(self, texts: Sequence[str]) -> Encoded:
        whole = (self.template or "").format(**dict(zip(FIELDS, texts, strict=False)))
        if self.place == "start":
            found = self.tokenizer(whole)
            return Encoded(list(found["input_ids"]), found.get("token_type_ids"))
        return Encoded(beginning(self.tokenizer, None) + token_ids(self.tokenizer, whole), None)


def cut_text(tokenizer: Any, text: str, tokens: int) -> str:
    """The characters of a text's first tokens.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from tlprune.models.testbed_prompts import DIRECTORY
        >>> cut_text(AutoTokenizer.from_pretrained(DIRECTORY), "John is kind", 2)
        'John is'
    """
    return text[: token_bounds(tokenizer, text)[tokens - 1][1]] if tokens > 0 else ""


def reader_for(model: Any, pairs: bool, *, length: int, template: str | None) -> Reader:
    """How a model reads texts or pairs beside a prompt of some length.

    Raises:
        ValueError: the template has other fields than the data, or an encoder has neither prompt nor mask to be read.
    """
    tokenizer = tokenizer_of(model)
    place = prompt_place(model)
    wanted = FIELDS if pairs else FIELDS[:1]
    if template is None and place == "end":
        template = "\n".join(f"{{{name}}}" for name in wanted)
    if template is not None:
        _check_fields(template, wanted)
    reads_mask = place == "start" and length == 0
    mask = getattr(tokenizer, "mask_token", None)
    if reads_mask and (template is None or mask is None or template.count(mask) != 1):
        raise ValueError(
            f"An encoder is read at a mask token, of the prompt or of the template, but there are no prompt tokens and "
            f"the template is {template!r}. Write {mask or 'the mask token'} once into it, or give a length."
        )
    return Reader(tokenizer, place, template, reads_mask)


def _check_fields(template: str, wanted: tuple[str, ...]) -> None:
    try:
        given = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        given = [str(error)]
    if sorted(given) != sorted(wanted):
        named = " and ".join(f"{{{name}}}" for name in wanted)
        raise ValueError(f"A template for this data holds {named}, once each, but is {template!r}. Write it so.")
