"""How much a step costs, as a multiple of the plain model's forward and backward on the same prompts.

    python -m benchmarks.speed [--json] [--memory False]

GPT-2-small shape with random weights and vocabulary 50,257, 8 prompts of 20 tokens, 2 threads. Times are CPU seconds of
this process, the kinds of step interleaved, medians. The plain step has frozen weights: forward, all positions
unembedded, log-softmax at the last, KL to a stored reference, backward to the output of the embedding.

``edge_step_cold``: reference, counterfactual, masked forward, backward and optimiser, nothing cached.
``edge_step``: mean over 300 steps of batch 8 over 200 examples through ``tlprune.steps``, cache filling included; the
25 steps that fill the cache are all run, the 275 later ones are extrapolated from ``--warm`` of them.

``node_step``: masks on all heads and MLPs, zero ablation, with the stored reference: gates sampled, masked forward,
backward, optimiser.
``weight_step``: given mask values on every matrix of the upper six blocks (42,467,328 weights), masked forward and
backward to the mask's gradient. ``weight_row_step`` and ``weight_training_step``: a whole training step (gates sampled
and the optimiser included) with one mask per row, and with one per weight, where drawing 42 million gates and AdamW on
them cost more than the model.

``encoder_node_step``: masks on all heads and MLPs of an encoder of BERT-base shape with random weights and 3 classes, 8
pairs of 32 tokens, mean ablation measured beforehand, the reference stored; over ``encoder_plain_step``, the same
encoder's forward, loss and backward to the embeddings with frozen weights. ``encoder_reference``: the reference's run.
``bridge_encoder_node_step``: of a TransformerBridge, over ``bridge_encoder_plain_step``.

``circuit_evaluation``: all figures of one further circuit of edges, where replacements and reference are there from the
circuits before it.

``eap`` and ``eap_ig``: scores of all 32,491 edges on one batch, nothing cached: the twins' run, what writers send, one
backward or 5, and the products with the differences.

Peak memory is measured in a process for each kind: high-water RSS less RSS after the model is there, as a multiple of
the plain step's.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import tyro

import tlprune as tp
from benchmarks import encoders
from benchmarks.training import Work, training_step
from tlprune.learning.metrics import measure
from tlprune.learning.objectives import divergence
from tlprune.masking.cache import reference_predictions
from tlprune.models.transformer_lens import build
from tlprune.task import Batch, Stream, Task, Tokenisation, Tokens

BATCH, TOKENS, EXAMPLES, STEPS, THREADS = 8, 20, 200, 300, 2
FILLING = EXAMPLES // BATCH


@dataclass(frozen=True)
class Settings:
    """Speed of edge masks against the plain model.

    Attributes:
        json: print one JSON object instead of a table.
        rounds: measurements of the plain and the cold step.
        warm: measured steps after the cache is filled.
        memory: whether to measure peak memory too.
        only: measure the peak memory of this kind of step in this process, in bytes.
    """

    json: bool = False
    rounds: int = 9
    warm: int = 15
    memory: bool = True
    only: str | None = None


def main() -> None:
    settings = tyro.cli(Settings)
    torch.set_num_threads(THREADS)
    if settings.only:
        print(peak_memory(settings.only))
        return
    result = {"ratios": ratios(settings), "peak_memory": memory() if settings.memory else {}, "setting": setting()}
    print(json.dumps(result, indent=1) if settings.json else table(result))


@cache
def gpt2_small() -> Any:
    """A model of GPT-2 small's shape with random weights, frozen."""
    return gpt2_shaped(layers=12, width=768, vocabulary=50257)


def gpt2_shaped(*, layers: int, width: int, vocabulary: int) -> Any:
    """A model of GPT-2's kind with random weights, frozen."""
    return build(
        n_layers=layers,
        d_model=width,
        n_heads=width // 64,
        d_head=64,
        d_mlp=4 * width,
        n_ctx=1024,
        d_vocab=vocabulary,
        act_fn="gelu_new",
        normalization_type="LN",
        seed=0,
        device="cpu",
    ).requires_grad_(False)


def examples(count: int, *, seed: int = 0) -> Batch:
    """Random prompts with random twins, read at their last position."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupt = torch.randint(0, 50257, (2, count, TOKENS), generator=generator)
    last = torch.full((count, 1), TOKENS - 1)
    return Batch(torch.arange(count), Tokens(clean), Tokens(corrupt), last, clean[:, :1], corrupt[:, :1])


# ---- the kinds of step


def plain_step(model: Any) -> Work:
    """Forward and backward of the model alone."""
    batch = examples(BATCH)
    with torch.no_grad():
        stored = model(batch.clean.ids)[:, -1].log_softmax(-1)

    def from_embedding(stream: torch.Tensor, hook: Any) -> torch.Tensor:
        return stream.detach().requires_grad_()

    def step() -> None:
        hooks = [("blocks.0.hook_resid_pre", from_embedding)]
        logits = model.run_with_hooks(batch.clean.ids, fwd_hooks=hooks)
        log_probabilities = logits[:, -1].log_softmax(-1)
        (stored.exp() * (stored - log_probabilities)).sum(-1).mean().backward()

    return step


def edge_step_cold(model: Any) -> Work:
    """A whole training step of edge masks with nothing cached."""
    batch = examples(BATCH)
    masks = tp.Masks(tp.edges(model))
    masked, budget = tp.Masked(model, masks), tp.Lagrangian(0.95)
    multipliers = budget.start()
    optimiser = tp.Optimiser().build([masks.log_alpha], [multipliers])

    def step() -> None:
        optimiser.zero_grad()
        reference = reference_predictions(masked.backend, batch)
        kl = divergence(masked(batch), reference).mean()
        sparsity = 1 - masks.expected_kept / len(masks.log_alpha)
        (kl + budget.term(multipliers, sparsity, 0)).backward()
        optimiser.step()

    return step


def edge_step(model: Any) -> Work:
    """The next step of a training run as a user starts it."""
    records: Iterator[tp.Step] = tp.steps(
        tp.Masked(model, tp.Masks(tp.edges(model))), training_task().discovery, steps=STEPS, batch_size=BATCH
    )

    def step() -> None:
        next(records)

    return step


def node_step(model: Any) -> Work:
    """A training step of masks on heads and MLPs."""
    return _training_step(model, tp.heads(model) + tp.mlps(model))


def weight_row_step(model: Any) -> Work:
    """A training step of masks on rows of weights."""
    return _training_step(model, tp.weights(model, UPPER_HALF, unit="row"))


def weight_training_step(model: Any) -> Work:
    """A training step of masks on single weights."""
    return _training_step(model, tp.weights(model, UPPER_HALF))


def weight_step(model: Any) -> Work:
    """Forward and backward under given mask values of single weights."""
    sites = tp.weights(model, UPPER_HALF)
    masked, batch = tp.Masked(model, tp.Masks(sites), tp.Zero()), examples(BATCH)
    values = torch.full((len(sites),), 0.9, requires_grad=True)
    reference = reference_predictions(masked.backend, batch)

    def step() -> None:
        values.grad = None
        divergence(masked(batch, mask=values), reference).mean().backward()

    return step


def circuit_evaluation(model: Any) -> Work:
    """Figures of one more hard circuit on the same prompts."""
    batch, graph = examples(BATCH), tp.Graph.of(model)
    circuit = tp.connected_random(graph, len(graph) // 50)
    masked = tp.Masked(model, circuit)
    cache = masked.cache(batch)
    measure(masked, circuit.kept, batch, cache=cache)

    def step() -> None:
        measure(masked, circuit.kept, batch, cache=cache)

    return step


def _training_step(model: Any, sites: tp.Sites) -> Work:
    return training_step(model, sites, examples(BATCH), tp.Zero())


def training_task() -> Task:
    stream = Stream(examples(EXAMPLES), examples(BATCH, seed=1), examples(BATCH, seed=2))
    return Task("random", {"main": stream}, Tokenisation(prepend_bos=False))


def eap(model: Any) -> Work:
    """Scores of all edges on one batch, by attribution patching."""
    return _scoring(model, tp.EAP(batch_size=BATCH))


def eap_ig(model: Any) -> Work:
    """The same with gradients at 5 points on the way from the twins' embeddings."""
    return _scoring(model, tp.EAPIG(batch_size=BATCH, steps=5))


def _scoring(model: Any, method: Any) -> Work:
    one = examples(BATCH)
    discovery = Task("random", {"main": Stream(one, one, one)}, Tokenisation(prepend_bos=False)).discovery
    sites = method.sites(model)

    def step() -> None:
        method.values(model, discovery, sites, tp.Resample(), progress=False)

    return step


KINDS: dict[str, Callable[[Any], Work]] = {
    "plain_step": plain_step,
    "edge_step_cold": edge_step_cold,
    "edge_step": edge_step,
    "node_step": node_step,
    "weight_step": weight_step,
    "weight_row_step": weight_row_step,
    "weight_training_step": weight_training_step,
    "circuit_evaluation": circuit_evaluation,
    "eap": eap,
    "eap_ig": eap_ig,
}
PLAIN = ("plain_step", "encoder_plain_step", "bridge_encoder_plain_step")
# Those of encoders, each with its model and what it is a multiple of.
ENCODERS: dict[str, tuple[Callable[[], Any], Callable[[Any], Work], str]] = {
    "encoder_node_step": (encoders.hooked, encoders.node_step, "encoder_plain_step"),
    "encoder_reference": (encoders.hooked, encoders.reference, "encoder_plain_step"),
    "encoder_plain_step": (encoders.hooked, encoders.plain_step, "encoder_plain_step"),
    "bridge_encoder_node_step": (encoders.bridged, encoders.node_step, "bridge_encoder_plain_step"),
    "bridge_encoder_plain_step": (encoders.bridged, encoders.plain_step, "bridge_encoder_plain_step"),
}
UPPER_HALF = "blocks.[6-9].*.W_*|blocks.1[01].*.W_*"
SIMPLE = [name for name in (*KINDS, *ENCODERS) if name not in ("edge_step", *PLAIN)]


# ---- measuring


def ratios(settings: Settings) -> dict[str, float]:
    """CPU seconds of each kind over those of the plain step of the same model."""
    works = {name: make(gpt2_small()) for name, make in KINDS.items()}
    works |= {name: make(model()) for name, (model, make, _) in ENCODERS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for name, work in works.items():
        if name != "edge_step":  # its first step is one of those that fill the cache
            work()
    rounds = FILLING + settings.warm
    for number in range(rounds):
        for name, work in works.items():
            if name == "edge_step" or number % max(1, rounds // settings.rounds) == 0:
                seconds[name].append(cpu_seconds(work))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    plain = medians["plain_step"]
    filling = statistics.median(seconds["edge_step"][1:FILLING])
    warm = statistics.median(seconds["edge_step"][FILLING:])
    return {
        "edge_step": round((FILLING * filling + (STEPS - FILLING) * warm) / STEPS / plain, 3),
        **{name: round(medians[name] / medians[plain_of(name)], 3) for name in SIMPLE},
        "edge_step_filling": round(filling / plain, 3),
        "edge_step_warm": round(warm / plain, 3),
        **{f"{name}_seconds": round(medians[name], 4) for name in PLAIN},
    }


def plain_of(name: str) -> str:
    """The step that a kind is a multiple of."""
    return ENCODERS[name][2] if name in ENCODERS else "plain_step"


def cpu_seconds(work: Work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def memory() -> dict[str, float]:
    """Peak memory of each kind, measured in a process of its own, over that of the plain step."""
    peaks = {name: int(_output(name)) for name in (*KINDS, *ENCODERS)}
    ratios = {name: round(peak / peaks[plain_of(name)], 3) for name, peak in peaks.items()}
    return ratios | {f"{name}_bytes": peaks[name] for name in PLAIN}


def _output(name: str) -> str:
    command = [sys.executable, "-m", "benchmarks.speed", "--only", name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]


def peak_memory(name: str) -> int:
    """Bytes above the loaded model that a kind of step needs; for ``edge_step`` with its cache full."""
    make_model, make = ENCODERS[name][:2] if name in ENCODERS else (gpt2_small, KINDS[name])
    model = make_model()
    Path("/proc/self/clear_refs").write_text("5")  # forget the high water of loading
    before = memory_status("VmRSS")
    work = make(model)
    for _ in range(FILLING + 2 if name == "edge_step" else 3):
        work()
    return memory_status("VmHWM") - before


def memory_status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def setting() -> dict[str, Any]:
    """What was measured, on what."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "shape": "GPT-2 small, random weights, vocabulary 50257",
        "batch": BATCH,
        "tokens": TOKENS,
        "examples": EXAMPLES,
        "encoder": encoders.SETTING,
        "steps": STEPS,
        "extrapolated": "edge_step: all filling steps run, later ones extrapolated",
        "threads": THREADS,
        "device": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
    }


def table(result: dict[str, dict]) -> str:
    """The result for people."""
    lines = [f"{'':<26}{'CPU time':>10}{'peak memory':>13}   (plain forward + backward = 1)"]
    for name in (*KINDS, *ENCODERS):
        ratio = result["ratios"].get(name, 1.0)
        peak = result["peak_memory"].get(name)
        lines.append(f"{name:<26}{ratio:>10.2f}{'-' if peak is None else format(peak, '.2f'):>13}")
    lines.append(f"plain step: {result['ratios']['plain_step_seconds']:.3f} CPU seconds; {result['setting']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
