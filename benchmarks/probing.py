"""What the probes of ``benchmarks.peers`` share: the work, random prompts, CPU seconds.

A probe is a process of its own, under the interpreter of the tool that it times, so nothing but torch is imported here.
It is given a job as JSON and prints its CPU seconds as JSON, one list for each kind of work.
"""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

Work = Callable[[], float]  # does the work and gives its CPU seconds
Answer = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Job:
    """What a probe does.

    Attributes:
        n_layers: of the model; and so on.
        batch: prompts.
        tokens: per prompt.
        kinds: of work, beside the plain step.
        repaired: whether TransformerLens' slow products per head are replaced.
        rounds: measurements of each kind.
        threads: for torch.
    """

    n_layers: int
    n_heads: int
    d_head: int
    d_mlp: int
    vocabulary: int
    batch: int
    tokens: int
    kinds: tuple[str, ...]
    repaired: bool
    rounds: int
    threads: int

    @property
    def d_model(self) -> int:
        return self.n_heads * self.d_head

    @property
    def shape(self) -> dict[str, Any]:
        """The model as TransformerLens calls it."""
        return {
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "d_head": self.d_head,
            "d_model": self.d_model,
            "d_mlp": self.d_mlp,
            "d_vocab": self.vocabulary,
            "n_ctx": max(64, self.tokens),
            "act_fn": "gelu_new",
            "normalization_type": "LN",
            "device": "cpu",
            "seed": 0,
        }

    def prompts(self) -> Answer:
        """Clean and corrupted tokens, ``(example, pos)``, and an answer and a foil of each, ``(example,)``."""
        generator = torch.Generator().manual_seed(0)
        clean, corrupt = torch.randint(self.vocabulary, (2, self.batch, self.tokens), generator=generator)
        answers = torch.randint(self.vocabulary, (self.batch,), generator=generator)
        return clean, corrupt, answers, (answers + 1) % self.vocabulary


def run_probe(prepare: Callable[[Job], dict[str, Work]], *packages: str) -> None:
    """Do the job on the command line and print what it took."""
    fields = json.loads(sys.argv[1])
    job = Job(**fields | {"kinds": tuple(fields["kinds"])})
    torch.set_num_threads(job.threads)
    versions = {package: version(package) for package in ("torch", "transformer-lens", *packages)}
    repaired = repair() if job.repaired else None
    seconds = {} if job.repaired and repaired is None else measured(prepare(job), job)
    print(json.dumps({"seconds": seconds, "versions": versions, "repaired": repaired}))


def measured(works: dict[str, Work], job: Job) -> dict[str, list[float]]:
    """CPU seconds of the plain step and of the job's kinds, interleaved, after each was done once."""
    chosen = {kind: works[kind] for kind in ("plain_step", *job.kinds)}
    for work in chosen.values():
        work()
    seconds: dict[str, list[float]] = {kind: [] for kind in chosen}
    for _ in range(job.rounds):
        for kind, work in chosen.items():
            seconds[kind].append(work())
    return seconds


def timed(action: Callable[[], Any]) -> Work:
    """An action as work."""

    def work() -> float:
        start = time.process_time()
        action()
        return time.process_time() - start

    return work


def plain_step(model: Any, clean: Tensor) -> Work:
    """Forward and backward of a frozen model alone, to the output of its embedding.

    All positions are unembedded; the loss is the KL to a stored reference at the last.
    """
    model.requires_grad_(False)
    with torch.no_grad():
        stored = model(clean)[:, -1].log_softmax(-1)

    def from_embedding(stream: Tensor, hook: Any) -> Tensor:
        return stream.detach().requires_grad_()

    def step() -> None:
        logits = model.run_with_hooks(clean, fwd_hooks=[("blocks.0.hook_resid_pre", from_embedding)])
        log_probabilities = logits[:, -1].log_softmax(-1)
        (stored.exp() * (stored - log_probabilities)).sum(-1).mean().backward()

    return timed(step)


def repair() -> str | None:
    """Let attention multiply each head by its output matrix, where it broadcasts, multiplies and sums; what was done.

    TransformerLens 2.5 to 3 form a tensor of ``(batch, pos, head, d_head, d_model)`` for ``attn.hook_result``.
    """
    try:
        from transformer_lens.components import abstract_attention
    except ImportError:
        return None
    attention = abstract_attention.AbstractAttention
    source = textwrap.dedent(inspect.getsource(attention.forward))
    if SLOW not in source:
        return None
    scope: dict[str, Any] = {}
    exec(source.replace(SLOW, FAST), abstract_attention.__dict__, scope)
    attention.forward = scope["forward"]
    return f"{SLOW} replaced by {FAST}"


SLOW = "(z * w).sum(-2)"
FAST = "__import__('torch').einsum('bphe,hem->bphm', z.squeeze(-1), w[0, 0])"
