"""Fine-tuning of a part of a classifier: its head, its biases, or adapters that end up in its weights."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tlprune.finetuning.adapting import keep_out, linear_layers, peft_package
from tlprune.finetuning.plan import Part
from tlprune.finetuning.removing import NOTHING, Removed, empty
from tlprune.models.checkpoints import unfilled


def train_part(model: Any, part: Part, *, new: Collection[str] = (), rank: int = 8, removed: Removed = NOTHING) -> None:
    """Let one part of a classifier collect gradients, and give it adapters if that is the part.

    Removed weights stay 0 whatever the part is. No update is added to them, and a factor leaves 0 as it is.

    The head is always trained: what a classifier has beside its trunk, and what of the trunk is new because the
    checkpoint lacks it, as it may BERT's pooler.

    ``"head"``: nothing else. ``"bitfit"``: also every bias, those of norms too. ``"lora"``: also updates
    ``2 B A`` of the matrices within blocks, ``W + 2 B A``. ``"ia3"``: also a factor for each key, value and input of an
    MLP's last matrix, where peft puts them in this architecture. ``"full"``: everything.

    Args:
        model: a Hugging Face model with a head, changed in place.
        part: which.
        new: names of parameters that no checkpoint had.
        rank: of updates.
        removed: weights that are 0 and stay it, by names of parameters.

    Raises:
        ValueError: the trunk has no biases, or peft does not know where IA3 goes.
        ModuleNotFoundError: adapters are asked for and peft is not installed.

    Source: Ben Zaken et al., "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
    Language-models" (ACL 2022); Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022); Liu et
    al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning" (NeurIPS 2022).

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=9, **shape))
        >>> train_part(model, "head")
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['classifier.weight', 'classifier.bias']
        >>> train_part(model, "bitfit")
        >>> sum(parameter.requires_grad for parameter in model.parameters())
        12
    """
    head = _head(model, new)
    trunk = model.base_model
    trunk.requires_grad_(part == "full")
    if part == "bitfit":
        for bias in _biases(trunk):
            bias.requires_grad_()
    if part in ("lora", "ia3"):
        _adapt(trunk, part, rank)
    for parameter in head:
        parameter.requires_grad_()
    keep_out(model, removed)


def _head(model: Any, new: Collection[str]) -> list[nn.Parameter]:
    own = {id(parameter) for parameter in model.base_model.parameters()}
    return [parameter for name, parameter in model.named_parameters() if name in new or id(parameter) not in own]


def _biases(trunk: Any) -> list[nn.Parameter]:
    found = [parameter for name, parameter in trunk.named_parameters() if name.endswith("bias")]
    if not found:
        raise ValueError(
            f"BitFit trains biases but a {type(trunk).__name__} has none. Train lora, ia3, head or full instead."
        )
    return found


def _adapt(trunk: Any, part: Part, rank: int) -> None:
    """Put adapters into the blocks of a trunk. They say nothing as long as they are not trained."""
    peft, layers = peft_package(), linear_layers(trunk)
    if part == "lora":
        configs = [_updates(peft, names, rank, transposed=transposed) for transposed, names in layers.items()]
    else:
        configs = [_factors(peft, trunk, transposed=True in layers)]
    for config in configs:
        peft.inject_adapter_in_model(config, trunk)


def _updates(peft: Any, names: Sequence[str], rank: int, *, transposed: bool) -> Any:
    inner = [name for name in names if any(piece.isdigit() for piece in name.split("."))]
    return peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=inner, fan_in_fan_out=transposed
    )


def _factors(peft: Any, trunk: Any, *, transposed: bool) -> Any:
    from peft.utils import constants

    known = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    if trunk.config.model_type not in known:
        raise ValueError(
            f"IA3 goes where peft knows keys, values and MLPs, but a {trunk.config.model_type} is not among its "
            "models. Train lora instead."
        )
    return peft.IA3Config(fan_in_fan_out=transposed)


@torch.no_grad()
def plain(model: Any, removed: Removed = NOTHING) -> Any:
    """The model itself, or, where it has adapters, a new one of its stock class with these built into its weights.

    Args:
        model: a Hugging Face model after :func:`train_part`.
        removed: weights that stay 0 when updates are built in.
    """
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "get_base_layer")}
    if not adapted:
        return model
    inside = tuple(f"{name}." for name in adapted)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(inside)}
    for name, module in adapted.items():
        state |= {f"{name}.{own}": value for own, value in _merged(module).items()}
    built = unfilled(type(model), copy.deepcopy(model.config), dtype=model.dtype)
    built.load_state_dict(state)
    empty(built, removed)
    return built.to(model.device).eval()


def _merged(layer: Any) -> dict[str, Tensor]:
    layer = copy.deepcopy(layer)
    layer.merge()
    return layer.get_base_layer().state_dict()


def trained_parameters(model: nn.Module, removed: Removed = NOTHING) -> int:
    """How many numbers a fine-tuning may change; those that are held at 0 are none of them."""
    free = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    held = sum(int(where.sum()) for name, where in removed.items() if name in free)
    return sum(parameter.numel() for parameter in free.values()) - held
