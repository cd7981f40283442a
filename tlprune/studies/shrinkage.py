"""What is saved by removing ablated heads and MLPs for good: parameters and time, at the same outputs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tlprune.drawing.charts import TEMPLATE, plotly
from tlprune.evaluation.table import aligned
from tlprune.masking.masked import Masked
from tlprune.models.export import to_huggingface
from tlprune.task import Batch, Tokens


@dataclass(frozen=True)
class Size:
    """Numbers that a model learned.

    Attributes:
        parameters: all of them, tied ones once.
        embeddings: those in tables of tokens, positions and token types.
    """

    parameters: int
    embeddings: int

    @property
    def others(self) -> int:
        """All but the embeddings."""
        return self.parameters - self.embeddings

    @staticmethod
    def of(model: nn.Module) -> Size:
        """Of any module.

        Example:
            >>> Size.of(nn.Sequential(nn.Embedding(7, 2), nn.Linear(2, 3)))
            Size(parameters=23, embeddings=14)
        """
        tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
        return Size(_count(model.parameters()), _count(tables))


def _count(parameters: Any) -> int:
    return sum({id(parameter): parameter.numel() for parameter in parameters}.values())


@dataclass(frozen=True)
class SpeedUp:
    """Times of forward runs on the same prompts, taken in turns.

    Attributes:
        seconds: of each round, the whole model's and the shrunk one's: of all CPU threads together, or of a GPU until
            it is done.
        examples: prompts per run.
        tokens: positions of each prompt.

    Example:
        >>> SpeedUp(((3.0, 1.0), (5.0, 2.0), (8.0, 4.0)), examples=1, tokens=7).ratio
        2.5
    """

    seconds: tuple[tuple[float, float], ...]
    examples: int
    tokens: int

    @property
    def rounds(self) -> int:
        """How often each model ran."""
        return len(self.seconds)

    @property
    def whole(self) -> float:
        """Median seconds of the whole model."""
        return statistics.median(whole for whole, _ in self.seconds)

    @property
    def small(self) -> float:
        """Median seconds of the shrunk model."""
        return statistics.median(small for _, small in self.seconds)

    @property
    def ratio(self) -> float:
        """How many times as fast the shrunk model is: the median over rounds, whose two runs met the same load."""
        return statistics.median(whole / small for whole, small in self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        names = ("whole", "small", "ratio", "examples", "tokens", "rounds")
        return {name: getattr(self, name) for name in names}


def speed_up(
    whole: Any, small: Any, tokens: Tokens, *, rounds: int = 9, vectors: Float[Tensor, "prompt d_model"] | None = None
) -> SpeedUp:
    """Time two transformers models in one process, in turns, so that both meet the same disturbances.

    Args:
        whole: a transformers model.
        small: another one that takes the same prompts.
        tokens: the prompts of each run.
        rounds: runs of each, after one that is not counted.
        vectors: what ids behind the vocabulary stand for, as for :func:`run`.

    Raises:
        ValueError: there are no rounds.

    Example:
        >>> import tlprune as tp
        >>> model = tp.to_huggingface(tp.load("testbed", device="cpu"))
        >>> speed_up(model, model, Tokens(torch.tensor([[3, 1, 4]])), rounds=1).tokens
        3
    """
    if rounds < 1:
        raise ValueError(f"A median needs at least 1 round but got {rounds}. Ask for more; 9 is usual.")
    tokens = tokens.to(whole.device)

    def seconds(model: Any) -> float:
        return _seconds(lambda: run(model, tokens, vectors=vectors), whole.device)

    pairs = [(seconds(whole), seconds(small)) for _ in range(rounds + 1)]
    return SpeedUp(tuple(pairs[1:]), *tokens.ids.shape)


@torch.no_grad()
def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    _wait_for(device)
    start = clock()
    work()
    _wait_for(device)
    return clock() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Shrinkage:
    """A shrunk model beside the whole one.

    Attributes:
        whole: parameters before.
        small: parameters after.
        difference: the largest difference of an output from the masked model's, in its unit (of logits, nats).
        examples: on how many prompts.
        speed: times, where they were asked for.
    """

    whole: Size
    small: Size
    difference: float
    examples: int
    speed: SpeedUp | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        speed = None if self.speed is None else self.speed.as_dict()
        return {**asdict(self), "speed": speed}

    def __str__(self) -> str:
        rows = [
            [name, f"{before:,}", f"{after:,}", f"{after / before:.1%}"] for name, before, after in self._parameters()
        ]
        lines = aligned(["parameters", "whole", "shrunk", "left"], rows)
        lines.append(f"largest difference of an output from the masked model's: {self.difference:.1e}")
        lines[-1] += f" ({self.examples:,} prompts)"
        if self.speed is not None:
            one = self.speed
            lines.append(
                f"{one.ratio:.2f} times as fast: {one.small:.4f} s for {one.whole:.4f} s, {one.examples} prompts of "
                f"{one.tokens} tokens, medians of {one.rounds}"
            )
        return "\n".join(lines)

    def plot(self) -> Any:
        """Bars of parameters before and after; needs plotly."""
        names, before, after = zip(*self._parameters(), strict=True)
        bars = [plotly().Bar(name=name, x=names, y=y) for name, y in (("whole", before), ("shrunk", after))]
        return plotly().Figure(bars, {"template": TEMPLATE, "yaxis_title": "parameters", "barmode": "group"})

    def _parameters(self) -> list[tuple[str, int, int]]:
        parts = (("all", "parameters"), ("without embeddings", "others"))
        return [(name, getattr(self.whole, part), getattr(self.small, part)) for name, part in parts]


def shrinkage(
    masked: Masked,
    small: Any,
    batch: Batch,
    *,
    rounds: int = 0,
    vectors: Float[Tensor, "prompt d_model"] | None = None,
) -> Shrinkage:
    """What a shrunk model saves, and how near its outputs are to those of the masked model that it stands for.

    Args:
        masked: what :func:`~tlprune.shrink` was given.
        small: what it gave, or the same read from its files.
        batch: prompts to compare outputs on, at their answer positions.
        rounds: timed runs of the whole and the shrunk model on the first 32 prompts; 0 for none.
        vectors: of the soft prompt that is attached to the masked model, where one is.

    Example:
        >>> import tlprune as tp
        >>> model = tp.load("testbed", device="cpu")
        >>> masked = tp.Masked(model, tp.Circuit.from_names(tp.heads(model), ["a0.h1", "a2.h3"]), tp.Zero())
        >>> found = shrinkage(masked, tp.shrink(masked), tp.tasks.ioi(model).test.rows(torch.arange(4)))
        >>> found.small.parameters < found.whole.parameters, found.difference < 1e-4
        (True, True)
    """
    whole = to_huggingface(masked.model)
    difference = max(_difference(masked, small, part, vectors) for part in _parts(batch))
    first = batch.clean.rows(torch.arange(min(32, len(batch)))).trimmed()
    speed = speed_up(whole, small, first, rounds=rounds, vectors=vectors) if rounds else None
    return Shrinkage(Size.of(whole), Size.of(small), difference, len(batch), speed)


def _parts(batch: Batch) -> list[Batch]:
    """Prompts of about one length together."""
    return list(batch.rows(torch.argsort(batch.clean.lengths, stable=True)).split(32))


@torch.no_grad()
def _difference(masked: Masked, small: Any, part: Batch, vectors: Tensor | None) -> float:
    part = part.to(masked.backend.device)
    found = outputs(small, part, predicts=masked.backend.predicts, vectors=vectors)
    return float((found - masked(part)).abs().max())


def outputs(
    model: Any, batch: Batch, *, predicts: str, vectors: Float[Tensor, "prompt d_model"] | None = None
) -> Float[Tensor, "example answer output"]:
    """What a transformers model says at the answer positions, or of each prompt: logits or pooled vectors."""
    found = run(model, batch.clean.trimmed(), vectors=vectors)
    if predicts == "prompts":
        return (found.logits if "logits" in found else found.pooler_output)[:, None]
    return found.logits[torch.arange(len(batch), device=model.device)[:, None], batch.positions]


def run(model: Any, tokens: Tokens, *, vectors: Float[Tensor, "prompt d_model"] | None = None) -> Any:
    """Call a transformers model; a decoder's positions are counted over real tokens, each choice is the only one.

    Args:
        model: a transformers model.
        tokens: prompts on its device.
        vectors: of a soft prompt: id ``V + i``, ``V`` being the size of the vocabulary, is its ``i``-th.
    """
    ids = {"input_ids": tokens.ids} if vectors is None else {"inputs_embeds": _embedded(model, tokens.ids, vectors)}
    told = {"attention_mask": tokens.attention_mask, "token_type_ids": tokens.token_types}
    parts = ids | {name: value for name, value in told.items() if value is not None}
    if type(model).__name__.endswith("ForMultipleChoice"):
        parts = {name: value[:, None] for name, value in parts.items()}
    if tokens.attention_mask is not None and model.can_generate():
        parts["position_ids"] = (tokens.attention_mask.cumsum(1) - 1).clamp(min=0)
    return model(**parts)


def _embedded(model: Any, ids: Tensor, vectors: Tensor) -> Float[Tensor, "example pos d_model"]:
    """Rows of the token table, and those of a prompt behind it."""
    table = model.get_input_embeddings()
    known, count = table(ids.clamp(max=table.num_embeddings - 1)), table.num_embeddings
    own = vectors.to(known)[(ids - count).clamp(min=0)]
    return torch.where((ids >= count)[..., None], own, known)
