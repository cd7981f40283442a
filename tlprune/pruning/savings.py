"""ShrinkBench's figures of a pruned transformer: parameters and products, in all and of what is not zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.circuit import Circuit
from tlprune.evaluation.table import aligned
from tlprune.masking.ablation import Zero
from tlprune.masking.folding import folded_parameters
from tlprune.masking.masked import Masked
from tlprune.methods.compression import own_names
from tlprune.sites import Sites, Weights

_READ_ONCE = ("pooler.W", "classifier.W")  # of a prompt's first token alone
_TABLES = ("embed.", "pos_embed.")  # looked up, not multiplied


@dataclass(frozen=True)
class Savings:
    """What a pruned model has and what of it is left; printing it gives a table.

    Attributes:
        length: tokens of the prompt that products are counted for.
        size: parameters of the model, each once.
        size_nz: those that are not 0 and not of a head or neuron that is gone.
        flops: multiplications with an addition, of weights and of attention, for one prompt.
        flops_nz: those of numbers that ``size_nz`` counts, and of attention's heads that are left.
        attention: how many of ``flops`` are attention's own, of queries with keys and of patterns with values.
        attention_nz: how many of ``flops_nz`` are.
    """

    length: int
    size: int
    size_nz: int
    flops: int
    flops_nz: int
    attention: int
    attention_nz: int

    @property
    def compression_ratio(self) -> float:
        """``size / size_nz``; infinite where nothing is left."""
        return self.size / self.size_nz if self.size_nz else float("inf")

    @property
    def theoretical_speedup(self) -> float:
        """``flops / flops_nz``; infinite where nothing is left."""
        return self.flops / self.flops_nz if self.flops_nz else float("inf")

    def as_dict(self) -> dict[str, Any]:
        """Plain data; what is infinite is ``None``."""
        ratios = {"compression_ratio": self.compression_ratio, "theoretical_speedup": self.theoretical_speedup}
        return asdict(self) | {name: None if value == float("inf") else value for name, value in ratios.items()}

    def __str__(self) -> str:
        rows = [
            ["parameters", f"{self.size:,}", f"{self.size_nz:,}", f"{self.compression_ratio:.3f}"],
            ["multiply-adds", f"{self.flops:,}", f"{self.flops_nz:,}", f"{self.theoretical_speedup:.3f}"],
        ]
        return "\n".join([*aligned(["", "whole", "left", "ratio"], rows), f"for one prompt of {self.length:,} tokens"])


@torch.no_grad()
def savings(model: Any, circuit: Circuit | None = None, *, length: int = 128) -> Savings:
    """ShrinkBench's metrics of a model, pruned to a circuit or as it is.

    A product is one multiplication with its addition, as in ShrinkBench; torch's FlopCounterMode counts two. A matrix
    makes one per weight and token; attention makes ``2 n^2 d_head`` for each head of ``n`` tokens, which ShrinkBench,
    made for convolutions, leaves out, as it does the factor ``n``. The pooler and the classifier read one token.
    Embeddings are looked up; norms, activation functions and the softmax are not counted. Of several choices or a batch
    each prompt costs as much.

    A head whose output weights are all 0 is gone with its queries, its products, and its keys and values where no other
    head reads them; so is such a neuron with what leads to it: :func:`~tlprune.shrink` takes just these away. What else
    is 0 counts as saved, as if hardware could skip any zero: the speedup is theoretical.

    Args:
        model: a TransformerLens model, or a :class:`~tlprune.Masked` one, whose hard circuit is built in.
        circuit: of weights, neurons, heads, MLPs, layers or nodes, under zero ablation; by default nothing is removed.
        length: tokens of the prompt.

    Raises:
        ValueError: the circuit holds edges or differs by span; its weights name a bias that the model lacks, or a tied
            tensor; or the length is below 1.

    Source: Blalock, Gonzalez Ortiz, Frankle, Guttag, "What is the State of Neural Network Pruning?" (MLSys 2020).

    Example:
        >>> import tlprune as tp
        >>> model = tp.load("testbed")
        >>> half = tp.Circuit(tp.heads(model), torch.arange(32) % 2 == 0)
        >>> found = savings(model, half, length=32)
        >>> found.attention_nz / found.attention, found.size_nz < found.size
        (0.5, True)
    """
    if length < 1:
        raise ValueError(f"A prompt has 1 token or more but length is {length}. Give that of the task's prompts.")
    masked = model if isinstance(model, Masked) else None
    if circuit is not None:
        masked = Masked(model, circuit, Zero())
    backend = backend_of(masked.model if masked else model)
    weights = _left(backend, masked)
    whole = {matrix.name: matrix for matrix in backend.matrices()}
    held = backend.held()
    tokens = {name: _tokens(name, length) for name, matrix in whole.items() if matrix.inputs}
    per_head = [2 * length**2 * weights[f"blocks.{layer}.attn.W_Q"].shape[-1] for layer in range(_layers(backend))]
    heads = [int(alive.sum()) for alive in _heads(backend, weights)]
    attention = sum(per_head) * backend.architecture.n_heads
    attention_nz = sum(each * count for each, count in zip(per_head, heads, strict=True))
    return Savings(
        length=length,
        size=sum(tensor.numel() for tensor in held.values()),
        # Where the model shows a row twice that it holds once, it is counted once.
        size_nz=sum(_nonzero(weights[name]) * own.numel() // weights[name].numel() for name, own in held.items()),
        flops=attention + sum(count * weights[name].numel() for name, count in tokens.items()),
        flops_nz=attention_nz + sum(count * _nonzero(weights[name]) for name, count in tokens.items()),
        attention=attention,
        attention_nz=attention_nz,
    )


def _tokens(name: str, length: int) -> int:
    """How many tokens of a prompt a matrix reads."""
    return 0 if name.startswith(_TABLES) else 1 if name in _READ_ONCE else length


def _layers(backend: Any) -> int:
    return backend.architecture.n_layers


def _nonzero(tensor: Tensor) -> int:
    return int(tensor.count_nonzero())


def _left(backend: Any, masked: Masked | None) -> dict[str, Tensor]:
    """The model's numbers under the mask, 0 in all that goes with heads and neurons without output weights."""
    if masked is None:
        weights = {name: value.detach().clone() for name, value in backend.parameters().items()}
    else:
        for group in masked.sites.groups:
            if isinstance(group, Weights):
                own_names(masked.model, Sites((group,)))
        weights = folded_parameters(masked)
    for layer, alive in enumerate(_heads(backend, weights)):
        _without(weights, f"blocks.{layer}.attn.", alive)
    for layer in range(_layers(backend) if backend.architecture.has_mlp else 0):
        gone = ~weights[f"blocks.{layer}.mlp.W_out"].any(1)
        for part in ("W_in", "W_gate", "b_in"):
            if (name := f"blocks.{layer}.mlp.{part}") in weights:
                weights[name][..., gone] = 0
    return weights


def _heads(backend: Any, weights: Mapping[str, Tensor]) -> list[Tensor]:
    """By layer, which heads have output weights."""
    return [weights[f"blocks.{layer}.attn.W_O"].flatten(1).any(1) for layer in range(_layers(backend))]


def _without(weights: Mapping[str, Tensor], attention: str, alive: Tensor) -> None:
    """Nothing is left of heads that are gone, nor of keys and values that they alone read."""
    for part in "QKV":
        for kind in "Wb":
            tensor = weights[f"{attention}{kind}_{part}"]
            tensor[~alive.unflatten(0, (len(tensor), -1)).any(1)] = 0
