"""A run without numbers, to see what memory it takes: operations give tensors that have shapes and no memory.

Numbers with a fraction are on PyTorch's meta device, whatever device a run asks for. Whole numbers and truth values
(tokens, positions, which example is where) stay what they are, on the CPU, until they meet the others, so that a run
goes the way that it would.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

ATEN = torch.ops.aten
META = torch.device("meta")
SMALL = 1 << 16  # bytes of whole numbers in a model, such as those of positions, that are worth knowing
# Functions that make tensors of a size, which is their first argument.
FACTORIES = {ATEN.empty, ATEN.zeros, ATEN.ones, ATEN.full, ATEN.rand, ATEN.randn}
Thing = TypeVar("Thing")


def outlined(thing: Thing, *, same: tuple[Any, ...] = (), whole: bool = True) -> Thing:
    """A copy whose tensors have shapes and no memory.

    Args:
        thing: a model, masks, an ablation.
        same: parts that the copy shares with it, such as a tokenizer.
        whole: whether its whole numbers and truth values lose their memory too, all but small ones; otherwise the copy
            shares them.
    """
    known: dict[int, Any] = {id(part): part for part in same if part is not None}
    with _Outlining(whole) as outlining:
        parameters = thing.parameters() if isinstance(thing, nn.Module) else ()
        known |= {id(parameter): outlining.outline(parameter) for parameter in parameters}
        return copy.deepcopy(thing, known)


class _Outlining(TorchFunctionMode):
    """While it lasts, a deep copy of a tensor is its outline."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        self.memory: dict[int, tuple[Any, Tensor]] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not Tensor.__deepcopy__:
            return function(*args, **(kwargs or {}))
        tensor, known = args
        if id(tensor) not in known:
            known[id(tensor)] = self.outline(tensor)
        return known[id(tensor)]

    def outline(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() and not tensor.is_meta and (not self.whole or tensor.nbytes <= SMALL):
            return tensor if tensor.device.type == "cpu" else tensor.cpu()
        storage = tensor.untyped_storage()
        size = storage.nbytes() // tensor.itemsize
        _, memory = self.memory.setdefault(
            storage._cdata, (storage, torch.empty(size, dtype=tensor.dtype, device=META))
        )
        found = memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        return nn.Parameter(found, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else found


class Counted(TorchDispatchMode):
    """While it lasts, the bytes of tensors that are made are counted, for as long as somebody holds them.

    Attributes:
        most: the most bytes that tensors made meanwhile took at one time.
        at_most: these tensors by number, each with its bytes and whether it was made in a backward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most, self.now, self.made = 0, 0, 0
        self.alive: dict[int, tuple[int, bool]] = {}
        self.at_most: dict[int, tuple[int, bool]] = {}
        self.numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def begin(self, *, without: Iterable[Tensor]) -> None:
        """Count from here on, and do not count these tensors."""
        for tensor in without:
            storage = tensor.untyped_storage()
            if self.numbers.get(storage, 0):
                self.now -= self.alive.pop(self.numbers[storage], (0, False))[0]
            self.numbers[storage] = 0
        self.most, self.at_most = 0, {}

    def number(self, tensor: Tensor) -> int | None:
        """The number of a tensor's memory; ``None`` if it was not made here."""
        return self.numbers.get(tensor.untyped_storage())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self._result(function, args, kwargs or {})
        for tensor in _tensors((result,)):
            self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self.numbers or not storage.nbytes():
            return
        self.made += 1
        self.numbers[storage] = self.made
        self.alive[self.made] = (storage.nbytes(), torch._C._current_graph_task_id() != -1)
        self.now += storage.nbytes()
        weakref.finalize(storage, self._freed, self.made).atexit = False

    def _freed(self, number: int) -> None:
        if number in self.alive:
            self.look()
            self.now -= self.alive.pop(number)[0]

    def look(self) -> None:
        """Note what is there, if it is the most so far."""
        if self.now > self.most:
            self.most, self.at_most = self.now, dict(self.alive)

    def _result(self, function: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        return function(*args, **kwargs)


class DryRun(Counted):
    """While it lasts, operations give tensors without memory; it counts what these would take.

    Attributes:
        truth: what a question to a tensor without numbers is answered with, such as whether any of them is not 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.truth = True

    @contextmanager
    def doubting(self) -> Iterator[None]:
        """While it lasts, such questions are answered with no."""
        self.truth = False
        yield
        self.truth = True

    def _result(self, function: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        packet = function.overloadpacket
        if packet is ATEN._local_scalar_dense and args[0].is_meta:
            return self.truth if args[0].dtype == torch.bool else 0
        if packet is ATEN._to_copy:
            return _copied(args[0], kwargs)
        if packet in FACTORIES or packet is ATEN.arange:
            return _made(function, args, kwargs)
        tensors = [*_tensors(args), *_tensors(kwargs.values())]
        known = [tensor for tensor in tensors if not tensor.is_meta]
        if len(known) == len(tensors):
            return function(*args, **_at_home(kwargs, whole=all(not t.is_floating_point() for t in tensors)))
        if function._schema.is_mutable and isinstance(args[0], Tensor) and not args[0].is_meta:
            return args[0]  # numbers that nobody knows, put among some that are known
        if known:
            args, kwargs = tree_map_only(Tensor, _outline, (args, dict(kwargs)))
        return function(*args, **_abroad(kwargs))


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among some values and in lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _outline(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else torch.empty_like(tensor, device=META)


def _abroad(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {**kwargs, "device": META} if kwargs.get("device") is not None else dict(kwargs)


def _at_home(kwargs: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
    """Arguments of a function of known numbers alone, which stay where they are, unless others are made of them."""
    asked = kwargs.get("device")
    if asked is None or not (whole and _is_whole(kwargs.get("dtype") or torch.long)):
        return dict(kwargs)
    return {**kwargs, "device": torch.device("cpu")}


def _is_whole(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex)


def _copied(tensor: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """A tensor on another device or of another type: whole numbers stay on the CPU, others have no memory."""
    dtype = kwargs.get("dtype") or tensor.dtype
    if _is_whole(dtype):
        if tensor.is_meta and kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu":
            return torch.zeros(tensor.shape, dtype=dtype)
        return torch.empty_like(tensor, dtype=dtype) if tensor.is_meta else tensor.to(dtype=dtype, copy=True)
    if not tensor.is_meta and kwargs.get("device") is None:
        return tensor.to(dtype=dtype, copy=True)
    return torch.empty_like(tensor, dtype=dtype, device=META)


def _made(function: Any, args: Any, kwargs: Mapping[str, Any]) -> Tensor:
    """A new tensor: whole numbers on the CPU, others without memory."""
    if function.overloadpacket is ATEN.arange:
        fraction = any(isinstance(value, float) for value in args)
        whole = _is_whole(kwargs.get("dtype") or (torch.get_default_dtype() if fraction else torch.long))
        return function(*args, **{**kwargs, "device": torch.device("cpu") if whole else META})
    known = type(args[1]) if function.overloadpacket is ATEN.full else float
    dtype = kwargs.get("dtype") or {bool: torch.bool, int: torch.long}.get(known, torch.get_default_dtype())
    if _is_whole(dtype):
        return function(*args, **{**kwargs, "device": torch.device("cpu")})
    return torch.empty(args[0], dtype=dtype, device=META)
