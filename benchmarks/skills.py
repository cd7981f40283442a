"""What probing for skill neurons costs beside the plain forward run of the same examples.

    python -m benchmarks.skills [--examples 256 --tokens 64 --prompt 16 --batch 32] [--json]

GPT-2-small shape with random weights and vocabulary 50,257, two classes, 2 threads. Each kind of probe is a whole
search: a pass over train for thresholds, one over validation for accuracies, half of the examples each. ``plain`` runs
the same prompts in the same batches without gradients and takes the logits where the answer is read, which is the least
that tells a class; ``prompt`` reads the tokens of an attached prompt behind the words.

Times are CPU seconds of this process, the kinds interleaved, medians, over the plain one. Operations are those of
matrix products and attention, counted, which no other load on the machine can change; what probing does beside them is
elementwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import tyro

import tlprune as tp
from benchmarks.alone import medians, show
from benchmarks.knowledge import operations
from benchmarks.speed import THREADS, Work, gpt2_shaped
from tlprune.backends import backend_of
from tlprune.task import Batch, Stream, Task, Tokenisation, Tokens


@dataclass(frozen=True)
class Settings:
    """Cost of probing.

    Attributes:
        examples: of train and validation together.
        tokens: of each example, the prompt included.
        prompt: how many of them the prompt has.
        batch: examples per forward pass.
        layers: layers of the model.
        width: width of its residual stream, a multiple of 64.
        vocabulary: its tokens.
        rounds: measurements of each kind.
        json: print one JSON object instead of lines.
    """

    examples: int = 256
    tokens: int = 64
    prompt: int = 16
    batch: int = 32
    layers: int = 12
    width: int = 768
    vocabulary: int = 50257
    rounds: int = 5
    json: bool = False


def main() -> None:
    settings = tyro.cli(Settings)
    torch.set_num_threads(THREADS)
    show(costs(settings), settings)


def model_of(settings: Settings) -> Any:
    return gpt2_shaped(layers=settings.layers, width=settings.width, vocabulary=settings.vocabulary)


def task_of(settings: Settings) -> Task:
    """Random words with a prompt behind them, in two classes by turns."""
    half = settings.examples // 2
    return Task(
        "random",
        {"main": Stream(*(_examples(settings, count, seed) for seed, count in enumerate((half, half, 2))))},
        Tokenisation(prepend_bos=False),
    )


def _examples(settings: Settings, count: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, settings.vocabulary, (count, settings.tokens - settings.prompt), generator=generator)
    prompt = torch.arange(settings.vocabulary, settings.vocabulary + settings.prompt).expand(count, -1)
    tokens = Tokens(torch.cat([words, prompt], 1))
    answers = torch.arange(count)[:, None] % 2
    last = torch.full((count, 1), settings.tokens - 1)
    return Batch(torch.arange(count), tokens, tokens, last, answers, 1 - answers)


# ---- the kinds


def prompt_of(model: Any, settings: Settings) -> tp.Prompt:
    return tp.Prompt.random(model, settings.prompt)


def plain(model: Any, settings: Settings) -> Work:
    """The same prompts, answers read."""
    task, prompt, backend = task_of(settings), prompt_of(model, settings), backend_of(model)
    batches = [
        batch for part in (task.discovery.train(), task.discovery.validation()) for batch in part.split(settings.batch)
    ]

    def run() -> None:
        with prompt.attached(model), torch.no_grad():
            for batch in batches:
                backend.logits(batch.clean, batch.positions)

    return run


def probing(model: Any, settings: Settings, probe: Any) -> Work:
    """A search for skill neurons."""
    task, prompts = task_of(settings), [prompt_of(model, settings)]
    method = tp.SkillNeurons(probe=probe, batch_size=settings.batch)

    def run() -> None:
        method.predictivity(model, task, prompts=prompts)

    return run


# ---- measuring


def costs(settings: Settings) -> dict[str, Any]:
    """Time and operations of each probe over those of the plain run."""
    model = model_of(settings)
    works = {"plain": plain(model, settings)}
    works |= {probe: probing(model, settings, probe) for probe in ("prompt", "mean", "max")}
    for work in works.values():
        work()
    seconds = medians(works, settings.rounds)
    counted = {name: operations(work) for name, work in works.items()}
    probes = [name for name in works if name != "plain"]
    return {
        "time": {name: round(seconds[name] / seconds["plain"], 3) for name in probes},
        "operations": {name: round(counted[name] / counted["plain"], 3) for name in probes},
        "plain_seconds": round(seconds["plain"], 3),
    }


if __name__ == "__main__":
    main()
