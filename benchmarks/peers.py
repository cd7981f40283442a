"""What the same work costs in other tools, as a multiple of the plain model's forward and backward.

    python -m venv ~/auto-circuit
    ~/auto-circuit/bin/pip install auto-circuit==1.0.1 transformer-lens==2.4.0 transformers==4.44.2 numpy==1.26.4 \\
        pyarrow==18.1.0 datasets==3.2.0
    python -m venv ~/lens
    ~/lens/bin/pip install transformer-lens==4.3.0
    python -m benchmarks.peers --auto-circuit-python ~/auto-circuit/bin/python \\
        --transformer-lens-python ~/lens/bin/python [--json] [--shape tiny]

GPT-2-small shape with random weights and vocabulary 50,257, 8 prompts of 20 tokens, 2 threads; ACDC on a model of 2
layers with 4 heads of the same size and the same prompts. Every tool runs in a process of its own, under its own
interpreter, on a model of its own TransformerLens; the unit is the plain step of that very model in that very process.
Times are CPU seconds, the kinds of work interleaved, medians. The modules ``benchmarks.probe_*`` say what each kind is
in each tool. A tool whose interpreter is not given is not run.

auto-circuit alone would be installed with a TransformerLens that it cannot use; above are the versions that it locked.
``repaired``: later ones, until 3.9, form a tensor of ``(batch, pos, head, d_head, d_model)`` where a product of
matrices would do; in that column the process puts the product there. Others have nothing to replace. For a second
environment, of the slower kind, give transformer-lens==2.18.0 and transformers==4.57.6.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.probing import Job

ROOT = Path(__file__).parent.parent
KINDS = ("eap", "eap_ig", "circuit", "subnetwork_probing", "acdc")
NOT_RUN = "not run"


@dataclass(frozen=True)
class Shape:
    """The model of most work, the layers and heads of ACDC's, and the prompts."""

    n_layers: int
    n_heads: int
    d_head: int
    vocabulary: int
    batch: int
    tokens: int
    searched: tuple[int, int] = (2, 4)

    def job(self, kinds: tuple[str, ...], *, searched: bool, repaired: bool, rounds: int, threads: int) -> Job:
        n_layers, n_heads = self.searched if searched else (self.n_layers, self.n_heads)
        d_mlp = 4 * n_heads * self.d_head
        sizes = (n_layers, n_heads, self.d_head, d_mlp, self.vocabulary, self.batch, self.tokens)
        return Job(*sizes, kinds=kinds, repaired=repaired, rounds=rounds, threads=threads)


SHAPES = {"gpt2-small": Shape(12, 12, 64, 50257, 8, 20), "tiny": Shape(2, 2, 4, 101, 2, 5)}


@dataclass(frozen=True)
class Tool:
    """A tool, the module that times it, and what it can do."""

    name: str
    probe: str
    kinds: tuple[str, ...]


OURS = Tool("tlprune", "probe_tlprune", KINDS)
AUTO_CIRCUIT = Tool("auto-circuit", "probe_auto_circuit", KINDS)
TRANSFORMER_LENS = Tool("TransformerLens", "probe_transformer_lens", ("eap", "circuit"))


@dataclass(frozen=True)
class Settings:
    """The same work in several tools.

    Attributes:
        auto_circuit_python: interpreter of an environment with auto-circuit.
        transformer_lens_python: interpreter of an environment with TransformerLens 4.3 or later.
        shape: of the model and the prompts; ``tiny`` only shows that everything runs.
        kinds: of work.
        rounds: measurements of each kind, after one that does not count.
        threads: for torch.
        json: print one JSON object instead of a table.
    """

    auto_circuit_python: Path | None = None
    transformer_lens_python: Path | None = None
    shape: Literal["gpt2-small", "tiny"] = "gpt2-small"
    kinds: tuple[str, ...] = KINDS
    rounds: int = 3
    threads: int = 2
    json: bool = False


def main() -> None:
    settings = tyro.cli(Settings)
    interpreters = {
        OURS: Path(sys.executable),
        AUTO_CIRCUIT: settings.auto_circuit_python,
        TRANSFORMER_LENS: settings.transformer_lens_python,
    }
    columns = [
        column(tool, python, settings, repaired=repaired)
        for tool, python in interpreters.items()
        for repaired in ((False,) if tool is OURS else (False, True))
    ]
    result = {"columns": columns, "setting": setting(settings)}
    print(json.dumps(result, indent=1) if settings.json else table(result, settings.kinds))


# ---- measuring


def column(tool: Tool, python: Path | None, settings: Settings, *, repaired: bool) -> dict[str, Any]:
    """One tool's ratios by kind; ``status`` says why there are none."""
    named = {"tool": tool.name, "repaired": repaired}
    if python is None:
        return {**named, "status": NOT_RUN, "ratios": {}}
    runs = [part for part in parts(tool, settings, repaired=repaired) if part.kinds]
    found = []
    for job in runs:
        found.append(probed(tool, python, job))
        if repaired and found[-1]["repaired"] is None:
            return {**named, "status": "nothing to replace", "ratios": {}, "versions": found[-1]["versions"]}
    return {
        **named,
        "status": "measured",
        "ratios": {kind: ratio for one in found for kind, ratio in ratios(one["seconds"]).items()},
        "plain_step_seconds": [round(statistics.median(one["seconds"]["plain_step"]), 4) for one in found],
        "versions": found[0]["versions"] if found else {},
    }


def parts(tool: Tool, settings: Settings, *, repaired: bool) -> list[Job]:
    """The jobs of a tool: its work on the model, and ACDC on a smaller one."""
    shape, wanted = SHAPES[settings.shape], [kind for kind in tool.kinds if kind in settings.kinds]
    return [
        shape.job(
            tuple(kind for kind in wanted if (kind == "acdc") == searched),
            searched=searched, repaired=repaired, rounds=settings.rounds, threads=settings.threads,
        )
        for searched in (False, True)
    ]  # fmt: skip


def probed(tool: Tool, python: Path, job: Job) -> dict[str, Any]:
    """What the probe of a tool prints, from a process of its own."""
    command = [str(python), "-m", f"benchmarks.{tool.probe}", json.dumps(asdict(job))]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise RuntimeError(f"The probe of {tool.name} failed.\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Medians, as multiples of the plain step's."""
    plain = statistics.median(seconds["plain_step"])
    return {kind: round(statistics.median(found) / plain, 3) for kind, found in seconds.items() if kind != "plain_step"}


def setting(settings: Settings) -> dict[str, Any]:
    """What was measured, on what."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "shape": settings.shape,
        **asdict(SHAPES[settings.shape]),
        "rounds": settings.rounds,
        "threads": settings.threads,
        "device": f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "commit": commit.stdout.strip(),
    }


# ---- printing


def table(result: dict[str, Any], kinds: tuple[str, ...]) -> str:
    """The result for people."""
    columns = result["columns"]
    heads = [f"{one['tool']}{' repaired' if one['repaired'] else ''}" for one in columns]
    widths = [max(len(head), 18) for head in heads]
    lines = [" " * 20 + "".join(f"{head:>{width + 2}}" for head, width in zip(heads, widths, strict=True))]
    for kind in kinds:
        cells = [cell(one, kind) for one in columns]
        lines.append(f"{kind:<20}" + "".join(f"{text:>{w + 2}}" for text, w in zip(cells, widths, strict=True)))
    lines.append("CPU time; plain forward + backward of the same model in the same process = 1")
    lines += [f"{head}: {one['versions']}" for head, one in zip(heads, columns, strict=True) if one.get("versions")]
    return "\n".join([*lines, str(result["setting"])])


def cell(one: dict[str, Any], kind: str) -> str:
    """A ratio, ``-`` where the tool has no such work, or why there is no ratio."""
    if one["status"] != "measured":
        return one["status"]
    return f"{one['ratios'][kind]:.2f}" if kind in one["ratios"] else "-"


if __name__ == "__main__":
    main()
