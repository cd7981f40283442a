"""CPU seconds of auto-circuit, under its own interpreter; started by ``benchmarks.peers``.

- ``eap``: its fast attribution, the mask's gradient where nothing is patched, of the logit difference.
- ``eap_ig``: its integrated gradients, which go along the mask's values at five points, both ends among them.
- ``circuit``: one circuit of a twentieth of the edges, its corrupted run included.
- ``subnetwork_probing``: a later training step of its masks; means of the corrupted prompts are known by then.
- ``acdc``: all edges, at one threshold.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune import run_circuits
from auto_circuit.prune_algos.ACDC import acdc_prune_scores
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
from auto_circuit.prune_algos.subnetwork_probing import subnetwork_probing_prune_scores
from auto_circuit.types import PatchType
from auto_circuit.utils.graph_utils import patchable_model
from transformer_lens import HookedTransformer, HookedTransformerConfig

from benchmarks.probing import Job, Work, plain_step, run_probe, timed

STEPS = 3


def prepare(job: Job) -> dict[str, Work]:
    plain = HookedTransformer(HookedTransformerConfig(**job.shape)).eval()
    model, loader = patchable(job), prompts(job)
    scores = mask_gradient_prune_scores(model, loader, None, "logit", "avg_diff", mask_val=0.0)
    twentieth = max(1, model.n_edges // 20)
    gradient = (model, loader, None, "logit", "avg_diff")
    return {
        "plain_step": plain_step(plain, job.prompts()[0]),
        "eap": timed(lambda: mask_gradient_prune_scores(*gradient, mask_val=0.0)),
        "eap_ig": timed(lambda: mask_gradient_prune_scores(*gradient, integrated_grad_samples=4)),
        "circuit": timed(lambda: run_circuits(model, loader, [twentieth], scores, PatchType.TREE_PATCH)),
        "subnetwork_probing": lambda: probing_step(model, loader),
        "acdc": timed(lambda: acdc_prune_scores(model, loader, None, tao_exps=[-2], tao_bases=[1])),
    }


def patchable(job: Job) -> Any:
    """The model as auto-circuit's own examples prepare it."""
    model = HookedTransformer(HookedTransformerConfig(**job.shape)).eval().requires_grad_(False)
    for flag in ("use_attn_result", "use_attn_in", "use_split_qkv_input", "use_hook_mlp_in"):
        setattr(model.cfg, flag, True)
    return patchable_model(model, factorized=True, slice_output="last_seq", separate_qkv=True)


def prompts(job: Job) -> PromptDataLoader:
    clean, corrupt, answers, foils = job.prompts()
    dataset = PromptDataset(clean, corrupt, list(answers[:, None]), list(foils[:, None]))
    return PromptDataLoader(dataset, seq_len=job.tokens, diverge_idx=0, batch_size=job.batch, shuffle=False)


def probing_step(model: Any, loader: PromptDataLoader) -> float:
    """CPU seconds from one step of the optimiser to the next."""
    ends: list[float] = []
    torch.optim.adam = sys.modules["torch.optim.adam"]  # it uses this name, which recent versions of torch hide
    ordinary = torch.optim.Adam.step

    def noted(self: Any, *args: Any, **options: Any) -> Any:
        result = ordinary(self, *args, **options)
        ends.append(time.process_time())
        return result

    torch.optim.Adam.step = noted
    try:
        subnetwork_probing_prune_scores(model, loader, None, epochs=STEPS, tree_optimisation=True)
    finally:
        torch.optim.Adam.step = ordinary
    return (ends[-1] - ends[0]) / (STEPS - 1)


if __name__ == "__main__":
    run_probe(prepare, "auto-circuit")
