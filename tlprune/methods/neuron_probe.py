"""What MLP neurons do at the positions of a prompt, or over a whole text, read batch by batch in plain runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tlprune.backends.activations import Backend, Edits
from tlprune.backends.prompting import embedded_tokens
from tlprune.methods.effects import bar
from tlprune.task import Batch, Tokens

Probe = Literal["prompt", "answer", "mean", "max"]
PROBES = ("prompt", "answer", "mean", "max")
# Told of a layer, of the examples' places in what is read, and of what was read there, ``(example, prompt, neuron)``.
Taker = Callable[[int, Tensor, Tensor], None]
Reader = Callable[[Tensor], Tensor]


@torch.no_grad()
def read_neurons(
    backend: Backend,
    examples: Batch,
    take: Taker,
    *,
    probe: Probe,
    layers: Sequence[int],
    batch_size: int,
    progress: bool = False,
) -> None:
    """Run the plain model on every example once and hand over what its neurons did, layer by layer.

    A layer's activations are reduced where the model makes them, so no more of them is alive than in the plain run, and
    no logits are computed where the model can do without.

    Args:
        backend: the model.
        examples: their clean prompts are run, those of one length together.
        take: is told of each layer of each batch.
        probe: where neurons are read, as of :class:`~tlprune.SkillNeurons`.
        layers: whose neurons.
        batch_size: prompts per forward pass.
        progress: whether to show a progress bar.

    Raises:
        ValueError: the examples have nothing to read there.
    """
    first = embedded_tokens(backend.embedding)
    count_of_positions(examples, probe, first)
    order = torch.argsort(examples.clean.lengths, stable=True)
    for rows in bar(order.split(batch_size), progress):
        batch = examples.rows(rows).to(backend.device)
        tokens = batch.clean.trimmed()
        reader = _reader(probe, tokens, batch.positions, first)
        edits: Edits = {("neurons", layer): _told(take, layer, rows, reader) for layer in layers}
        _run(backend, tokens, edits, batch.positions)


def _told(take: Taker, layer: int, rows: Tensor, reader: Reader) -> Reader:
    def told(value: Tensor) -> Tensor:
        take(layer, rows, reader(value))
        return value

    return told


def _run(backend: Backend, tokens: Tokens, edits: Edits, positions: Tensor) -> None:
    run: Callable[[Tokens, Edits, Tensor], Any] = backend.final if backend.predicts == "tokens" else backend.run
    run(tokens, edits, positions)


# ---- where


def count_of_positions(examples: Batch, probe: Probe, first: int) -> int:
    """At how many positions of each example neurons are read; a pooled reading counts as one.

    Args:
        examples: whose clean prompts are read.
        probe: where.
        first: id of the first prompt token.

    Raises:
        ValueError: there is nothing to read, or not the same number in each example.
    """
    if probe == "answer":
        return examples.positions.shape[1]
    if probe == "prompt":
        return _prompt_length(examples.clean, first)
    empty = int((~_words(examples.clean, first).any(1)).sum())
    if empty:
        raise ValueError(
            f"The {probe} over input tokens needs at least one in each example but {empty:,} of {len(examples):,} have "
            "none. Leave such examples out, or read the prompt: probe='prompt'."
        )
    return 1


def _prompt_length(tokens: Tokens, first: int) -> int:
    lengths = _in_prompt(tokens, first).sum(1)
    fewest, most = int(lengths.min()), int(lengths.max())
    if fewest != most or most == 0:
        found = f"between {fewest} and {most}" if most else "none"
        raise ValueError(
            f"probe='prompt' needs the same prompt tokens (ids from {first:,} up) in each example but these have "
            f"{found}. Build the task with tp.tasks.prompted(model, ...), or read the input itself: probe='mean'."
        )
    return most


def _in_prompt(tokens: Tokens, first: int) -> Bool[Tensor, "example pos"]:
    return tokens.ids >= first


def _words(tokens: Tokens, first: int) -> Bool[Tensor, "example pos"]:
    """Tokens of the input: no padding, no prompt."""
    words = tokens.ids < first
    return words if tokens.attention_mask is None else words & tokens.attention_mask.bool()


def _prompt_places(tokens: Tokens, first: int) -> Int[Tensor, "example prompt"]:
    """Positions of the prompt's tokens, in the order of their ids."""
    inside = _in_prompt(tokens, first)
    behind = tokens.ids.where(inside, tokens.ids.max() + 1)
    return behind.argsort(dim=1, stable=True)[:, : int(inside[0].sum())]


# ---- what


def _reader(probe: Probe, tokens: Tokens, answers: Tensor, first: int) -> Reader:
    """From activations ``(example, pos, neuron)`` to what is read of them, ``(example, prompt, neuron)``."""
    if probe in ("prompt", "answer"):
        places = _prompt_places(tokens, first) if probe == "prompt" else answers
        rows = torch.arange(len(places), device=places.device)[:, None]
        return lambda value: value[rows, places]
    words = _words(tokens, first)[..., None]
    if probe == "max":
        return lambda value: value.masked_fill(~words, -torch.inf).amax(1, keepdim=True)
    return lambda value: _mean(value, words)


def _mean(
    value: Float[Tensor, "example pos neuron"], words: Bool[Tensor, "example pos 1"]
) -> Float[Tensor, "example 1 neuron"]:
    """Not a product: some models compute numbers that are not finite where there is nothing to attend to."""
    value = value.to(torch.promote_types(value.dtype, torch.float32))
    return value.masked_fill(~words, 0).sum(1, keepdim=True) / words.sum(1, keepdim=True)
