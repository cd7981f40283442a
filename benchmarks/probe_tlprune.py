"""CPU seconds of tlprune on the work of the other probes; started by ``benchmarks.peers``.

- ``eap``: the gradient of edge masks at 1, its corrupted run included, nothing cached.
- ``circuit``: one circuit of a twentieth of the edges, its corrupted run included.
- ``subnetwork_probing``: a later training step of edge masks with a penalty on their expected number; what replaces
  ablated activations is known by then.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import tlprune as tp
from benchmarks.probing import Job, Work, plain_step, run_probe, timed
from tlprune.circuit import Circuit
from tlprune.learning.objectives import logit_difference
from tlprune.models.transformer_lens import build
from tlprune.task import Batch, Stream, Task, Tokenisation, Tokens

STEPS = 10_000  # more than are ever taken


def prepare(job: Job) -> dict[str, Work]:
    model, batch = build(**job.shape).eval().requires_grad_(False), prompts(job)
    sites = tp.edges(model)
    kept = torch.arange(len(sites)) % 20 == 0
    training = steps(model, batch)
    next(training)  # fills the caches
    return {
        "plain_step": plain_step(model, batch.clean.ids),
        "eap": timed(lambda: mask_gradient(model, batch)),
        "circuit": timed(lambda: run_circuit(model, Circuit(sites, kept), batch)),
        "subnetwork_probing": timed(lambda: next(training)),
    }


def mask_gradient(model: Any, batch: Batch) -> None:
    mask = torch.ones(len(tp.edges(model)), requires_grad=True)
    logits = tp.Masked(model, tp.Masks(tp.edges(model)))(batch, mask=mask)
    torch.autograd.grad(logit_difference(logits, batch).mean(), mask)


@torch.no_grad()
def run_circuit(model: Any, circuit: Circuit, batch: Batch) -> None:
    tp.Masked(model, circuit)(batch)


def steps(model: Any, batch: Batch) -> Iterator[tp.Step]:
    stream = Stream(batch, batch, batch)
    discovery = Task("random", {"main": stream}, Tokenisation(prepend_bos=False)).discovery
    masked = tp.Masked(model, tp.Masks(tp.edges(model)))
    penalty: Any = tp.Penalty(10.0)
    return tp.steps(masked, discovery, budget=penalty, steps=STEPS, batch_size=len(batch))


def prompts(job: Job) -> Batch:
    clean, corrupt, answers, foils = job.prompts()
    last = torch.full((job.batch, 1), job.tokens - 1)
    return Batch(torch.arange(job.batch), Tokens(clean), Tokens(corrupt), last, answers[:, None], foils[:, None])


if __name__ == "__main__":
    run_probe(prepare)
