"""A compiled program as tensors: what is kept in files, and the model that is built from it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, Shaped
from safetensors.torch import load_file, save_file
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.models.transformer_lens import build, build_bridge, has_hooked_transformer

PREFIX = "tracr-"
START = "BOS"
UNDEFINED = -100  # a position for which a program gives nothing
FILES = ("program.json", "model.safetensors")
MEANING = "meaning"
Value = Any  # what a program reads and gives: a number, a word, a truth value


@dataclass(frozen=True)
class Shape:
    """The shape of a compiled model, in TransformerLens' names.

    Attributes:
        causal: whether a position attends to those before it alone; else to all.
    """

    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    d_vocab_out: int
    n_ctx: int
    causal: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What TransformerLens is told: no norm, ReLU, learned positions."""
        shape = asdict(self)
        direction = "causal" if shape.pop("causal") else "bidirectional"
        kind = {"act_fn": "relu", "normalization_type": None, "positional_embedding_type": "standard"}
        return {**shape, **kind, "attention_dir": direction}


@dataclass(frozen=True, eq=False)
class Compiled:
    """A program's weights, what its ids stand for, and what it means on every input of one length.

    Attributes:
        name: of the program.
        explanation: what it computes.
        shape: of the model.
        inputs: the value of each input id; one of them is ``START``, the first token of every prompt.
        outputs: the value of each output id; ``None`` where the only output is a number.
        vocabulary: the values that prompts are made of, in a fixed order.
        length: tokens of a prompt behind the first.
        weights: tensors in TransformerLens' names and layouts.
        meaning: what the program gives for each prompt of :attr:`sequences`, by position: ids of outputs
            (``UNDEFINED`` where it gives nothing), or numbers.
    """

    name: str
    explanation: str
    shape: Shape
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...] | None
    vocabulary: tuple[Value, ...]
    length: int
    weights: Mapping[str, Tensor]
    meaning: Shaped[Tensor, "sequence place"]

    @property
    def sequences(self) -> list[tuple[Value, ...]]:
        """All inputs of this length, the last place changing fastest."""
        return list(itertools.product(self.vocabulary, repeat=self.length))

    def encode(self, sequences: Sequence[Sequence[Value]]) -> Int[Tensor, "sequence pos"]:
        """Token ids of some inputs, behind the first token.

        Raises:
            ValueError: a value is none of the vocabulary.
        """
        ids = {value: index for index, value in enumerate(self.inputs)}
        strangers = {value for sequence in sequences for value in sequence if value not in self.vocabulary}
        if strangers:
            raise ValueError(
                f"The program {self.name!r} reads {', '.join(map(repr, self.vocabulary))} but was given "
                f"{', '.join(map(repr, sorted(strangers, key=str)))}. Give it values of its own."
            )
        return torch.tensor([[ids[START], *(ids[value] for value in sequence)] for sequence in sequences])

    def model(self) -> Any:
        """The model, float32 on the CPU: a ``HookedTransformer``, or on TransformerLens 4 a ``TransformerBridge``."""
        make = build if has_hooked_transformer() else build_bridge
        name = f"{PREFIX}{self.name}"
        model = make(**self.shape.settings, init_weights=False, device="cpu", model_name=name)
        with torch.no_grad():
            for name, parameter in backend_of(model).parameters().items():
                # Compiled attention and MLPs have no biases.
                parameter.copy_(self.weights[name]) if name in self.weights else parameter.zero_()
        return model

    def save(self, directory: str | Path) -> None:
        """Write ``FILES`` into a directory, which is made where it is not there."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        facts = ("name", "explanation", "inputs", "outputs", "vocabulary", "length")
        described = {fact: getattr(self, fact) for fact in facts} | {"shape": asdict(self.shape)}
        (directory / FILES[0]).write_text(json.dumps(described, indent=1) + "\n")
        tensors = {name: value.contiguous() for name, value in self.weights.items()}
        save_file({**tensors, MEANING: self.meaning}, directory / FILES[1])

    @staticmethod
    def read(directory: str | Path) -> Compiled:
        """What :meth:`save` wrote. Values of JSON alone come back as they were: numbers, words, truth values."""
        directory = Path(directory)
        facts = json.loads((directory / FILES[0]).read_text())
        weights = load_file(directory / FILES[1])
        for name in ("inputs", "outputs", "vocabulary"):
            facts[name] = None if facts[name] is None else tuple(facts[name])
        facts["shape"] = Shape(**facts["shape"])
        return Compiled(**facts, meaning=weights.pop(MEANING), weights=weights)
