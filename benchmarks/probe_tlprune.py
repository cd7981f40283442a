"""CPU seconds of tlprune on the work of the other probes; started by ``benchmarks.peers``.

- ``eap``: attribution of all edges of the logit difference, its corrupted run included, nothing cached.
- ``eap_ig``: the same along the inputs, at five points, the corrupted end among them.
- ``circuit``: one circuit of a twentieth of the edges, its corrupted run included.
- ``subnetwork_probing``: a later training step of edge masks with a penalty on their expected number; what replaces
  ablated activations is known by then.
- ``acdc``: all edges, at one threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import tlprune as tp
from benchmarks.probing import Job, Work, plain_step, run_probe, timed
from tlprune.circuit import Circuit
from tlprune.models.transformer_lens import build
from tlprune.task import Batch, Stream, Task, Tokenisation, Tokens

STEPS = 10_000  # more than are ever taken


def prepare(job: Job) -> dict[str, Work]:
    model, batch = build(**job.shape).eval().requires_grad_(False), prompts(job)
    sites = tp.edges(model)
    kept = torch.arange(len(sites)) % 20 == 0
    task = Task("random", {"main": Stream(batch, batch, batch)}, Tokenisation(prepend_bos=False))
    training = steps(model, task)
    next(training)  # fills the caches
    return {
        "plain_step": plain_step(model, batch.clean.ids),
        "eap": timed(lambda: tp.EAP(batch_size=job.batch).score(model, task)),
        "eap_ig": timed(lambda: tp.EAPIG(batch_size=job.batch, steps=5, points="left").score(model, task)),
        "circuit": timed(lambda: run_circuit(model, Circuit(sites, kept), batch)),
        "subnetwork_probing": timed(lambda: next(training)),
        "acdc": timed(lambda: tp.ACDC(threshold=0.01).find(model, task)),
    }


@torch.no_grad()
def run_circuit(model: Any, circuit: Circuit, batch: Batch) -> None:
    tp.Masked(model, circuit)(batch)


def steps(model: Any, task: Task) -> Iterator[tp.Step]:
    masked = tp.Masked(model, tp.Masks(tp.edges(model)))
    penalty: Any = tp.Penalty(10.0)
    return tp.steps(masked, task.discovery, budget=penalty, steps=STEPS, batch_size=len(task.test))


def prompts(job: Job) -> Batch:
    clean, corrupt, answers, foils = job.prompts()
    last = torch.full((job.batch, 1), job.tokens - 1)
    return Batch(torch.arange(job.batch), Tokens(clean), Tokens(corrupt), last, answers[:, None], foils[:, None])


if __name__ == "__main__":
    run_probe(prepare)
