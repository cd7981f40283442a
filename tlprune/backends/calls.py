"""What backends share: how a run is edited and steered, and that nothing of it is left on the model."""

from __future__ import annotations

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module, Parameter

from tlprune.backends.activations import Edits, Point, Steering
from tlprune.backends.prompting import check_ids
from tlprune.graph import Convention
from tlprune.task import Tokens

Hook = Callable[[Tensor], Tensor | None]
# A place, what happens there, and whether it happens before what others do there.
Hooks = Iterable[tuple[str, Hook, bool]]


@contextmanager
def hooked(points: Mapping[str, Module], hooks: Hooks) -> Iterator[None]:
    """Hooks on some of a model's points, until the block ends; compiled code, which would pass them by, is not used."""
    handles = []
    try:
        for name, hook, first in hooks:
            handles.append(points[name].register_forward_hook(_as_torch_hook(hook), prepend=first))
        with _uncompiled():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _uncompiled() -> AbstractContextManager[Any]:
    """Modules that ``torch.compile`` has seen run as they were written; nothing where it was never used."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def frozen(model: Module) -> Iterator[None]:
    """No parameter collects gradients until the block ends, whatever its own flag says.

    A plain tensor that stands in a parameter's place is whoever put it there's own.
    """
    trained = [value for value in model.parameters() if isinstance(value, Parameter) and value.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class Runs(ABC):
    """Plain, edited and steered runs of a model, for a backend that says how it is hooked and how it is called."""

    model: Any
    coupled: bool = False

    @abstractmethod
    def edited(self, edits: Edits, positions: Tensor | None = None) -> AbstractContextManager[set[Point]]: ...

    @abstractmethod
    def steered(
        self, steering: Steering, convention: Convention, edits: Edits, positions: Tensor | None = None
    ) -> AbstractContextManager[set[Point]]: ...

    @abstractmethod
    def _forward(self, tokens: Tokens) -> Tensor: ...

    @property
    @abstractmethod
    def embedding(self) -> Module: ...

    def _ids(self, tokens: Tokens) -> Tensor:
        """Token ids, after a look for prompt tokens that no attached prompt has."""
        check_ids(self.embedding, tokens.ids)
        return tokens.ids

    def logits(self, tokens: Tokens, positions: Tensor | None) -> Tensor:
        return self.run(tokens, {}, positions)

    def run(self, tokens: Tokens, edits: Edits, positions: Tensor | None) -> Tensor:
        with self.edited(edits, positions) as met:
            logits = self._forward(tokens)
        check_met(edits, met)
        return logits

    def steer(
        self, tokens: Tokens, steering: Steering, convention: Convention, positions: Tensor | None, edits: Edits
    ) -> Tensor:
        with self.steered(steering, convention, edits, positions) as met:
            logits = self._forward(tokens)
        check_met(edits, met)
        return logits

    def is_hooked(self) -> bool:
        return any(point._forward_hooks or point._backward_hooks for point in self.model.hook_dict.values())

    def resume(
        self, tokens: Tokens, steering: Steering, convention: Convention, positions: Tensor, layers: Sequence[int]
    ) -> Tensor:
        """All blocks are run, because this model cannot begin in the middle; ``steering`` ignores what it knows."""
        return self.steer(tokens, Whole(steering, tokens, positions), convention, positions, {})


class Whole:
    """A steering that knows the last stream at the answer positions alone, for a run that takes it whole."""

    def __init__(self, steering: Steering, tokens: Tokens, positions: Int[Tensor, "example answer"]) -> None:
        self.embedding, self.attention, self.heads = steering.embedding, steering.attention, steering.heads
        self.mlp_input, self.mlp = steering.mlp_input, steering.mlp
        self.steering, self.shape, self.positions = steering, tokens.ids.shape, positions

    def final(self) -> Float[Tensor, "example pos d_model"]:
        stream = self.steering.final()
        whole = stream.new_zeros(*self.shape, stream.shape[-1])
        whole[torch.arange(len(whole), device=whole.device)[:, None], self.positions.to(whole.device)] = stream
        return whole


class AttentionReads:
    """Hands out q, k and v of one block, computed together when a run asks for q, the first of them."""

    def __init__(self, steering: Steering, layer: int) -> None:
        self.steering, self.layer = steering, layer
        self.parts: tuple[Tensor, Tensor, Tensor] | None = None

    def take(self, index: int) -> Tensor:
        if index == 0 or self.parts is None:
            self.parts = self.steering.attention(self.layer)
        return self.parts[index]


class Writes:
    """Tells the engine what one block wrote, edited."""

    def __init__(self, steering: Steering, layer: int, edits: Edits, met: set[Point]) -> None:
        self.steering, self.layer = steering, layer
        kinds = ("heads", "mlp", "attention_post_norm")
        self.edit_heads, self.edit_mlp, self.edit_scale = (edit_at(edits, (kind, layer), met) for kind in kinds)
        self.z = torch.empty(0)

    def heads(self, z: Tensor) -> None:
        self.steering.heads(self.layer, self.edit_heads(z))

    def before_norm(self, z: Tensor) -> Tensor:
        self.z = self.edit_heads(z)
        return self.z

    def at_norm(self, scale: Tensor) -> Tensor:
        scale = self.edit_scale(scale)
        self.steering.heads(self.layer, sent(self.z, scale))
        return scale

    def mlp(self, output: Tensor) -> None:
        self.steering.mlp(self.layer, self.edit_mlp(output))


class WeightCall(Module):
    """A model and something to do with it, in the form that ``torch.func.functional_call`` takes."""

    def __init__(self, model: Module, run: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self) -> Tensor:
        return self.run()


def edit_at(edits: Edits, point: Point, met: set[Point]) -> Callable[[Tensor], Tensor]:
    """The edit of a point, which remembers that it was met; without one the activation stays."""
    if point not in edits:
        return lambda value: value

    def edited(value: Tensor) -> Tensor:
        met.add(point)
        return edits[point](value)

    return edited


def check_met(edits: Edits, met: set[Point]) -> None:
    """Raise unless every activation that was to be edited was met during the run."""
    missed = sorted(set(edits) - met)
    if missed:
        names = ", ".join(f"{kind} of layer {layer}" for kind, layer in missed)
        raise RuntimeError(f"Masked {names} were not met during the run: is part of the model skipped or replaced?")


def stored(seen: dict[str, Tensor], name: str) -> Hook:
    """A hook that keeps what it sees under a name."""

    def store(value: Tensor) -> None:
        seen[name] = value

    return store


def passed(_: Tensor | None, stub: Tensor) -> Tensor:
    """What the model goes on with when an activation was told to the engine, which carries it from here."""
    return stub.detach()


def sent(z: Tensor, scale: Tensor) -> Tensor:
    """What heads send, where a norm divides their sum by ``scale``, ``(example, pos, 1)``."""
    return (z / scale[..., None]).to(z.dtype)


def mean_state(
    states: Float[Tensor, "example pos d_model"], mask: Int[Tensor, "example pos"] | None
) -> Float[Tensor, "example d_model"]:
    """The mean over real tokens."""
    if mask is None:
        return states.mean(1)
    real = mask.to(states)[..., None]
    return (states * real).sum(1) / real.sum(1).clamp(min=1)


def refuse_normed_biases(model: Any, biases: Iterable[Tensor]) -> None:
    """Raise a ValueError where attention's output bias is behind its heads but in front of a norm."""
    for layer, bias in enumerate(biases):
        if bool(bias.any()):
            raise ValueError(
                f"A norm behind attention must see heads alone, but in {model.cfg.model_name!r} layer {layer} adds an "
                "output bias before it, whose share no head carries. Supported are such norms without attention output "
                "biases, as in Gemma 2."
            )


@contextmanager
def weights_in_place(
    parameters: Mapping[str, Tensor], changed: Mapping[str, Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Some tensors overwritten with functions of them, until the block ends."""
    before = {name: parameters[name].detach().clone() for name in changed}
    try:
        for name, change in changed.items():
            parameters[name].copy_(change(before[name]))
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                parameters[name].copy_(value)


def input_axes(name: str, axes: int) -> tuple[int, ...]:
    """Which axes of a weight tensor, by its name in TransformerLens, count inputs."""
    leaf = name.rpartition(".")[2]
    if axes == 3:
        return (0, 1) if leaf == "W_O" else (1,)
    return (0,) if axes == 2 and leaf.startswith("W_") else ()


def weights_hash(parameters: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits of a sample of every weight, the same for a checkpoint in every kind of model.

    Tensors are taken by name; those that are zero throughout the sample are left out, because one kind of model stores
    the zeros of a bias that another does not have.

    Args:
        parameters: tensors in TransformerLens' names and layouts.

    Example:
        >>> weights = {"embed.W_E": torch.ones(3, 2), "unembed.b_U": torch.zeros(3)}
        >>> weights_hash(weights) == weights_hash({"embed.W_E": torch.ones(3, 2)})
        True
        >>> weights_hash(weights) == weights_hash({"embed.W_E": torch.ones(2, 3)})
        False
    """
    digest = hashlib.sha256()
    for name, value in sorted(parameters.items()):
        flat = value.detach().flatten()
        sample = flat[:: max(1, len(flat) // 256)].to("cpu", torch.float64)
        if sample.any():
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _as_torch_hook(hook: Hook) -> Callable[[Module, tuple, Tensor], Tensor | None]:
    return lambda module, inputs, output: hook(output)
