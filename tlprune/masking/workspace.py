"""The buffers behind one masked run, and the checks that keep their misuse from passing silently.

Autograd does not see these buffers. So each call owns a workspace; its storage carries a serial number that changes
when the storage is handed on; and every backward step checks that it still reads the numbers its forward wrote.
"""

from __future__ import annotations

import math
import weakref

import torch
from jaxtyping import Float
from torch import Tensor

MOST_PRODUCT = 1 << 26  # bytes of a product in low precision on its way to the gradients, which are exact


class Storage:
    """Memory for the writers' differences and their gradients; used by one workspace at a time.

    Args:
        size: numbers that there is room for, of each.
        dtype: of the differences; gradients are kept in at least float32.
        device: of both.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.size, self.kind = size, (dtype, device)
        self.differences = torch.empty(size, dtype=dtype, device=device)
        self.gradients: Tensor | None = None
        self.serial = 0


class Pool:
    """Storages that wait for a next call of about their size; keeps at most ``most`` of them."""

    def __init__(self, most: int = 2) -> None:
        self.most = most
        self.free: list[Storage] = []

    def take(self, size: int, dtype: torch.dtype, device: torch.device) -> Storage:
        """One with room for so many numbers, up to twice as many; one that is a little too small makes way for it.

        How many writers are in play differs from step to step, so each would ask for a size of its own.
        """
        alike = [one for one in self.free if one.kind == (dtype, device) and size <= 2 * one.size <= 4 * size]
        fitting = sorted((one for one in alike if one.size >= size), key=lambda one: one.size)
        for storage in fitting[:1] or alike:
            self.free.remove(storage)
        return fitting[0] if fitting else Storage(size, dtype, device)

    def put(self, storage: Storage) -> None:
        storage.serial += 1
        self.free = [storage, *self.free][: self.most]


class Workspace:
    """What one masked run has written so far: ``d = x - x~`` for each writer, and later ``dL/dd``.

    Args:
        pool: where the storage comes from and returns to.
        shape: ``(writer, example, pos, d_model)``.
        dtype: of the differences; gradients are kept in at least float32.
        device: of both.
    """

    def __init__(self, pool: Pool, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self.storage = pool.take(math.prod(shape), dtype, device)
        self.serial = self.storage.serial
        self.release = weakref.finalize(self, pool.put, self.storage)
        self._task: int | None = None
        self._started = False

    @property
    def differences(self) -> Float[Tensor, "writer example pos d_model"]:
        return self._shaped(self.storage.differences)

    def _shaped(self, memory: Tensor) -> Tensor:
        return memory[: math.prod(self.shape)].view(self.shape)

    @property
    def exact_dtype(self) -> torch.dtype:
        """The type of base and gradients: never below float32."""
        return torch.promote_types(self.differences.dtype, torch.float32)

    def check(self) -> None:
        """Raise unless the storage still holds what this run wrote."""
        if self.storage.serial != self.serial:
            raise RuntimeError(
                "This masked run was already backpropagated once, or its buffers were handed to another run, so a "
                "backward through it would be wrong. Call the masked model again for each backward."
            )

    def write(self, first: int, count: int) -> Float[Tensor, "writer tokens d_model"]:
        """The slots of some writers, to be filled."""
        self.check()
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "A masked run was repeated inside a backward pass (activation checkpointing around a hooked block?). "
                "Its buffers would be overwritten. Turn checkpointing off: readers are recomputed already."
            )
        return self.differences[first : first + count].flatten(1, 2)

    def enter_backward(self) -> None:
        """Join the running backward pass; every other one is refused. The buffers are released at its end."""
        self.check()
        task = torch._C._current_graph_task_id()
        if self._task is None:
            self._task = task
            torch.autograd.Variable._execution_engine.queue_callback(self.release)  # pyright: ignore
        elif task != self._task:
            raise RuntimeError(
                "Two backward passes meet in one masked run. Call the masked model again for each backward."
            )

    def add_product(self, part: tuple[slice, ...], weight: Tensor, gradient: Tensor) -> None:
        """Add ``weight @ gradient``, ``(writer, reader) @ (reader, rest)``, to a part of the writers' gradients."""
        into = self.gradients()[part]
        into = into.view(len(into), math.prod(into.shape[1:]))  # not flatten, which may be a copy
        if weight.dtype == into.dtype:
            into.addmm_(weight, gradient)
            return
        columns = max(1, MOST_PRODUCT // max(1, weight.nbytes // max(1, weight.shape[1])))
        for some, of in zip(into.split(columns, 1), gradient.split(columns, 1), strict=True):
            some.add_(torch.mm(weight, of))

    def gradients(self) -> Float[Tensor, "writer example pos d_model"]:
        """What the readers so far have sent back to each writer."""
        if self.storage.gradients is None:
            self.storage.gradients = torch.empty_like(self.storage.differences, dtype=self.exact_dtype)
        buffer = self._shaped(self.storage.gradients)
        if not self._started:
            buffer.zero_()
            self._started = True
        return buffer
