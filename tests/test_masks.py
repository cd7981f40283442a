"""Masks and the masked model: the circuits they make, and the models and prompts they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from styles import CLEAN, CORRUPT, fresh, model_of
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.gates import HardConcrete
from tlprune.graph import Graph
from tlprune.masking.ablation import Zero
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks, kept_at
from tlprune.masking.sites import edges
from tlprune.task import Tokens

STYLE = "lnpre"


def masked_of(model: Any = None, **options: Any) -> Masked:
    model = model or model_of(STYLE, torch.float32)
    return Masked(model, Masks(edges(model)), **options)


def test_masks_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match=r"masks have .* but this model has"):
        Masked(model_of("gpt2"), Masks(edges(model_of("lnpre"))))
    with pytest.raises(ValueError, match="Build both from one model"):
        Masked(model_of("no_norm"), Masks(edges(model_of("attention_only"))))


def test_resample_needs_a_twin_of_the_same_shape() -> None:
    masked = masked_of()
    with pytest.raises(ValueError, match="needs a corrupted twin"):
        masked(CLEAN)
    with pytest.raises(ValueError, match="prompts of one shape"):
        masked(CLEAN, Tokens(CORRUPT.ids[:, :-1]))
    assert masked_of(ablation=Zero())(CLEAN).shape == (3, 6, 29)
    assert masked(CLEAN.ids[0], CORRUPT.ids[0]).shape == (1, 6, 29)


def test_a_model_that_runs_differently_when_masked_is_refused() -> None:
    model = fresh(STYLE, torch.float32)
    plain, calls = model.forward, []

    def wavering(*inputs: Any, **options: Any) -> Tensor:
        calls.append(1)
        return plain(*inputs, **options) * len(calls)

    model.forward = wavering
    for _ in range(2):
        with pytest.raises(RuntimeError, match="With everything kept the masked model must equal the model"):
            masked_of(model)(CLEAN, CORRUPT)
    model.forward = plain
    assert masked_of(model)(CLEAN, CORRUPT).shape == (3, 6, 29)


def test_a_model_that_is_not_finite_itself_is_told_so() -> None:
    model = fresh(STYLE, torch.float32)
    with torch.no_grad():
        model.blocks[0].mlp.W_out[0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match="The model itself"):
        masked_of(model)(CLEAN, CORRUPT)


def test_a_part_that_is_skipped_is_noticed() -> None:
    model = fresh(STYLE, torch.float32)
    model.blocks[1].forward = lambda stream, **options: stream
    with pytest.raises(RuntimeError, match="a hook did not fire"):
        masked_of(model, ablation=Zero())(CLEAN)


# ---- masks


def test_a_circuit_of_masks_has_the_size_asked_for() -> None:
    masks = Masks(edges(model_of(STYLE)), HardConcrete(initial=0.5))
    with torch.no_grad():
        masks.log_alpha.copy_(torch.randn(len(masks.log_alpha), generator=torch.Generator().manual_seed(0)))
    total, ranked = len(masks.log_alpha), masks.log_alpha.detach().argsort(descending=True)
    for count, circuit in [
        (7, masks.circuit(edges=7)),
        (kept_at(0.9, masks.graph.n_edges), masks.circuit(sparsity=0.9)),
        (round(masks.density * total), masks.circuit()),
        (int((masks.log_alpha > 0).sum()), masks.circuit(threshold=0.5)),
    ]:
        assert len(circuit) == count
        top = Circuit(masks.sites, torch.zeros(total).index_fill(0, ranked[:count], 1).bool())
        assert not bool((top.effective.kept & ~circuit.kept).any())  # tests/test_connecting.py has the others
        if circuit.provenance.get("on_no_path") is None:
            assert circuit == top
    assert masks.circuit(threshold=0.5).provenance == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edges": 3, "sparsity": 0.5}, "takes one of"),
        ({"edges": 10**6}, "must lie between 0 and"),
        ({"sparsity": 1.0}, "between 0 and 1"),
        ({"sparsity": 95.0}, "give 0.95"),
    ],
)
def test_a_circuit_of_no_possible_size_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Masks(edges(model_of(STYLE))).circuit(**options)


def test_a_state_dict_of_masks_holds_masks_only() -> None:
    masks = Masks(edges(model_of(STYLE)))
    assert {name: tuple(value.shape) for name, value in masks.state_dict().items()} == {
        "log_alpha": (Graph.of(model_of(STYLE)).n_edges,)
    }
