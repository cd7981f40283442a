"""Steps of random models of a given shape, and what they take: seconds, bytes, and both as arithmetic has them."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

import tlprune as tp
from benchmarks.speed import memory_status
from benchmarks.training import Work
from tlprune.backends import backend_of
from tlprune.graph import Graph
from tlprune.learning.dry_run import Counted
from tlprune.task import Batch, Stream, Task, Tokenisation, Tokens


@dataclass(frozen=True)
class Case:
    """One kind of step of one shape of model.

    Attributes:
        kind: ``"plain"``: forward and backward to the embedding's output, weights frozen; ``"edges"``: a training step
            of edge masks as a user takes it, replacements and predictions of the examples cached.
        family: GPT-2's (LayerNorm, learned positions) or Llama's (RMSNorm, rotary, gated), both behind a bridge.
        in_play: fraction of edges that training may open; the others are closed for good.
    """

    kind: Literal["plain", "edges"]
    family: Literal["gpt2", "llama"]
    layers: int
    heads: int
    width: int
    neurons: int
    vocabulary: int
    batch: int
    tokens: int
    dtype: str = "float32"
    in_play: float = 1.0

    @property
    def config(self) -> Any:
        """Of Hugging Face."""
        import transformers

        length = max(self.tokens, 64)
        if self.family == "gpt2":
            return transformers.GPT2Config(
                n_layer=self.layers, n_head=self.heads, n_embd=self.width, n_inner=self.neurons,
                vocab_size=self.vocabulary, n_positions=length,
            )  # fmt: skip
        return transformers.LlamaConfig(
            num_hidden_layers=self.layers, num_attention_heads=self.heads, hidden_size=self.width,
            intermediate_size=self.neurons, vocab_size=self.vocabulary, max_position_embeddings=length,
            head_dim=self.width // self.heads,
        )  # fmt: skip

    def model(self, device: str) -> Any:
        """With random weights."""
        import transformers

        torch.manual_seed(0)
        default = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, self.dtype))
        try:
            with torch.device(device):
                return tp.bridge(transformers.AutoModelForCausalLM.from_config(self.config)).requires_grad_(False)
        finally:
            torch.set_default_dtype(default)

    def estimate(self) -> tp.Estimate:
        """What :func:`tlprune.estimate` says, of a model without weights."""
        model = tp.outline(self.config, dtype=getattr(torch, self.dtype))
        return tp.estimate(model, self.masks(model), batch=self.batch, length=self.tokens, examples=2 * self.batch)

    def masks(self, model: Any) -> tp.Masks:
        sites = tp.edges(model)
        count = max(2, round(self.in_play * len(sites)))
        among = None if self.in_play == 1 else tp.connected_random(sites.graph, count)
        return tp.Masks(sites, among=among)

    def operations(self) -> float:
        """Multiplications and additions of all matrix products of the step."""
        tokens, head = self.batch * self.tokens, self.width // self.heads
        attention = 2 * self.layers * tokens * (4 * self.width * self.heads * head + 2 * self.tokens * self.width)
        mlp = 2 * self.layers * tokens * self.width * self.neurons * (3 if self.family == "llama" else 2)
        plain = 2 * (attention + mlp) + 4 * self.batch * self.width * self.vocabulary
        if self.kind == "plain":
            return plain
        # Each edge four times: read, read again in the backward, its own gradient and its writer's.
        return plain + 4 * 2 * self.in_play * self.edges * tokens * self.width

    @property
    def edges(self) -> int:
        return Graph(backend_of(tp.outline(self.config)).architecture).n_edges


def work_of(case: Case, model: Any) -> Work:
    """The step, to be taken again and again."""
    device = backend_of(model).device
    examples = _examples(case, 2 * case.batch)
    if case.kind == "edges":
        stream = Stream(examples, _examples(case, 1), _examples(case, 1))
        discovery = Task("random", {"main": stream}, Tokenisation(prepend_bos=False)).discovery
        masked = tp.Masked(model, case.masks(model).to(device))
        records = tp.steps(masked, discovery, steps=10_000, batch_size=case.batch)
        return lambda: next(records) and None
    ids = examples.clean.ids[: case.batch].to(device)
    with torch.no_grad():
        stored = model(ids)[:, -1].float().log_softmax(-1)

    def step() -> None:
        handle = backend_of(model).embedding.register_forward_hook(lambda _, __, out: out.detach().requires_grad_())
        try:
            said = model(ids)[:, -1].float().log_softmax(-1)
        finally:
            handle.remove()
        (stored.exp() * (stored - said)).sum(-1).mean().backward()

    return step


def _examples(case: Case, count: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    clean, corrupt = torch.randint(case.vocabulary, (2, count, case.tokens), generator=generator)
    last = torch.full((count, 1), case.tokens - 1)
    return Batch(torch.arange(count), Tokens(clean), Tokens(corrupt), last, clean[:, :1], corrupt[:, :1])


# ---- measuring


def seconds_of(cases: Mapping[str, Case], *, rounds: int, device: str) -> dict[str, float]:
    """Median seconds of steps that take turns, after two of each: of this process on a CPU, of the clock on a GPU."""
    models: dict[Any, Any] = {}
    works = {}
    for name, case in cases.items():
        shape = replace(case, kind="plain", in_play=1.0)
        works[name] = work_of(case, models.setdefault(shape, models.get(shape) or case.model(device)))
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 2):
        for name, work in works.items():
            spent = _seconds(work, device)
            taken[name] += [spent] if number > 1 else []
    return {name: statistics.median(values) for name, values in taken.items()}


def _seconds(work: Work, device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def peaks_of(case: Case, device: str) -> dict[str, int]:
    """Bytes that three steps need beside the model; on a CPU in a process of their own, and those of tensors alone."""
    if device == "cpu":
        command = [sys.executable, "-m", "benchmarks.scale", "--only", json.dumps(asdict(case))]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    torch.cuda.empty_cache()
    model = case.model(device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _three(case, model)
    peak = torch.cuda.max_memory_allocated() - before
    return {"bytes": peak, "tensors": peak}


def peaks_here(case: Case) -> dict[str, int]:
    """Bytes of this process: the most that was resident, less what was before, libraries warm; and those of tensors.

    The first has what C's allocator keeps of what was given back, too.
    """
    few = replace(case, layers=1, heads=1, width=8, neurons=8, vocabulary=9, batch=1, tokens=4, in_play=1.0)
    _three(few, few.model("cpu"))
    model = case.model("cpu")
    Path("/proc/self/clear_refs").write_text("5")  # forget the high water of loading
    before = memory_status("VmRSS")
    _three(case, model)
    resident = memory_status("VmHWM") - before
    with Counted() as counted:
        counted.begin(without=[*model.parameters(), *model.buffers()])
        _three(case, model)
        counted.look()
    return {"bytes": resident, "tensors": counted.most}


def _three(case: Case, model: Any) -> None:
    work = work_of(case, model)
    for _ in range(3):
        work()
