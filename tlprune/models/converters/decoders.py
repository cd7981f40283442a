"""Decoders of Hugging Face as HookedTransformers: their settings, and where their weights go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tlprune.models.converters.gpt import gpt2_settings, gpt2_weights, neox_settings, neox_weights
from tlprune.models.converters.layout import Weight, read_weights, write_weights
from tlprune.models.converters.llama import gemma_settings, gemma_weights, llama_settings, llama_weights
from tlprune.models.transformer_lens import build


@dataclass(frozen=True)
class Decoder:
    """One family of decoders.

    Attributes:
        settings: of a HookedTransformer with the same outputs, from the Hugging Face configuration; a ValueError for
            a configuration that HookedTransformer cannot follow.
        weights: where each weight goes, from the same configuration.
    """

    settings: Callable[[Any], dict[str, Any]]
    weights: Callable[[Any], list[Weight]]

    def check(self, config: Any) -> None:
        self.settings(config)

    def convert(self, hf_model: Any, *, device: str | None, dtype: torch.dtype) -> Any:
        config = hf_model.config
        settings = {**self.settings(config), "original_architecture": type(hf_model).__name__, "dtype": dtype}
        weights = read_weights(self.weights(config), hf_model, _sizes(settings), dtype)
        model = build(**settings, device=device, init_weights=False)
        _fill(model, weights)
        return model

    def restore(self, hf_model: Any, parameters: Mapping[str, Tensor]) -> None:
        sizes = _sizes(self.settings(hf_model.config))
        write_weights(self.weights(hf_model.config), hf_model, parameters, sizes)


def _sizes(settings: Mapping[str, Any]) -> dict[str, int]:
    heads = settings["n_heads"]
    kv = settings.get("n_key_value_heads") or heads
    return {"layers": settings["n_layers"], "n": heads, "k": kv, "h": settings["d_head"]}


@torch.no_grad()
def _fill(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Set every parameter; biases that the source does not have are 0."""
    for name, parameter in model.named_parameters():
        shown = name.replace("attn._", "attn.")  # grouped keys and values are stored under a private name
        assert shown in weights or shown.rpartition(".")[2].startswith("b"), f"no value for {name}"
        parameter.copy_(weights[shown]) if shown in weights else parameter.zero_()


DECODERS = {
    "GPT2LMHeadModel": Decoder(gpt2_settings, gpt2_weights),
    "GPTNeoXForCausalLM": Decoder(neox_settings, neox_weights),
    "LlamaForCausalLM": Decoder(llama_settings, llama_weights),
    "MistralForCausalLM": Decoder(llama_settings, llama_weights),
    "Qwen2ForCausalLM": Decoder(llama_settings, llama_weights),
    "Qwen3ForCausalLM": Decoder(llama_settings, llama_weights),
    "GemmaForCausalLM": Decoder(gemma_settings, gemma_weights),
    "Gemma2ForCausalLM": Decoder(gemma_settings, gemma_weights),
    "Gemma3ForCausalLM": Decoder(gemma_settings, gemma_weights),
}
