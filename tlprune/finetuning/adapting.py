"""Which weights a fine-tuning may move: those of a new head alone, low-rank updates, or all."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from torch import Tensor, nn

from tlprune.finetuning.choosing import Chooser
from tlprune.finetuning.removing import Removed, hold

Trained = Literal["head", "lora", "full"]
Return = Literal["held", "free"]


def adapt(
    chooser: Chooser, removed: Removed, *, trained: Trained, removed_weights: Return, rank: int = 8, alpha: float = 16.0
) -> None:
    """Let the chosen weights collect gradients, and the removed ones move or not.

    Args:
        chooser: the model, changed in place; its trunk's removed weights are 0.
        removed: which weights of the trunk, by names of its parameters.
        trained: ``"head"``: the scores' weights alone; ``"lora"``: these and updates ``alpha / rank B A`` of all
            matrices within blocks; ``"full"``: everything.
        removed_weights: ``"held"``: they stay 0, and so do an update's there; ``"free"``: they move like others.
        rank: of the updates.
        alpha: their scale, times the rank.

    Raises:
        ModuleNotFoundError: updates are asked for and peft is not installed.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022), section 4.
    """
    chooser.trunk.requires_grad_(trained == "full")
    kept_out = removed if removed_weights == "held" else {}
    if trained == "lora":
        _add_updates(chooser.trunk, rank=rank, alpha=alpha)
    keep_out(chooser.trunk, kept_out)


def keep_out(module: nn.Module, removed: Removed) -> None:
    """Hold removed weights at 0, and what low-rank updates would add to them.

    Args:
        module: a model whose parameters collect gradients and whose updates are in place; its removed weights are 0.
        removed: which weights, by names of its parameters before there were updates.
    """
    hold(module, removed)
    for name, layer in module.named_modules():
        where = removed.get(f"{name}.weight")
        if where is not None and hasattr(layer, "get_delta_weight"):
            layer.register_forward_hook(_update_hold(where))


def _add_updates(trunk: Any, *, rank: int, alpha: float) -> None:
    peft = peft_package()
    for transposed, names in linear_layers(trunk).items():
        config = peft.LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=names, fan_in_fan_out=transposed
        )
        peft.inject_adapter_in_model(config, trunk)


def linear_layers(trunk: Any) -> dict[bool, list[str]]:
    """Names of matrices, apart by whether they are stored from inputs to outputs, as GPT-2's are."""
    from transformers.pytorch_utils import Conv1D

    found: dict[bool, list[str]] = {}
    for name, module in trunk.named_modules():
        if isinstance(module, (Conv1D, nn.Linear)):
            found.setdefault(isinstance(module, Conv1D), []).append(name)
    return found


def _update_hold(where: Tensor) -> Any:
    """Take from a layer's output what the update adds at weights that are kept out."""

    there = lru_cache(1)(where.to)

    def hook(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        wrong = update_of(layer) * there(output.device)
        return output - inputs[0] @ (wrong if layer.fan_in_fan_out else wrong.T)

    return hook


def update_of(layer: Any) -> Tensor:
    """The low-rank update of a layer, in the shape of its weight."""
    return layer.get_delta_weight(layer.active_adapters[0])


def effective_weights(chooser: Chooser, kept_out: Removed) -> Mapping[str, Tensor]:
    """The trunk's matrices with their updates built in, by the names that they had before there were any."""
    found = {}
    for name, module in chooser.trunk.named_modules():
        if hasattr(module, "get_delta_weight"):
            where = kept_out.get(f"{name}.weight")
            update = update_of(module)
            base = module.get_base_layer().weight
            found[f"{name}.weight"] = base + (update if where is None else update.masked_fill(where, 0.0))
        elif isinstance(getattr(module, "weight", None), nn.Parameter):
            found[f"{name}.weight"] = module.weight
    return found


def peft_package() -> Any:
    """The module, or an error that says how to get it."""
    try:
        return importlib.import_module("peft")
    except ImportError:
        raise ModuleNotFoundError(
            "low-rank updates and factors need peft, which is not installed. Run pip install 'tlprune[lora]', or train "
            "the head or everything."
        ) from None
