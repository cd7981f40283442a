"""Masks on what attention moves between spans, behind a bridge: those of HookedTransformer, and what is refused."""

from __future__ import annotations

import pytest
import torch
from bridges import EXACT, bridged, hf_model
from contract import Row
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import CLEAN, CORRUPT, error, probe
from test_attention_edges import NAMES, PADDED, SPANS, all_names, prompts, values_of, zeroed

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.between_spans import AttentionEdges
from tlprune.sites import Sites


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("padding", PADDED)
@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral", "qwen3", "gemma2", "neox"])
def test_a_bridge_agrees_with_hooked_transformer(kind: str, padding: str) -> None:
    """On the left in float32: Hugging Face's mask of a row of padding has no finite softmax in float64."""
    dtype, allowed = (torch.float32, 1e-5) if padding == "left" else (torch.float64, EXACT[kind])
    bridge, hooked = bridged(kind, dtype), tp.from_huggingface(hf_model(kind, dtype), device="cpu")
    tokens, twins, real = prompts(padding)
    sites = tp.attention_edges(hooked, spans=NAMES)
    assert tp.attention_edges(bridge, spans=NAMES) == sites
    found, gradients = [], []
    for model in (bridge, hooked):
        mask = values_of(sites)
        found.append(tp.Masked(model, tp.Masks(sites))(tokens, twins, mask=mask, spans=SPANS)[real])
        gradients.append(torch.autograd.grad(probe(found[-1]), mask)[0])
    assert error(*found) <= allowed
    assert error(*gradients) <= allowed


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_a_bridge_keeps_everything_and_loses_sources(kind: str) -> None:
    """The first with all masks at 1; the second as edges into a reader do."""
    model = bridged(kind)
    edges, sites = tp.edges(model, spans=NAMES), tp.attention_edges(model, spans=NAMES)
    own = lambda *lead: torch.ones(*lead, dtype=torch.float64)  # noqa: E731
    kept = tp.Masked(model, tp.Masks(sites))(CLEAN, CORRUPT, mask=own(len(sites)), spans=SPANS)
    assert error(kept, model(CLEAN.ids)) <= EXACT[kind]
    reader = sites.name(len(sites) - 1).partition("@")[0]
    gone = [[n for n in all_names(edges) if n.endswith(f"->{reader}@verb")]]
    gone += [[n for n in all_names(sites) if n.startswith(f"{reader}@verb->")]]
    found = [
        tp.Masked(model, tp.Masks(part))(CLEAN, CORRUPT, mask=zeroed(part, own(len(part)), names), spans=SPANS)
        for part, names in zip((edges, sites), gone, strict=True)
    ]
    assert error(*found) <= EXACT[kind]
    assert error(found[0], kept) > 1e-3


def test_encoders_that_normalise_every_sum_are_refused() -> None:
    row = Row("TransformerBridge", "bert words")
    with pytest.raises(ValueError, match="Mask its edges by span"):
        tp.attention_edges(row.model, spans=NAMES)
    shape = backend_of(row.model).architecture
    readers = AttentionEdges(("a0.h0<k>",), NAMES, (("verb", "verb"),))
    assert shape.post_norm
    with pytest.raises(ValueError, match="Mask its edges by span"):
        tp.Masked(row.model, tp.Masks(Sites((readers,))))
