"""How steps of edge masks grow with the model, and whether tp.estimate tells it beforehand.

    python -m benchmarks.scale [--parts gpt2 llama growth sparse] [--size paper] [--json] [--figure growth.html]

On a GPU where there is one, else on the CPU. Random weights, behind a TransformerBridge. A step is a training step as a
user takes it, with replacements and predictions cached; the plain step is forward and backward to the embedding's
output with frozen weights. Times are medians of steps that take turns: seconds of the process on a CPU, of the clock on
a GPU. Memory is what three steps need beside the model: on a CPU the most that was resident, in a process for each,
which has what C's allocator keeps, and the bytes of tensors alone, which tp.estimate tells; on a GPU what PyTorch
allocated.

``gpt2``: time and memory of a step over the plain step, at GPT-2 small's shape; on a GPU in bfloat16 too. ``--size
paper``: 32 prompts of 64 tokens, as the paper has them, which is the default on a GPU; ``small``: 8 of 32, the default
on a CPU; ``tiny``: a shape that shows that everything runs.

``llama``: Llama 7B and CodeLlama 13B with masks on all edges, 72 tokens, in bfloat16: measured where the GPU has
room for it (tp.estimate says so), else what tp.estimate tells; and a Llama of the same proportions, shrunk, measured
against tp.estimate.

``growth``: exponents of time and memory in layers, heads, length and batch, fitted as lines through logarithms, beside
those of the operations that matrix products take and of tp.estimate. ``--figure``: drawn, as a page.

``sparse``: time and memory where 100%, 10% and 1% of the edges are in play, the others closed for good.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

import tlprune as tp
from benchmarks.shaped import Case, peaks_here, peaks_of, seconds_of

Part = Literal["gpt2", "llama", "growth", "sparse"]
Size = Literal["paper", "small", "tiny"]
Result = dict[str, Any]

GPT2 = Case("edges", "gpt2", 12, 12, 768, 3072, 50257, 32, 64)
LLAMA_7B = Case("edges", "llama", 32, 32, 4096, 11008, 32000, 1, 72, "bfloat16")
CODELLAMA_13B = Case("edges", "llama", 40, 40, 5120, 13824, 32016, 1, 72, "bfloat16")
# A Llama of the same proportions: heads of 64, neurons 2.7 times the width.
SHRUNK = Case("edges", "llama", 8, 8, 512, 1376, 4000, 2, 72)
BASE = Case("edges", "gpt2", 4, 4, 256, 1024, 1000, 4, 64)
TINY = Case("edges", "gpt2", 2, 2, 32, 64, 50, 2, 8)
AXES: dict[str, Sequence[int]] = {
    "layers": (4, 8, 16), "heads": (4, 8, 16), "tokens": (64, 128, 256), "batch": (4, 8, 16),
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How steps of edge masks grow.

    Attributes:
        parts: what to measure.
        size: of GPT-2's batches, and of everything with ``tiny``; by default ``paper`` on a GPU, else ``small``.
        json: print one JSON object instead of tables.
        rounds: measured steps of each kind.
        figure: a page for the drawn growth; needs plotly.
        only: measure the memory of this case, as JSON, in this process, in bytes.
    """

    parts: tuple[Part, ...] = ("gpt2", "llama", "growth", "sparse")
    size: Size | None = None
    json: bool = False
    rounds: int = 7
    figure: Path | None = None
    only: str | None = None


def main() -> None:
    settings = tyro.cli(Settings)
    if settings.only:
        print(json.dumps(peaks_here(Case(**json.loads(settings.only)))))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = settings.size or ("small" if device == "cpu" else "paper")
    run = Run(device, size, settings.rounds)
    result = {part: PARTS[part](run) for part in settings.parts} | {"setting": run.setting}
    if settings.figure is not None:
        draw(result["growth"], settings.figure)
    print(json.dumps(result, indent=1) if settings.json else tables(result))


@dataclass(frozen=True)
class Run:
    """Where and how much is measured."""

    device: str
    size: Size
    rounds: int

    @property
    def setting(self) -> Result:
        name = torch.cuda.get_device_name() if self.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        return {"device": name, "size": self.size, "rounds": self.rounds, "torch": torch.__version__}

    def shape(self, case: Case) -> Case:
        """The case, or a tiny one of its kind."""
        if self.size != "tiny":
            return case
        return replace(TINY, family=case.family, kind=case.kind, dtype=case.dtype, in_play=case.in_play)

    def measured(self, cases: dict[str, Case]) -> dict[str, Result]:
        """Seconds, bytes and, of masks, what was predicted."""
        seconds = seconds_of(cases, rounds=self.rounds, device=self.device)
        return {name: {"seconds": seconds[name], **self.memory(case)} for name, case in cases.items()}

    def memory(self, case: Case) -> Result:
        """Bytes beside the model, and what tp.estimate says."""
        found: Result = dict(peaks_of(case, self.device))
        if case.kind == "edges":
            found["predicted"] = case.estimate().beside_weights
            found["predicted_over_measured"] = round(found["predicted"] / max(1, found["tensors"]), 3)
        return found


# ---- parts


def gpt2(run: Run) -> Result:
    """A step over the plain step."""
    batch, tokens = (32, 64) if run.size == "paper" else (8, 32)
    result: Result = {}
    for dtype in ("float32", "bfloat16") if run.device == "cuda" else ("float32",):
        edges = run.shape(replace(GPT2, batch=batch, tokens=tokens, dtype=dtype))
        found = run.measured({"plain": replace(edges, kind="plain"), "edges": edges})
        ratios = {
            what: found["edges"][what] / max(1e-9, found["plain"][what]) for what in ("seconds", "bytes", "tensors")
        }
        result[dtype] = {"batch": edges.batch, "tokens": edges.tokens, **found, "ratios": ratios}
    return result


def llama(run: Run) -> Result:
    """Models that fill a GPU, and one of their proportions that fills nothing."""
    result: Result = {}
    for name, case in {"llama 7b": LLAMA_7B, "codellama 13b": CODELLAMA_13B}.items():
        shown = run.shape(case)
        found = shown.estimate()
        parts = {part: getattr(found, part) for part in PARTS_OF_MEMORY}
        result[name] = {"edges": shown.edges, **parts, "total": found.total, "beside_weights": found.beside_weights}
        result[name]["largest_batch_in_141_gb"] = found.largest_batch(141e9)
        if run.device == "cuda" and found.total < torch.cuda.mem_get_info()[0]:
            result[name]["measured"] = run.measured({"edges": shown})["edges"]
    for dtype in ("float32", "bfloat16"):
        result[f"shrunk {dtype}"] = run.measured({"edges": run.shape(replace(SHRUNK, dtype=dtype))})["edges"]
    return result


PARTS_OF_MEMORY = ("weights", "masks", "buffers", "replacements", "activations", "caches", "temporaries")


def growth(run: Run) -> Result:
    """Along each axis: what was measured, and the exponents of measurement and arithmetic."""
    result: Result = {}
    base = TINY if run.size == "tiny" else BASE
    for axis, own in AXES.items():
        values = [getattr(base, axis) * value // own[0] for value in own]
        cases = {str(value): _along(base, axis, value) for value in values}
        found = run.measured(cases)
        rows = [{axis: value, **found[str(value)], "operations": cases[str(value)].operations()} for value in values]
        fitted = {
            what: exponent(values, [row[what] for row in rows])
            for what in ("seconds", "operations", "tensors", "predicted")
        }
        result[axis] = {"rows": rows, "exponents": fitted}
    return result


def _along(base: Case, axis: str, value: int) -> Case:
    """The base with another value on one axis; heads keep their size, so that the width grows with them."""
    if axis == "heads":
        factor = value / base.heads
        return replace(base, heads=value, width=round(base.width * factor), neurons=round(base.neurons * factor))
    return replace(base, **{axis: value})


def exponent(values: Sequence[float], measured: Sequence[float]) -> float:
    """The slope of a line through logarithms.

    Example:
        >>> exponent([1, 2, 4], [3, 12, 48])
        2.0
    """
    slope, _ = np.polyfit(np.log(values), np.log(np.maximum(measured, 1e-12)), 1)
    return round(float(slope), 3)


def sparse(run: Run) -> Result:
    """Fewer and fewer edges in play."""
    base = run.shape(replace(GPT2, batch=8, tokens=32) if run.size != "paper" else GPT2)
    return run.measured({f"{part:.0%}": replace(base, in_play=part) for part in (1.0, 0.1, 0.01)})


PARTS: dict[str, Callable[[Run], Result]] = {"gpt2": gpt2, "llama": llama, "growth": growth, "sparse": sparse}


# ---- showing


def tables(result: Result) -> str:
    """Everything for people."""
    lines = [str(result["setting"])]
    for dtype, found in result.get("gpt2", {}).items():
        lines += [f"\nGPT-2 small, {found['batch']} x {found['tokens']} tokens, {dtype}"]
        lines += [_line(name, found[name]) for name in ("plain", "edges")]
        time, memory = found["ratios"]["seconds"], found["ratios"]["bytes"]
        tensors = found["ratios"]["tensors"]
        lines.append(f"edges over plain: {time:.2f} times the time, {memory:.2f} the memory, {tensors:.2f} of tensors")
    for name, found in result.get("llama", {}).items():
        lines += [f"\n{name}", *(_line(name, found) if "bytes" in found else _parts(found)).splitlines()]
    for axis, found in result.get("growth", {}).items():
        fitted = ", ".join(f"{what} {value:.2f}" for what, value in found["exponents"].items())
        lines += [f"\nexponents in {axis}: {fitted}", *(_line(str(row[axis]), row) for row in found["rows"])]
    if "sparse" in result:
        lines += ["\nedges in play", *(_line(name, found) for name, found in result["sparse"].items())]
    return "\n".join(lines)


def _line(name: str, found: Result) -> str:
    told = f", {found['predicted_over_measured']:.3f} of it predicted" if "predicted" in found else ""
    tensors = f"{found['tensors'] / 2**20:>12,.1f} MiB of tensors"
    return f"  {name:<18}{found['seconds']:>10.4f} s{found['bytes'] / 2**20:>12,.1f} MiB{tensors}{told}"


def _parts(found: Result) -> str:
    lines = [f"  {found['edges']:,} edges; {found['largest_batch_in_141_gb']} prompts would fit into 141 GB"]
    lines += [f"  {part:<14}{found[part] / 2**30:>10.3f} GiB" for part in (*PARTS_OF_MEMORY, "total")]
    return "\n".join(lines + ([_line("measured", found["measured"])] if "measured" in found else []))


def draw(found: Result, path: Path) -> None:
    """Time and memory along each axis, on logarithmic axes, as a page."""
    from tlprune.drawing.charts import TEMPLATE, plotly, write_page

    shapes, pages = plotly(), []
    for what, unit, told in (("seconds", "s per step", "operations"), ("tensors", "bytes", "predicted")):
        figure = shapes.Figure()
        for axis, one in found.items():
            values = [row[axis] for row in one["rows"]]
            label = f"{axis}: exponent {one['exponents'][what]:.2f}, {told} {one['exponents'][told]:.2f}"
            figure.add_scatter(x=values, y=[row[what] for row in one["rows"]], name=label, mode="lines+markers")
        figure.update_layout(template=TEMPLATE, xaxis_title="value on the axis", yaxis_title=unit)
        figure.update_xaxes(type="log")
        figure.update_yaxes(type="log")
        pages.append(figure)
    write_page(path, pages, title=f"Growth of a step of edge masks (tlprune {tp.__version__})")


if __name__ == "__main__":
    main()
