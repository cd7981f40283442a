"""What a circuit leaves out of a classifier: where that lies in its parameters, and what is said of it in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tlprune.circuit import Circuit
from tlprune.finetuning.removing import NOTHING, Removed, circuit_hash, empty, places_of
from tlprune.models.huggingface import from_huggingface
from tlprune.sites import Weights


@dataclass(frozen=True)
class Cut:
    """Weights of one Hugging Face model that are 0, because a circuit does not keep them.

    Attributes:
        removed: where they are, by names of the model's parameters.
        circuit: what keeps the others; ``None``: nothing is removed.
    """

    removed: Removed
    circuit: Circuit | None = None

    @property
    def digest(self) -> str | None:
        """Hash of the circuit."""
        return None if self.circuit is None else circuit_hash(self.circuit)

    def facts(self, model: Any) -> dict[str, Any] | None:
        """As plain data: how many weights the circuit's tensors have, how many are removed, how many of these are 0.

        The last is counted in the model, so that a file says what is so and not what was meant.
        """
        if self.circuit is None:
            return None
        parameters = dict(model.named_parameters())
        zero = [int((parameters[name][where.to(model.device)] == 0).sum()) for name, where in self.removed.items()]
        weights, count = weights_in(self.circuit), self.count
        sparsity = count / weights if weights else 0.0
        return {"hash": self.digest, "weights": weights, "removed": count, "zero": sum(zero), "sparsity": sparsity}

    @property
    def count(self) -> int:
        """How many weights are removed."""
        return sum(int(where.sum()) for where in self.removed.values())


WHOLE = Cut(NOTHING)


def weights_in(circuit: Circuit) -> int:
    """Single weights in the tensors that a circuit is over, whatever its unit."""
    group = circuit.sites.groups[0]
    assert isinstance(group, Weights)
    return sum(torch.Size(matrix.shape).numel() for matrix in group.matrices)


def cut(model: Any, circuit: Circuit) -> Cut:
    """Set to 0, in place, what a circuit does not keep, and say where that is.

    Args:
        model: a Hugging Face model that :func:`~tlprune.from_huggingface` reads.
        circuit: over weights, rows or columns of its blocks and pooler.

    Raises:
        ValueError: the circuit is over something else, or was found on another model.

    Example:
        >>> import tlprune as tp
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=9, **shape))
        >>> sites = tp.weights(tp.load(model, device="cpu"), "blocks.0.mlp.W_in|pooler.*")
        >>> found = cut(model, tp.Circuit(sites, torch.arange(len(sites)) % 2 == 0))
        >>> [(name.removeprefix("bert."), int(where.sum())) for name, where in found.removed.items()]
        [('encoder.layer.0.intermediate.dense.weight', 48), ('pooler.dense.weight', 32), ('pooler.dense.bias', 4)]
        >>> found.facts(model)["sparsity"], int((model.bert.pooler.dense.bias == 0).sum())
        (0.5, 8)
    """
    removed = places_of(from_huggingface(model, device="cpu"), circuit.complement)
    empty(model, removed)
    return Cut(removed, circuit)


def cut_by_file(model: Any, path: Path | None) -> Cut:
    """The same with a circuit in a file, if there is one."""
    return WHOLE if path is None else cut(model, Circuit.load(path))


def described_cut(facts: Mapping[str, Any]) -> str:
    """A line on :meth:`Cut.facts`.

    Example:
        >>> described_cut({"hash": "c0ffee", "weights": 200, "removed": 50, "zero": 50, "sparsity": 0.25})
        '50 of 200 weights of circuit c0ffee are held at 0 (25.0%)'
    """
    share = f"{100 * facts['sparsity']:.1f}%"
    return f"{facts['zero']:,} of {facts['weights']:,} weights of circuit {facts['hash']} are held at 0 ({share})"
