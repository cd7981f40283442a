"""The processes that share a run: those that ``accelerate launch`` or ``torchrun`` started, or this one alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as group

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """How many processes work together, and which one this is. What is here costs nothing where it is alone.

    Attributes:
        rank: number of this process, from 0.
        count: of all.

    Example:
        >>> alone = Processes()
        >>> alone.first, alone.from_first(lambda: 5), alone.each(5)
        (True, 5, [5])
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    @property
    def device(self) -> str | None:
        """The GPU of this process, where several share a machine that has some; else ``None``."""
        return f"cuda:{torch.cuda.current_device()}" if self.count > 1 and torch.cuda.is_available() else None

    def share(self, size: int, *, of: int | None = None) -> tuple[int, int]:
        """Begin and end of what one process takes of ``size`` things in a row; shares differ by at most one.

        Example:
            >>> [Processes(0, 3).share(7, of=rank) for rank in range(3)]
            [(0, 2), (2, 4), (4, 7)]
        """
        rank = self.rank if of is None else of
        return rank * size // self.count, (rank + 1) * size // self.count

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their sums over all processes, in place; every process gets the same bits."""
        if self.count > 1:
            for tensor in tensors:
                group.all_reduce(tensor)

    @torch.no_grad()
    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors the values that they have in the first process."""
        if self.count > 1:
            for tensor in tensors:
                group.broadcast(tensor.data, src=0)

    def each(self, value: Result) -> list[Result]:
        """What every process has, in their order; plain data."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        group.all_gather_object(found, value)
        return found

    def from_first(self, action: Callable[[], Result]) -> Result:
        """What an action gives in the first process, in all of them; it is not done in the others.

        Raises:
            ValueError: the action raised it; all processes raise the same.
        """
        if self.count == 1:
            return action()
        outcome: list[Any] = [_outcome(action) if self.first else None]
        group.broadcast_object_list(outcome, src=0)
        value, error = outcome[0]
        if error is not None:
            raise ValueError(error)
        return value

    def in_first(self, action: Callable[[], Result]) -> Result | None:
        """Do an action in the first process and get there what it gives; ``None`` in others, which wait.

        Raises:
            ValueError: the action raised it; all processes raise the same.
        """
        kept: list[Result] = []
        self.from_first(lambda: kept.append(action()))
        return kept[0] if kept else None

    def in_all(self, action: Callable[[], object]) -> None:
        """Do an action in every process.

        Raises:
            ValueError: some process raised it; all raise that of the first of these.
        """
        if self.count == 1:
            action()
            return
        _, error = _outcome(action)
        if found := next(filter(None, self.each(error)), None):
            raise ValueError(found)

    def check_equal(self, what: Mapping[str, Any], differences: Callable[[Any, Any], list[str]]) -> None:
        """All processes must have been told the same.

        Args:
            what: plain data.
            differences: phrases that say in what two of them differ.

        Raises:
            ValueError: one of them was told something else than the first; all raise the same.
        """
        first, *others = self.each(what)
        for rank, other in enumerate(others, 1):
            if found := differences(first, other):
                raise ValueError(
                    f"Processes that share a run need the same settings, but process {rank} has another "
                    f"{'; '.join(found)} than process 0. Start all with the same command, and seed what is random."
                )

    def first_to_say(self, message: str) -> bool:
        """Whether no other process has said this yet, so that an error that all meet is told once."""
        if self.count == 1:
            return True
        from torch.distributed.distributed_c10d import _get_default_store

        try:
            return _get_default_store().add(f"tlprune said {message}", 1) == 1
        except RuntimeError:  # the process that keeps the record is gone
            return self.first


def processes() -> Processes:
    """The processes of this run; a launcher's are brought together by accelerate, each on a device of its own.

    Example:
        >>> processes()
        Processes(rank=0, count=1)
    """
    if not group.is_available():
        return Processes()
    if not group.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ:
        _bring_together()
    return Processes(group.get_rank(), group.get_world_size()) if group.is_initialized() else Processes()


def part() -> None:
    """Leave the others, at the end of a command."""
    if group.is_available() and group.is_initialized():
        group.destroy_process_group()


def _bring_together() -> None:
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available())


def _outcome(action: Callable[[], Any]) -> tuple[Any, str | None]:
    try:
        return action(), None
    except (ValueError, OSError) as error:
        return None, str(error)
