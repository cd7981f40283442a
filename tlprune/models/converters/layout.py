"""Where each weight of a Hugging Face model is in TransformerLens, in one table that is read in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from einops import rearrange
from torch import Tensor

Sizes = Mapping[str, int]


@runtime_checkable
class Converter(Protocol):
    """Reads and writes the models of one transformers class."""

    def check(self, config: Any) -> None:
        """Raise a ValueError for a configuration whose logits would come out wrong, before weights are read."""
        ...

    def convert(self, hf_model: Any, *, device: str | None, dtype: torch.dtype) -> Any:
        """A TransformerLens model with the same outputs; the given one is left as it is."""
        ...

    def restore(self, hf_model: Any, parameters: Mapping[str, Tensor]) -> None:
        """Write parameters, by their TransformerLens names, into a Hugging Face model."""
        ...


@dataclass(frozen=True)
class Weight:
    """A tensor of a Hugging Face model, and the tensors of TransformerLens that it holds.

    ``ours = factor * rearrange(theirs, pattern) + offset``.

    Attributes:
        theirs: its name, with ``{}`` for the number of a layer.
        ours: names in TransformerLens, as it shows them (``W_K`` for grouped keys, too); several of them lie stacked
            along the first axis of what the pattern gives.
        pattern: an einops pattern from theirs to ours. Letters with a size of their own: ``n`` heads, ``k`` key/value
            heads, ``h`` numbers per head, ``q`` what is stacked.
        factor: multiplies their numbers.
        offset: is added to them.
    """

    theirs: str
    ours: tuple[str, ...]
    pattern: str = "... -> ..."
    factor: float = 1.0
    offset: float = 0.0

    def at(self, layer: int) -> Weight:
        """The same weight of one layer."""
        names = tuple(name.format(layer) for name in self.ours)
        return Weight(self.theirs.format(layer), names, self.pattern, self.factor, self.offset)

    def read(self, value: Tensor, sizes: Sizes) -> dict[str, Tensor]:
        """Their tensor as ours."""
        # A Hugging Face model rounds the factor to its own precision before it multiplies.
        factor = torch.tensor(self.factor).to(value.dtype)
        found = self.offset + factor * rearrange(value, self.pattern, **self._sizes(sizes))
        parts = [found] if len(self.ours) == 1 else list(found)
        return dict(zip(self.ours, parts, strict=True))

    def write(self, parameters: Mapping[str, Tensor], sizes: Sizes) -> Tensor:
        """Ours as their tensor."""
        parts = [parameters[name] for name in self.ours]
        value = parts[0] if len(parts) == 1 else torch.stack(parts)
        source, _, target = self.pattern.partition("->")
        factor = torch.tensor(self.factor).to(value.dtype)
        return rearrange((value - self.offset) / factor, f"{target} -> {source}", **self._sizes(sizes))

    def _sizes(self, sizes: Sizes) -> dict[str, int]:
        own = {**sizes, "q": len(self.ours)}
        return {letter: own[letter] for letter in "nkhq" if letter in self.pattern}


def spread(weights: Sequence[Weight], n_layers: int) -> Iterator[Weight]:
    """Each weight, once for every layer where it belongs to one."""
    for weight in weights:
        yield from (weight.at(layer) for layer in range(n_layers)) if "{}" in weight.theirs else (weight,)


@torch.no_grad()
def read_weights(weights: Sequence[Weight], hf_model: Any, sizes: Sizes, dtype: torch.dtype) -> dict[str, Tensor]:
    """The parameters of a Hugging Face model by their names in TransformerLens; biases it lacks are left out.

    Raises:
        ValueError: the model has a parameter that no weight of the table stands for, or lacks one.
    """
    theirs = {name: value.detach() for name, value in hf_model.named_parameters(remove_duplicate=False)}
    found: dict[str, Tensor] = {}
    for weight in spread(weights, sizes["layers"]):
        value = theirs.pop(weight.theirs, None)
        if value is not None:
            found |= weight.read(value.to(dtype), sizes)
        elif not weight.theirs.endswith(".bias"):
            raise ValueError(_strange(hf_model, f"has no parameter {weight.theirs}"))
    if theirs:
        raise ValueError(_strange(hf_model, f"has a parameter {next(iter(theirs))} of its own"))
    return found


def _check_there(parameters: Mapping[str, Tensor], weight: Weight) -> None:
    lacking = [name for name in weight.ours if name not in parameters]
    if lacking:
        raise ValueError(
            f"The model has no {lacking[0]}, of which {weight.theirs} is made: was its norm folded into other weights? "
            "Load it again with tp.from_huggingface(...), which folds nothing."
        )


def _strange(hf_model: Any, what: str) -> str:
    return (
        f"A stock {type(hf_model).__name__} was expected, but this one {what}: an adapter, or a changed class? "
        "Merge adapters into the weights first, and save the model with save_pretrained()."
    )


@torch.no_grad()
def write_weights(weights: Sequence[Weight], hf_model: Any, parameters: Mapping[str, Tensor], sizes: Sizes) -> None:
    """Write parameters, by their names in TransformerLens, into a Hugging Face model.

    Raises:
        ValueError: a parameter that is not zero has no place in that class.
    """
    theirs = dict(hf_model.named_parameters(remove_duplicate=False))
    homeless = dict(parameters)
    for weight in spread(weights, sizes["layers"]):
        if weight.theirs in theirs:
            _check_there(parameters, weight)
            theirs[weight.theirs].copy_(weight.write(parameters, sizes))
            homeless = {name: value for name, value in homeless.items() if name not in weight.ours}
    refuse_homeless(hf_model, homeless)


def refuse_homeless(hf_model: Any, homeless: Mapping[str, Tensor]) -> None:
    """Raise a ValueError if parameters without a place in a Hugging Face model hold numbers."""
    lost = [name for name, value in homeless.items() if bool(value.any())]
    if lost:
        raise ValueError(
            f"{type(hf_model).__name__} has no {lost[0]}, in which this model has numbers other than 0 (means of "
            f"ablated parts go into biases). {len(lost)} such tensors have no place. Use Zero() ablation."
        )
