"""The method contract: who finds a circuit must not look at test examples. Under the seal, looking is an error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tlprune.task import Batch, Stream, Task


class LeakageError(RuntimeError):
    """Test examples were looked at where only training and validation examples may be."""


def sealed(task: Task) -> Task:
    """The same task with test examples that nobody can look at.

    Training and validation examples, name, tokenisation, options and fingerprint are those of ``task``. Whatever is
    asked of a test batch but its length raises :class:`LeakageError`. ``tlprune discover`` hands methods a sealed
    task, and the tests of a method should too.

    Example:
        >>> import tlprune as tp
        >>> task = sealed(tp.planted("copy").task)
        >>> len(task.discovery.train()), len(task.test), task.fingerprint == tp.planted("copy").task.fingerprint
        (96, 64, True)
        >>> try:
        ...     task.test.clean
        ... except LeakageError as error:
        ...     print(error)
        A method may see training and validation examples only but asked for 'clean' of the test examples. Use
        task.discovery; test examples are for tlprune.evaluate alone.
    """
    streams = {
        name: Stream(stream.train, stream.validation, SealedBatch(len(stream.test)))
        for name, stream in task.streams.items()
    }
    twin = replace(task, streams=streams)
    # The fingerprint covers the test examples, which are out of reach from here on.
    vars(twin)["fingerprint"] = task.fingerprint
    return twin


class SealedBatch(Batch):
    """Stands where test examples are; it has their number and nothing else.

    Args:
        count: how many test examples there are.
    """

    def __init__(self, count: int) -> None:
        object.__setattr__(self, "_count", count)

    def __len__(self) -> int:
        return object.__getattribute__(self, "_count")

    def __repr__(self) -> str:
        return f"SealedBatch({len(self)})"

    def __getattribute__(self, name: str) -> Any:
        # Fields with a default exist on the class, so that asking the instance alone would not do.
        if name.startswith("__") and name != "__dict__":
            return object.__getattribute__(self, name)
        raise LeakageError(
            f"A method may see training and validation examples only but asked for {name!r} of the test examples. "
            "Use task.discovery; test examples are for tlprune.evaluate alone."
        )
