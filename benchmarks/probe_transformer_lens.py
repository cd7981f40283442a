"""CPU seconds of TransformerLens' own ``tools.analysis``, under its own interpreter; started by ``benchmarks.peers``.

- ``eap``: attribution of all edges, which it gives per position, one prompt pair after another.
- ``circuit``: faithfulness of one circuit of a twentieth of its edges, pair after pair; it also runs the circuit
  without each class of edges.
"""
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch, faithfulness

from benchmarks.probing import Job, Work, plain_step, run_probe, timed

EDGES = EdgeAttributionConfig(granularity="edge")


def prepare(job: Job) -> dict[str, Work]:
    plain, model = bridge(job), bridge(job)  # theirs needs weights with gradients switched on
    clean, corrupt, _, _ = job.prompts()
    edges = list(attribution_patch(model, clean[:1], corrupt[:1], difference(job, 0), EDGES).edge_scores)[::20]

    def attribute() -> None:
        attribution_patch(model, clean, corrupt, difference(job, 0), EDGES)

    def evaluate() -> None:
        for row in range(job.batch):
            faithfulness(model, clean[row : row + 1], corrupt[row : row + 1], difference(job, row), edges)

    return {"plain_step": plain_step(plain, clean), "eap": timed(attribute), "circuit": timed(evaluate)}


def difference(job: Job, row: int) -> Any:
    """The logit difference of one prompt. All prompts of an attribution share one metric."""
    _, _, answers, foils = job.prompts()

    def metric(logits: Tensor) -> Tensor:
        return logits[0, -1, answers[row]] - logits[0, -1, foils[row]]

    return metric


def bridge(job: Job) -> Any:
    config = transformers.GPT2Config(
        vocab_size=job.vocabulary,
        n_positions=max(64, job.tokens),
        n_embd=job.d_model,
        n_layer=job.n_layers,
        n_head=job.n_heads,
        n_inner=job.d_mlp,
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    return build_bridge_from_module(model, "GPT2LMHeadModel", hf_config=config, model_name="random").eval()


if __name__ == "__main__":
    run_probe(prepare, "transformers")
