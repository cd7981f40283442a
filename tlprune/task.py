"""What a method is given: prompt pairs, the positions that count, and a split that keeps test data apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tlprune.statistic import Statistic

MAIN = "main"
# From logits and the full model's predictions (log-probabilities, or a regression's output), (example, answer, vocab)
# each, to one number per example.
Metric = Callable[[Tensor, "Batch", Tensor], Tensor]


@dataclass(frozen=True)
class Tokens:
    """Token ids of several prompts, padded to one length.

    Attributes:
        ids: token ids, ``(example, pos)``.
        attention_mask: 1 for a real token and 0 for padding, ``(example, pos)``;
            ``None`` when no prompt is padded.
        token_types: 0 for the first sentence and 1 for the second, ``(example, pos)``; for encoders that tell them
            apart, such as BERT on pairs.
    """

    ids: Int[Tensor, "example pos"]
    attention_mask: Int[Tensor, "example pos"] | None = None
    token_types: Int[Tensor, "example pos"] | None = None

    def __repr__(self) -> str:
        examples, positions = self.ids.shape
        return f"Tokens({examples:,} prompts of {positions} tokens)"

    def rows(self, index: Tensor) -> Tokens:
        """The prompts at ``index``, in that order."""
        return self._map(lambda value: value[index])

    def columns(self, kept: Bool[Tensor, "pos"]) -> Tokens:
        """The prompts without the other positions.

        Example:
            >>> Tokens(torch.tensor([[5, 6, 7]])).columns(torch.tensor([True, False, True])).ids.tolist()
            [[5, 7]]
        """
        return self._map(lambda value: value[:, kept])

    def repeated(self, count: int) -> Tokens:
        """All prompts several times, one round after the other.

        Example:
            >>> Tokens(torch.tensor([[5, 6], [7, 8]])).repeated(2).ids.tolist()
            [[5, 6], [7, 8], [5, 6], [7, 8]]
        """
        return self._map(lambda value: value.repeat(count, 1))

    def to(self, device: torch.device | str) -> Tokens:
        return self._map(lambda value: value.to(device))

    @property
    def lengths(self) -> Int[Tensor, "example"]:
        """Positions up to the last real token of each prompt."""
        if self.attention_mask is None:
            return torch.full((len(self.ids),), self.ids.shape[1], device=self.ids.device)
        places = torch.arange(1, self.ids.shape[1] + 1, device=self.ids.device)
        return (self.attention_mask * places).amax(1)

    def trimmed(self) -> Tokens:
        """Without the positions at the end that are padding in every prompt.

        Example:
            >>> mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
            >>> Tokens(torch.zeros(2, 4, dtype=torch.long), mask).trimmed()
            Tokens(2 prompts of 2 tokens)
        """
        if self.attention_mask is None:
            return self
        width = int(self.lengths.max())
        return self if width == self.ids.shape[1] else self._map(lambda value: value[:, :width])

    def _map(self, function: Callable[[Tensor], Tensor]) -> Tokens:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return Tokens(**{name: function(value) for name, value in values.items() if value is not None})


@dataclass(frozen=True)
class Batch:
    """Clean prompts, their corrupted twins, and what is read at the answer positions.

    A twin has the same number of tokens as its clean prompt, so that activations can be exchanged
    position by position.

    Attributes:
        index: row of each example in its split; the key under which activations are cached.
        clean: prompts whose behaviour is explained.
        corrupt: their counterfactual twins, same shape.
        positions: positions whose next-token prediction is read, ``(example, answer)``.
        answers: correct token at each of these positions, ``(example, answer)``; -100 fills up an example that has
            fewer than others, and figures leave it out.
        foils: the wrong token it is compared with, ``(example, answer)``; -100 in all examples where there is none,
            as among more than two classes, and figures that need one are left out.
        labels: a number of each example that a task's own metrics need, such as greater-than's first year; ``None``
            where there is none.
        spans: which of ``span_names`` each position belongs to, by number; -1 outside all of them.
        span_names: what these numbers stand for.
        accepted: the classes that count as right, where more than one does, ``(example, class)``; ``answers`` has one
            of them. HANS accepts neutral and contradiction of a model of MNLI.
        targets: the numbers that a regression is to give, ``(example,)``, or one at each answer position,
            ``(example, answer)``; its answers and foils are -100.
        groups: a number that examples share which say the same, such as paraphrases of one fact; intervals draw them
            together. ``None`` where each stands for itself. It decides nothing of what is computed of an example.

    Example:
        >>> ids = torch.tensor([[5, 6, 7], [5, 8, 7]])
        >>> one = torch.tensor([[2], [2]])
        >>> batch = Batch(torch.arange(2), Tokens(ids), Tokens(ids.flip(0)), one, one, one + 1)
        >>> len(batch), batch.rows(torch.tensor([1])).clean.ids.tolist()
        (2, [[5, 8, 7]])
    """

    index: Int[Tensor, "example"]
    clean: Tokens
    corrupt: Tokens
    positions: Int[Tensor, "example answer"]
    answers: Int[Tensor, "example answer"]
    foils: Int[Tensor, "example answer"]
    labels: Int[Tensor, "example"] | None = None
    spans: Int[Tensor, "example pos"] | None = None
    span_names: tuple[str, ...] = ()
    accepted: Bool[Tensor, "example class"] | None = None
    targets: Float[Tensor, "example *answer"] | None = None
    groups: Int[Tensor, "example"] | None = None

    def __post_init__(self) -> None:
        if self.clean.ids.shape != self.corrupt.ids.shape:
            raise ValueError(
                f"A batch needs clean and corrupted prompts of one shape but got {tuple(self.clean.ids.shape)} "
                f"and {tuple(self.corrupt.ids.shape)}. Give each prompt a twin with as many tokens."
            )
        for name in ("labels", "groups"):
            if (numbers := getattr(self, name)) is not None and len(numbers) != len(self):
                raise ValueError(
                    f"A batch of {len(self)} examples needs as many {name} but got {len(numbers)}. "
                    "Give each example one."
                )
        if self.spans is not None and int(self.spans.max()) >= len(self.span_names):
            raise ValueError(
                f"Spans are numbered up to {int(self.spans.max())} but have {len(self.span_names)} names. Give each "
                "its name: span_names=(...)."
            )
        if self.spans is not None and self.spans.shape != self.clean.ids.shape:
            raise ValueError(
                f"Spans number the positions of the prompts, which are {tuple(self.clean.ids.shape)}, but have shape "
                f"{tuple(self.spans.shape)}. Give each position a number, -1 where it has none."
            )

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"Batch({len(self):,} prompts of {self.clean.ids.shape[1]} tokens)"

    @property
    def answered(self) -> Bool[Tensor, "example answer"]:
        """Which answer positions count: all but those that fill up an example; all where nothing has an answer."""
        real = self.answers >= 0
        return real if bool(real.any()) else torch.ones_like(real)

    def rows(self, index: Tensor) -> Batch:
        """The examples at ``index`` (positions within this batch, not row numbers), in that order."""
        return self._map(lambda value: value.rows(index) if isinstance(value, Tokens) else value[index])

    def to(self, device: torch.device | str) -> Batch:
        return self._map(lambda value: value.to(device))

    def _map(self, function: Callable[[Any], Any]) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        kept: dict[str, Any] = {n: value for n, value in values.items() if value is None or isinstance(value, tuple)}
        return Batch(**{name: function(value) for name, value in values.items() if name not in kept}, **kept)

    def split(self, size: int) -> Iterator[Batch]:
        """Consecutive pieces of at most ``size`` examples."""
        for rows in torch.arange(len(self)).split(size):
            yield self.rows(rows)


@dataclass(frozen=True)
class Stream:
    """One named set of examples in its three splits."""

    train: Batch
    validation: Batch
    test: Batch


@dataclass(frozen=True)
class Tokenisation:
    """How a task turned text into tokens; saved with every circuit found on it.

    Attributes:
        prepend_bos: whether a beginning-of-sequence token was put first.
        padding_side: the side on which shorter prompts are padded.
        predicted: what is read: ``"last"``: the token that follows a prompt's last one; ``"tagged"``: the tokens that
            the file marks; ``"prompt"``: a class or number of the whole prompt.
    """

    prepend_bos: bool
    padding_side: Literal["left", "right"] = "right"
    predicted: Literal["last", "tagged", "prompt"] = "last"


@dataclass(frozen=True)
class Discovery:
    """The part of a task that a method may see: training and validation examples, never test.

    Attributes:
        name: the task's.
        streams: training and validation examples by stream name.
        provenance: name, fingerprint, tokenisation and options of the task, as plain data.
        span_names: the task's.
    """

    name: str
    streams: Mapping[str, tuple[Batch, Batch]]
    provenance: Mapping[str, Any]
    span_names: tuple[str, ...] = ()

    def train(self, stream: str = MAIN) -> Batch:
        return self._stream(stream)[0]

    def validation(self, stream: str = MAIN) -> Batch:
        return self._stream(stream)[1]

    def _stream(self, stream: str) -> tuple[Batch, Batch]:
        if stream not in self.streams:
            raise ValueError(
                f"Task {self.name!r} has streams {sorted(self.streams)} but {stream!r} was asked for. "
                "Use one of its own names."
            )
        return self.streams[stream]


@dataclass(frozen=True)
class Task:
    """Prompt pairs in named streams, each split into train, validation and test.

    Methods receive ``discovery``; ``test`` is for :func:`tlprune.evaluate` alone.

    Attributes:
        name: short name, as the command line takes it.
        streams: examples by stream name; most tasks have the single stream ``"main"``.
        tokenisation: beginning-of-sequence token and padding side.
        options: how the task was built (seed, counts, held-out templates), as plain data.
        span_names: what the numbers in ``Batch.spans`` stand for; empty where no words are told apart.
        metrics: figures that only this behaviour has, by name: functions of logits, batch and the full model's
            predictions that give one number per example, higher for a better circuit; or a
            :class:`~tlprune.statistic.Statistic` of all examples.
        label_names: what the numbers in ``Batch.labels`` stand for, where they number kinds of examples.
    """

    name: str
    streams: Mapping[str, Stream]
    tokenisation: Tokenisation
    options: Mapping[str, Any] = field(default_factory=dict)
    span_names: tuple[str, ...] = ()
    metrics: Mapping[str, Metric | Statistic] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, stream in self.streams.items():
            for split in ("train", "validation", "test"):
                if len(getattr(stream, split)) == 0:
                    raise ValueError(
                        f"Task {self.name!r} needs at least one example in each split but {split} of stream "
                        f"{name!r} is empty. Ask for more examples."
                    )

    def __repr__(self) -> str:
        splits = ("train", "validation", "test")
        counts = [f"{name}: {len(getattr(s, split)):,} {split}" for name, s in self.streams.items() for split in splits]
        return f"Task({self.name!r}, {', '.join(counts)})"

    @property
    def discovery(self) -> Discovery:
        seen = {name: (stream.train, stream.validation) for name, stream in self.streams.items()}
        provenance = {"name": self.name, "fingerprint": self.fingerprint}
        provenance |= {"tokenisation": asdict(self.tokenisation), "options": dict(self.options)}
        return Discovery(self.name, seen, provenance, self.span_names)

    @property
    def test(self) -> Batch:
        """Test examples of the main stream."""
        return self.streams[MAIN].test

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every token, position, answer, label and span, and of the tokenisation."""
        digest = hashlib.sha256(json.dumps(vars(self.tokenisation), sort_keys=True).encode())
        digest.update("".join(f"span {name}" for name in self.span_names).encode())
        for name in sorted(self.streams):
            for split in ("train", "validation", "test"):
                digest.update(f"{name}/{split}".encode())
                _digest_batch(digest, getattr(self.streams[name], split))
        return digest.hexdigest()[:16]


def _digest_batch(digest: Any, batch: Batch) -> None:
    for value in (batch.clean.ids, batch.corrupt.ids, batch.positions, batch.answers, batch.foils):
        digest.update(str(tuple(value.shape)).encode())
        digest.update(value.cpu().numpy().tobytes())
    optional = {"labels": batch.labels, "spans": batch.spans}
    optional |= {"accepted": batch.accepted, "targets": batch.targets}
    optional |= {"clean token types": batch.clean.token_types, "corrupt token types": batch.corrupt.token_types}
    for name, value in optional.items():
        if value is not None:
            digest.update(name.encode())
            digest.update(value.cpu().numpy().tobytes())
