"""Masks per example and per position, answer positions, and padding."""

from __future__ import annotations

import pytest
import torch
from styles import (
    CLEAN,
    CORRUPT,
    STYLES,
    backend_of_style,
    conventions,
    error,
    model_of,
    probe,
    random_mask,
    random_tokens,
)
from torch import Tensor

from tlprune.backends.activations import Activations
from tlprune.graph import Convention, Graph
from tlprune.masking.ablation import Resample, Zero
from tlprune.masking.edges import run_edges
from tlprune.masking.means import Mean
from tlprune.masking.plain import plain_run
from tlprune.task import Tokens

EXAMPLES, LENGTH = CLEAN.ids.shape
LEADS = [(EXAMPLES,), (EXAMPLES, 1), (1, LENGTH), (EXAMPLES, LENGTH), (1,), (1, 1)]
styled = pytest.mark.parametrize("style", STYLES)


def graph_of(style: str, convention: Convention | None = None) -> Graph:
    return Graph.of(model_of(style), convention)


def counterfactual(style: str, corrupt: Tokens = CORRUPT) -> Activations:
    return Resample().replaced(backend_of_style(style), corrupt, corrupt)


def run(style: str, mask: Tensor, *, tokens: Tokens = CLEAN, corrupt: Tokens = CORRUPT, **options: object) -> Tensor:
    graph = graph_of(style, options.pop("convention", None))
    return run_edges(backend_of_style(style), graph, tokens, mask, counterfactual(style, corrupt), **options)


@pytest.mark.parametrize("lead", LEADS, ids=str)
@styled
def test_masks_that_differ_nowhere_are_one_mask(style: str, lead: tuple[int, ...]) -> None:
    """In value, and in the gradient once it is summed over the axes that were added."""
    shared = random_mask(graph_of(style))
    spread = shared.detach().expand(*lead, -1).clone().requires_grad_()
    expected, found = run(style, shared), run(style, spread)
    assert error(found, expected) <= 1e-9
    (whole,), (parts,) = (
        torch.autograd.grad(probe(value), mask) for value, mask in ((expected, shared), (found, spread))
    )
    assert parts.shape == spread.shape
    assert error(parts.sum(tuple(range(len(lead)))), whole) <= 1e-9


@styled
def test_a_circuit_per_example_is_a_run_per_example(style: str) -> None:
    masks = random_mask(graph_of(style), EXAMPLES)
    together = run(style, masks)
    (gradient,) = torch.autograd.grad(probe(together), masks)
    for row in range(EXAMPLES):
        own, mask = torch.tensor([row]), masks[row].detach().requires_grad_()
        alone = run(style, mask, tokens=CLEAN.rows(own), corrupt=CORRUPT.rows(own))
        assert error(together[own], alone) <= 1e-9
        value = probe(torch.cat([together[:row].detach(), alone, together[row + 1 :].detach()]))
        assert error(gradient[row], torch.autograd.grad(value, mask)[0]) <= 1e-9


@pytest.mark.parametrize("lead", [(EXAMPLES, 1), (1, LENGTH), (EXAMPLES, LENGTH)], ids=str)
@styled
def test_masks_that_differ_everywhere_are_the_plain_sum(style: str, lead: tuple[int, ...]) -> None:
    for convention in conventions(style):
        masks = random_mask(graph_of(style, convention), *lead)
        slow = plain_run(model_of(style), graph_of(style, convention), CLEAN, masks, counterfactual(style))
        fast = run(style, masks, convention=convention)
        assert error(fast, slow) <= 1e-9
        (found,), (expected,) = (torch.autograd.grad(probe(value), masks) for value in (fast, slow))
        assert error(found, expected) <= 1e-9


@styled
def test_a_mask_at_one_position_changes_nothing_before_it(style: str) -> None:
    """A reader's mask at a position acts on what the model computes there, and attention looks back only."""
    masks = torch.ones(1, LENGTH, graph_of(style).n_edges, dtype=torch.float64)
    masks[:, 3] = 0
    changed = run(style, masks) - run(style, torch.ones_like(masks))
    assert changed[:, :3].abs().max() <= 1e-9
    assert changed[:, 3].abs().max() > 1e-3


def test_a_mask_of_another_shape_is_refused() -> None:
    graph = graph_of("gpt2")
    for lead in [(EXAMPLES + 1,), (LENGTH, EXAMPLES), (2, LENGTH), (1, LENGTH - 1), (1, 1, 1)]:
        with pytest.raises(ValueError, match="A mask needs shape"):
            run("gpt2", torch.ones(*lead, graph.n_edges, dtype=torch.float64))
    with pytest.raises(ValueError, match="A mask needs shape"):
        run("gpt2", torch.ones(graph.n_edges - 1, dtype=torch.float64))


@styled
def test_logits_at_answer_positions_are_rows_of_all_logits(style: str) -> None:
    mask, positions = random_mask(graph_of(style)).detach(), torch.tensor([[0, 5], [2, 3], [5, 5]])
    expected = run(style, mask)[torch.arange(EXAMPLES)[:, None], positions]
    assert error(run(style, mask, positions=positions), expected) <= 1e-12
    plain = backend_of_style(style)
    assert (
        error(plain.logits(CLEAN, positions), plain.logits(CLEAN, None)[torch.arange(3)[:, None], positions]) <= 1e-12
    )


def padded(tokens: Tokens, lengths: list[int], side: str) -> Tokens:
    """The first tokens of each prompt, with garbage beside them."""
    ids, mask = random_tokens(9, *tokens.ids.shape).ids, torch.zeros_like(tokens.ids)
    for row, length in enumerate(lengths):
        own = slice(length) if side == "right" else slice(LENGTH - length, None)
        ids[row, own], mask[row, own] = tokens.ids[row, :length], 1
    return Tokens(ids, mask)


LENGTHS = [6, 4, 2]


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
@pytest.mark.parametrize("side", ["left", "right"])
@styled
def test_padding_changes_no_answer(style: str, side: str, ablation: str) -> None:
    backend, mask = backend_of_style(style), random_mask(graph_of(style)).detach()
    chosen = {"resample": Resample(), "zero": Zero(), "mean": Mean(padded(CORRUPT, LENGTHS, side))}[ablation]
    clean, corrupt = (padded(tokens, LENGTHS, side) for tokens in (CLEAN, CORRUPT))
    last = torch.tensor([[length - 1 if side == "right" else LENGTH - 1] for length in LENGTHS])
    together = run_edges(
        backend, graph_of(style), clean, mask, chosen.replaced(backend, clean, corrupt), positions=last
    )
    for row, length in enumerate(LENGTHS):
        prompt, twin = (Tokens(tokens.ids[row : row + 1, :length]) for tokens in (CLEAN, CORRUPT))
        alone = run_edges(backend, graph_of(style), prompt, mask, chosen.replaced(backend, prompt, twin))
        assert error(together[row], alone[0, -1:]) <= 1e-9


def test_mean_per_position_is_the_average_of_runs() -> None:
    backend, reference = backend_of_style("gpt2"), random_tokens(4, examples=5)
    found = Mean(reference, over="examples", batch_size=2).replaced(backend, CLEAN, None)
    _, seen = model_of("gpt2").run_with_cache(reference.ids)
    assert error(found.mlps[1], seen["blocks.1.hook_mlp_out"].mean(0, keepdim=True)) <= 1e-12
    assert error(found.embeddings[1][0], model_of("gpt2").W_pos[:LENGTH]) <= 1e-12
    with pytest.raises(ValueError, match="prompts of one length"):
        Mean(random_tokens(4, length=5), over="examples").replaced(backend, CLEAN, None)
    with pytest.raises(ValueError, match="reference prompts are padded"):
        Mean(padded(CLEAN, LENGTHS, "left"), over="examples")
