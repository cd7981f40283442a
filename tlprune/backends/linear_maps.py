"""Where a model's linear maps read and what they give, whatever kind of model they are in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.nn import Module

# Settings of TransformerLens under which attention reads or gives one copy per head; none changes its result.
PER_HEAD = ("use_split_qkv_input", "use_attn_in", "use_attn_result", "ungroup_grouped_query_attention")


@dataclass(frozen=True)
class Spot:
    """A value of a run.

    Attributes:
        module: a module that is called with it, or returns it.
        side: which of these.
        first: only the value at the first token is meant.
    """

    module: Module
    side: Literal["in", "out"]
    first: bool = False

    def hook(self, function: Callable[[Tensor], Tensor | None]) -> Any:
        """Call ``function`` with the value in each run; what it returns, if anything, takes the value's place."""
        module: Any = self.module  # its hooks are typed for one of several signatures
        if self.side == "out":
            return module.register_forward_hook(lambda module, inputs, output: function(output))
        replace = lambda module, inputs, named: _replaced(function, inputs, named)  # noqa: E731
        return module.register_forward_pre_hook(replace, with_kwargs=True)

    def of(self, value: Tensor) -> Tensor:
        return value[:, 0] if self.first else value


@dataclass(frozen=True)
class LinearMap:
    """``y = x W + b``, somewhere in a model.

    Attributes:
        weight: name of ``W``, as TransformerLens shows it.
        bias: name of ``b``; ``None`` where the map has none.
        reads: a name for ``x``, the same for maps that read the same.
        source: where ``x`` is, ``(example, pos, ...)``, or ``(example, ...)`` for a map of whole prompts.
        target: where ``y`` is.
    """

    weight: str
    bias: str | None
    reads: str
    source: Spot
    target: Spot


Read = Callable[[str, Tensor], None]
Change = Callable[[LinearMap, Tensor], Tensor | None]


@contextmanager
def watched(maps: Iterable[LinearMap], *, read: Read | None = None, change: Change | None = None) -> Iterator[None]:
    """Read what linear maps read, once for each ``reads``, and read or change what they give, until the block ends.

    Args:
        maps: of one model.
        read: is told of ``x``.
        change: is told of ``y``; what it returns, if anything, takes its place.

    Raises:
        RuntimeError: a map was not met while the block ran the model.
    """
    chosen = tuple(maps)
    met: set[str] = set()
    with ExitStack() as stack:
        if read:
            for one in {one.reads: one for one in reversed(chosen)}.values():
                stack.callback(one.source.hook(_reader(one, read, met)).remove)
        if change:
            for one in chosen:
                stack.callback(one.target.hook(_changer(one, change, met)).remove)
        yield
    wanted = {one.reads for one in chosen if read} | {one.weight for one in chosen if change}
    if wanted - met:
        raise RuntimeError(
            f"{', '.join(sorted(wanted - met))} were not met during the run: is part of the model skipped?"
        )


@contextmanager
def attention_whole(config: Any) -> Iterator[None]:
    """A HookedTransformer's or HookedEncoder's attention without copies per head, until the block ends."""
    before = {name: getattr(config, name) for name in PER_HEAD if getattr(config, name, False)}
    try:
        for name in before:
            setattr(config, name, False)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def block_maps(modules: Mapping[str, Module], layer: int, *, gated: bool, has_mlp: bool) -> Iterator[LinearMap]:
    """The linear maps of a block of TransformerLens' own models.

    The input bias of a gated MLP is added behind the product with the gate there, so it is no map's.
    """
    block = f"blocks.{layer}."
    attention = modules[f"{block}attn"]
    for part in "QKV":
        target = Spot(modules[f"{block}attn.hook_{part.lower()}"], "out")
        names = (f"{block}attn.W_{part}", f"{block}attn.b_{part}", f"{block}attn")
        yield LinearMap(*names, Spot(attention, "in"), target)
    heads = Spot(modules[f"{block}attn.hook_z"], "out")
    yield LinearMap(f"{block}attn.W_O", f"{block}attn.b_O", f"{block}heads", heads, Spot(attention, "out"))
    if has_mlp:
        yield from _mlp_maps(modules, f"{block}mlp", gated=gated)


def _mlp_maps(modules: Mapping[str, Module], mlp: str, *, gated: bool) -> Iterator[LinearMap]:
    stream, neurons = Spot(modules[mlp], "in"), Spot(modules[f"{mlp}.hook_post"], "out")
    acted_on = Spot(modules[f"{mlp}.hook_pre"], "out")
    if gated:
        yield LinearMap(f"{mlp}.W_gate", None, mlp, stream, acted_on)
        yield LinearMap(f"{mlp}.W_in", None, mlp, stream, Spot(modules[f"{mlp}.hook_pre_linear"], "out"))
    else:
        yield LinearMap(f"{mlp}.W_in", f"{mlp}.b_in", mlp, stream, acted_on)
    yield LinearMap(f"{mlp}.W_out", f"{mlp}.b_out", f"{mlp}.neurons", neurons, Spot(modules[mlp], "out"))


def _reader(one: LinearMap, read: Read, met: set[str]) -> Callable[[Tensor], None]:
    def told(value: Tensor) -> None:
        met.add(one.reads)
        read(one.reads, one.source.of(value))

    return told


def _changer(one: LinearMap, change: Change, met: set[str]) -> Callable[[Tensor], Tensor | None]:
    def changed(value: Tensor) -> Tensor | None:
        met.add(one.weight)
        return change(one, value)

    return changed


def _replaced(function: Callable[[Tensor], Tensor | None], inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """What a module is called with instead; attention is called with its input by name."""
    found = function(inputs[0] if inputs else named["query_input"])
    return None if found is None else ((found, *inputs[1:]), named)
