"""Prompts of mixed lengths: at the answer positions a padded batch gives what each prompt gives alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from styles import error, fresh, random_mask
from test_tasks import HE, SHE

from tlprune.learning.fit import steps
from tlprune.learning.optimiser import Optimiser
from tlprune.masking.ablation import Resample, Zero
from tlprune.masking.masked import Masked
from tlprune.masking.masks import Masks
from tlprune.masking.sites import edges
from tlprune.task import Batch, Task, Tokens
from tlprune.tasks import Pair, from_pairs, jsonl

STARTS = ["So ", "I know that ", "At noon we know that "]
LONG = Pair("At noon we know that John is kind, isn't", "At noon we know that Mary is kind, isn't", " he", " she")
SIDES = ["right", "left"]


def pairs_task(tokenizer: Any, side: str, folder: Path) -> Task:
    pairs = [HE, SHE, LONG]
    return from_pairs("pairs", tokenizer, padding_side=side, train=pairs, validation=pairs, test=pairs)


def file_task(tokenizer: Any, side: str, folder: Path) -> Task:
    """Two answers per row, the first of them within the text."""
    clean = "John is <predict>kind</predict>, isn't <predict>he</predict> now"
    corrupted = "Mary is <predict>brave</predict>, isn't <predict>she</predict> now"
    rows = [
        {"clean": f"{start}{own}{clean}", "corrupted": f"{start}{own}{corrupted}", "split": split}
        for split, own in (("train", ""), ("validation", "and "), ("test", "so "))
        for start in STARTS
    ]
    path = folder / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return jsonl(tokenizer, path, padding_side=side)


def alone(batch: Batch, row: int) -> Batch:
    """One example without its padding."""
    mask = batch.clean.attention_mask
    assert mask is not None
    real = mask[row].bool()
    clean, corrupt = (Tokens(tokens.ids[row : row + 1, real]) for tokens in (batch.clean, batch.corrupt))
    positions = batch.positions[row : row + 1] - real.long().argmax()
    rows = slice(row, row + 1)
    return Batch(torch.tensor([0]), clean, corrupt, positions, batch.answers[rows], batch.foils[rows])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("build", [pairs_task, file_task])
@pytest.mark.parametrize("style", ["gpt2", "llama"])
@torch.no_grad()
def test_padding_changes_no_answer(tmp_path: Path, testbed: Any, style: str, build: Any, side: str) -> None:
    """Of the plain model, and under random masks with each twin's activations in place of what is ablated."""
    model = fresh(style, torch.float64, d_vocab=len(testbed), n_ctx=32)
    masked = Masked(model, Masks(edges(model)), Resample())
    mask = random_mask(masked.graph).detach()
    batch = build(testbed, side, tmp_path).test
    lengths = batch.clean.attention_mask.sum(1).tolist()
    assert len(set(lengths)) == 3
    together, plain = masked(batch, mask=mask), masked.backend.logits(batch.clean, batch.positions)
    assert error(together, plain) > 1e-3
    for row in range(len(batch)):
        one = alone(batch, row)
        assert one.clean.ids.shape == (1, lengths[row])
        assert error(together[row], masked(one, mask=mask)[0]) <= 1e-9
        own = model(one.clean.ids)[0, one.positions[0]]
        assert error(plain[row], own) <= 1e-9
        # Each answer follows its position, in this very text.
        inside = one.positions[0] + 1 < lengths[row]
        follows = one.clean.ids[0, one.positions[0][inside] + 1]
        assert torch.equal(follows, batch.answers[row][inside])


@pytest.mark.parametrize("build", [pairs_task, file_task])
def test_the_side_changes_where_things_stand_and_nothing_else(tmp_path: Path, testbed: Any, build: Any) -> None:
    right, left = (build(testbed, side, tmp_path) for side in SIDES)
    assert right.fingerprint != left.fingerprint
    for row in range(3):
        one, other = (alone(task.test, row) for task in (right, left))
        assert torch.equal(one.clean.ids, other.clean.ids)
        assert torch.equal(one.corrupt.ids, other.corrupt.ids)
        assert torch.equal(one.positions, other.positions)
        assert torch.equal(one.answers, other.answers)


def test_examples_of_about_one_length_share_a_sample_of_the_mask(tmp_path: Path, testbed: Any) -> None:
    """So that parts of a batch are cut to their own longest prompt."""
    model = fresh("llama", torch.float64, d_vocab=len(testbed), n_ctx=32)
    masked, widths = Masked(model, Masks(edges(model)), Zero()), []
    run = masked._run

    def watched(tokens: Tokens, *rest: Any, **options: Any) -> Any:
        widths.append(tokens.ids.shape[1])
        return run(tokens, *rest, **options)

    task = pairs_task(testbed, "right", tmp_path)
    records = steps(masked, task.discovery, steps=4, batch_size=3, optimiser=Optimiser(samples=3))
    next(records)  # the self-test runs the model too
    masked._run = watched  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(2):
        widths.clear()
        next(records)
        assert widths == sorted(task.discovery.train().clean.lengths.tolist())


@pytest.mark.parametrize("side", SIDES)
@torch.no_grad()
def test_what_is_padding_in_every_prompt_is_not_computed(
    tmp_path: Path, testbed: Any, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where what is ablated is the same at all positions; a twin's activations belong to the whole width."""
    model = fresh("llama", torch.float64, d_vocab=len(testbed), n_ctx=32)
    batch = pairs_task(testbed, side, tmp_path).test
    short = batch.rows(torch.tensor([0, 1]))
    width, longest = int(short.clean.lengths.max()), batch.clean.ids.shape[1]
    assert (width < longest) == (side == "right"), "padding in front of a prompt stays"
    for ablation, seen in ((Zero(), width), (Resample(), longest)):
        masked = Masked(model, Masks(edges(model)), ablation)
        mask = random_mask(masked.graph).detach()
        together, run, widths = masked(batch, mask=mask)[:2], masked._run, []

        def watched(tokens: Tokens, *rest: Any, run: Any = run, widths: list[int] = widths, **options: Any) -> Any:
            widths.append(tokens.ids.shape[1])
            return run(tokens, *rest, **options)

        monkeypatch.setattr(masked, "_run", watched)
        assert error(masked(short, mask=mask), together) <= 1e-12
        assert widths == [seen]
