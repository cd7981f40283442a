"""Transformers models with fewer heads and neurons in some layers than in others, from the stock classes.

This file needs torch and transformers alone. ``save_pretrained`` puts a copy beside the weights, so that
``AutoModel....from_pretrained(directory, trust_remote_code=True)`` reads the model wherever it is.

``Shrunk`` in front of the name of a stock class, as in ``ShrunkLlamaForCausalLM``, is that class with smaller layers.
The configuration stays that of the whole model; which of its heads and neurons are there is in ``sizes.json``.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers.utils import cached_file

FORMAT, VERSION, FILE = "tlprune-sizes", 1, "sizes.json"
PARTS = ("attention", "mlp")
HUB = ("cache_dir", "local_files_only", "revision", "token", "subfolder")
Unit = Literal["heads", "key_value_heads", "neurons"]
UNITS: tuple[Unit, ...] = ("heads", "key_value_heads", "neurons")


@dataclass(frozen=True)
class Layer:
    """What of one layer is there, by its numbers in the whole model.

    Attributes:
        heads: query heads; as many for each of the key/value heads, in their order.
        key_value_heads: of grouped queries, else the same as ``heads``.
        neurons: of the MLP.
        biases: output biases that are here and not in the stock class: ``"attention"``, ``"mlp"``.
    """

    heads: tuple[int, ...]
    key_value_heads: tuple[int, ...]
    neurons: tuple[int, ...]
    biases: tuple[str, ...] = ()


class Matrix(NamedTuple):
    """A linear map of a layer: which of its axes counts heads or neurons.

    ``stacked`` matrices lie behind each other along that axis; ``per_head`` times a head's numbers belong to one head.
    """

    path: str
    unit: Unit
    stacked: int = 1
    per_head: int = 1


@dataclass(frozen=True)
class Family:
    """Where the parts of a layer are in the stock classes of one kind.

    Attributes:
        layers: name of the list of layers in the trunk.
        attention: the module that is replaced where no head is left; ``mlp`` likewise where no neuron is.
        inner: matrices whose outputs are heads or neurons.
        outer: the two matrices that read them: attention's and the MLP's.
        counts: how an attention module calls its numbers: of heads, of all their numbers, of heads per key/value head.
        width: how the configuration calls the number of neurons.
        free_heads: the configuration can state fewer heads of the same size.
    """

    layers: str
    attention: str
    mlp: str
    inner: tuple[Matrix, ...]
    outer: tuple[Matrix, Matrix]
    counts: tuple[str, str, str]
    width: str
    free_heads: bool = False


def _llama() -> Family:
    inner = [Matrix("self_attn.q_proj", "heads")]
    inner += [Matrix(f"self_attn.{part}_proj", "key_value_heads") for part in "kv"]
    inner += [Matrix(f"mlp.{part}_proj", "neurons") for part in ("up", "gate")]
    outer = Matrix("self_attn.o_proj", "heads"), Matrix("mlp.down_proj", "neurons")
    counts, width = ("", "", "num_key_value_groups"), "intermediate_size"
    return Family("layers", "self_attn", "mlp", tuple(inner), outer, counts, width, free_heads=True)


def _bert() -> Family:
    inner = [Matrix(f"attention.self.{part}", "heads") for part in ("query", "key", "value")]
    inner += [Matrix("intermediate.dense", "neurons")]
    outer = Matrix("attention.output.dense", "heads"), Matrix("output.dense", "neurons")
    counts = ("num_attention_heads", "all_head_size", "")
    return Family("encoder.layer", "attention.self", "intermediate", tuple(inner), outer, counts, "intermediate_size")


GPT2 = Family(
    layers="h",
    attention="attn",
    mlp="mlp",
    inner=(Matrix("attn.c_attn", "heads", stacked=3), Matrix("mlp.c_fc", "neurons")),
    outer=(Matrix("attn.c_proj", "heads"), Matrix("mlp.c_proj", "neurons")),
    counts=("num_heads", "split_size", ""),
    width="n_inner",
)
NEOX = Family(
    layers="layers",
    attention="attention",
    mlp="mlp",
    inner=(Matrix("attention.query_key_value", "heads", per_head=3), Matrix("mlp.dense_h_to_4h", "neurons")),
    outer=(Matrix("attention.dense", "heads"), Matrix("mlp.dense_4h_to_h", "neurons")),
    counts=("", "", ""),
    width="intermediate_size",
)
FAMILIES: dict[str, Family] = {
    "gpt2": GPT2,
    "gpt_neox": NEOX,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _llama()),
    **dict.fromkeys(("bert", "roberta"), _bert()),
}
AUTO = {
    "LMHeadModel": "AutoModelForCausalLM",
    "ForCausalLM": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForMultipleChoice": "AutoModelForMultipleChoice",
    "Model": "AutoModel",
}


class Whole(NamedTuple):
    """Sizes of every layer of the whole model."""

    heads: int
    key_value_heads: int
    neurons: int
    d_head: int

    @staticmethod
    def of(config: Any) -> Whole:
        heads = config.num_attention_heads
        d_head = getattr(config, "head_dim", None) or config.hidden_size // heads
        width = getattr(config, FAMILIES[config.model_type].width) or 4 * config.hidden_size
        return Whole(heads, getattr(config, "num_key_value_heads", None) or heads, width, d_head)


# ---- smaller layers


class Constant(nn.Module):
    """What is left of a linear map without inputs: its bias, or zeros, at every position."""

    def __init__(self, bias: Tensor | None, width: int) -> None:
        super().__init__()
        self.bias = bias
        self.width = width

    def forward(self, hidden_states: Tensor) -> Tensor:
        shape = hidden_states.shape[:-1]
        return hidden_states.new_zeros(*shape, self.width) if self.bias is None else self.bias.expand(*shape, -1)


class NoAttention(nn.Module):
    """Attention without heads. It still counts tokens in the cache, from which positions and masks are taken."""

    def __init__(self, layer_idx: int, output: Constant) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.output = output

    def forward(
        self, hidden_states: Tensor, *_: Any, past_key_values: Any = None, layer_past: Any = None, **__: Any
    ) -> tuple[Tensor, None]:
        cache = layer_past if past_key_values is None else past_key_values
        if cache is not None:
            one = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(one, one, self.layer_idx)
        return self.output(hidden_states), None


def layers_of(model: Any) -> Any:
    """The list of layers of a model."""
    return model.base_model.get_submodule(FAMILIES[model.config.model_type].layers)


@torch.no_grad()
def cut(model: Any, sizes: Sequence[Layer]) -> None:
    """Leave of a whole model's layers what ``sizes`` names, in place. Added biases are 0."""
    family, whole = FAMILIES[model.config.model_type], Whole.of(model.config)
    for index, (layer, size) in enumerate(zip(layers_of(model), sizes, strict=True)):
        for matrix in (*family.inner, *family.outer):
            linear, places = layer.get_submodule(matrix.path), places_of(matrix, size, whole)
            _select(linear, places, of_outputs=matrix in family.inner)
        for matrix, name in zip(family.outer, PARTS, strict=True):
            linear = layer.get_submodule(matrix.path)
            if name in size.biases and linear.bias is None:
                linear.bias = nn.Parameter(linear.weight.new_zeros(model.config.hidden_size))
        _count(layer.get_submodule(family.attention), family, size, whole)
        _empty(layer, family, size, index)


def places_of(matrix: Matrix, size: Layer, whole: Whole) -> list[int]:
    """Rows or columns of a whole matrix that belong to the heads or neurons of a layer."""
    width = 1 if matrix.unit == "neurons" else whole.d_head * matrix.per_head
    total = width * getattr(whole, matrix.unit)
    starts = [part * total + unit * width for part in range(matrix.stacked) for unit in getattr(size, matrix.unit)]
    return [start + place for start in starts for place in range(width)]


def axis_of(linear: nn.Module, *, of_outputs: bool) -> int:
    """Which axis of a weight counts outputs, or inputs: GPT-2's maps hold theirs the other way round."""
    return int(of_outputs == hasattr(linear, "nf"))


def _select(linear: Any, places: list[int], *, of_outputs: bool) -> None:
    """Keep some outputs or inputs of a linear map."""
    index = torch.tensor(places, dtype=torch.long, device=linear.weight.device)
    axis = axis_of(linear, of_outputs=of_outputs)
    linear.weight = nn.Parameter(linear.weight.index_select(axis, index))
    if of_outputs and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.index_select(0, index))
    names = ("nx", "nf") if hasattr(linear, "nf") else ("in_features", "out_features")
    setattr(linear, names[of_outputs], len(places))


def _count(attention: Any, family: Family, size: Layer, whole: Whole) -> None:
    """Tell an attention module how many heads it has."""
    heads = len(size.heads)
    numbers = (heads, heads * whole.d_head, heads // max(1, len(size.key_value_heads)))
    for name, number in zip(family.counts, numbers, strict=True):
        if name:
            setattr(attention, name, number)


def _empty(layer: Any, family: Family, size: Layer, index: int) -> None:
    """Replace attention without heads and an MLP without neurons by their constant."""
    for path, matrix in zip((family.attention, family.mlp), family.outer, strict=True):
        if getattr(size, matrix.unit):
            continue
        linear = layer.get_submodule(matrix.path)
        constant = Constant(linear.bias, linear.weight.shape[axis_of(linear, of_outputs=True)])
        if not matrix.path.startswith(f"{path}."):  # BERT's output projections belong to the modules behind
            layer.set_submodule(matrix.path, constant)
            constant = Constant(None, 0)
        layer.set_submodule(path, NoAttention(index, constant) if path == family.attention else constant)


# ---- models and files


class Shrunk:
    """In front of a stock class: its layers are cut to ``sizes`` as soon as they are built."""

    sizes: tuple[Layer, ...]
    config_class: Any

    def __init__(self, config: Any, sizes: Sequence[Layer]) -> None:
        super().__init__(config)  # pyright: ignore[reportCallIssue]
        self.sizes = tuple(sizes)
        cut(self, self.sizes)

    @classmethod
    def from_pretrained(cls, directory: Any, *arguments: Any, **options: Any) -> Any:
        """As of every transformers model; a ValueError unless the weights are those of the sizes."""
        hub = {name: options[name] for name in HUB if name in options}
        config = options.pop("config", None) or cls.config_class.from_pretrained(directory, **hub)
        sizes, told = read_sizes(directory, config, **hub), options.pop("output_loading_info", False)
        options |= {"config": config, "sizes": sizes, "output_loading_info": True}
        try:
            model, found = super().from_pretrained(directory, *arguments, **options)  # pyright: ignore
        except RuntimeError as error:
            raise ValueError(_disagree(directory, str(error).splitlines()[0])) from None
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if found[kind]:
                raise ValueError(_disagree(directory, f"{kind.replace('_', ' ')} {sorted(map(str, found[kind]))[0]}"))
        return (model, found) if told else model

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:
        """Configuration, weights, ``sizes.json`` and this file; each file is replaced once the new one is whole."""
        if options.get("push_to_hub"):
            raise ValueError("A shrunk model is pushed in two steps. Save it to a directory, and upload that folder.")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".part") as part:
            super().save_pretrained(part, **options)  # pyright: ignore
            (Path(part) / FILE).write_text(json.dumps(_as_data(self.sizes)) + "\n")
            names = os.listdir(part)
            for name in names:
                with open(Path(part) / name, "rb+") as file:
                    os.fsync(file.fileno())
                os.replace(Path(part) / name, folder / name)
        for old in folder.glob("model*.safetensors*"):  # of a model in another number of files
            if old.name not in names:
                old.unlink()


@cache
def shrunk_class(stock: str) -> Any:
    """The class in front of which ``Shrunk`` stands."""
    options = {"__module__": __name__, "__doc__": f"A {stock} with smaller layers."}
    made: Any = type(f"Shrunk{stock}", (Shrunk, getattr(transformers, stock)), options)
    made.register_for_auto_class(next(auto for suffix, auto in AUTO.items() if stock.endswith(suffix)))
    return made


def __getattr__(name: str) -> Any:
    """``ShrunkLlamaForCausalLM`` and the like, made when they are asked for."""
    stock = name.removeprefix("Shrunk")
    if stock == name or not hasattr(transformers, stock):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return shrunk_class(stock)


def read_sizes(directory: Any, config: Any, **hub: Any) -> tuple[Layer, ...]:
    """The layers of a saved model; a ValueError for a file that is missing, broken or of another model."""
    path = cached_file(str(directory), FILE, _raise_exceptions_for_missing_entries=False, **hub)
    if path is None:
        raise ValueError(f"{directory} has no {FILE}. Give a directory that save_pretrained() of a shrunk model wrote.")
    try:
        return _from_data(json.loads(Path(path).read_text()), config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} does not give the sizes of this model ({error}). Save the model again with save_pretrained()."
        ) from None


def _as_data(sizes: Sequence[Layer]) -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION, "layers": [asdict(layer) for layer in sizes]}


def _from_data(data: Mapping[str, Any], config: Any) -> tuple[Layer, ...]:
    for name, expected in (("format", FORMAT), ("version", VERSION)):
        if data[name] != expected:
            raise ValueError(f"{name} {data[name]!r} instead of {expected!r}")
    if len(data["layers"]) != config.num_hidden_layers:
        raise ValueError(f"{len(data['layers'])} layers instead of {config.num_hidden_layers}")
    whole = Whole.of(config)
    return tuple(_layer(layer, whole, f"layer {index}") for index, layer in enumerate(data["layers"]))


def _layer(data: Mapping[str, Any], whole: Whole, where: str) -> Layer:
    for unit in UNITS:
        numbers, most = data[unit], getattr(whole, unit)
        if not all(type(number) is int and 0 <= number < most for number in numbers):
            raise ValueError(f"{where}: {unit} must be numbers below {most}")
        if list(numbers) != sorted(set(numbers)):
            raise ValueError(f"{where}: {unit} must rise")
    if not set(data["biases"]) <= set(PARTS):
        raise ValueError(f"{where}: biases are of 'attention' and 'mlp'")
    layer = Layer(**{name: tuple(value) for name, value in data.items()})
    heads, kv, group = layer.heads, layer.key_value_heads, whole.heads // whole.key_value_heads
    of_heads = [number for number in kv for _ in range(len(heads) // len(kv))]
    if [head // group for head in heads] != of_heads or len(kv) > len(heads):
        raise ValueError(f"{where}: key/value heads must have as many heads each, and all of their own")
    return layer


def _disagree(directory: Any, reason: str) -> str:
    return f"The weights in {directory} are not those of its {FILE}: {reason}. Save the model again."
