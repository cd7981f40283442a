"""Prompt tuning: the vectors of a soft prompt are trained, and nothing of the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.backends.prompting import embedded_tokens
from tlprune.files import write_tensors
from tlprune.finetuning.plan import batches
from tlprune.finetuning.resuming import (
    CHECKPOINT,
    Best,
    moments_of,
    part_of,
    put_back_moments,
    read_own_checkpoint,
)
from tlprune.learning.objectives import CrossEntropy
from tlprune.prompts.prompt import Prompt
from tlprune.task import Batch, Task
from tlprune.tasks.verbaliser import word_metrics

Watch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class PromptTuning:
    """Train a soft prompt on a model that stays as it is, and keep what was best on validation.

    It lowers the cross entropy, in nats, of the answers among the task's words, by Adam; the rate rises over the
    warm-up and then falls linearly to 0. The best step has the highest accuracy on validation examples, of equal ones
    the lowest cross entropy; the prompt that training starts with counts, so none is made worse. Gradients flow to the
    vectors alone: no weight collects one, and none is computed for any.

    Attributes:
        steps: at most so many.
        batch_size: examples per step.
        rate: highest learning rate.
        betas: of Adam.
        epsilon: of Adam.
        clip: largest gradient norm.
        warmup: share of the steps in which the rate rises.
        evaluate_every: steps between looks at validation examples, each a checkpoint where there is a folder.
        patience: looks without a better figure after which training stops; ``None``: never.
        seed: of the first prompt, where none is given, and of the order of examples.

    Source: Wang et al., "Finding Skill Neurons in Pre-trained Transformer-based Language Models" (EMNLP 2022),
        appendix A, and the authors' code.

    Example:
        >>> import tlprune as tp
        >>> texts = tuple(f"{name} is {word}" for name in ("John", "Mary", "Paul") for word in ("kind", "brave"))
        >>> data = tp.tasks.Labelled("mine", texts, None, (1, 0) * 3, ("negative", "positive"))
        >>> model = tp.load("testbed")
        >>> counts = {"train_count": 2, "validation_count": 2, "test_count": 2, "seed": 1}
        >>> options = {"length": 2, "words": ("nervous", "brave")}
        >>> task = tp.tasks.prompted(model, {"train": data}, **options, **counts)
        >>> prompt = PromptTuning(steps=40, batch_size=2, rate=0.1, evaluate_every=10).tune(model, task)
        >>> prompt, prompt.record["validation"]["accuracy"]
        (Prompt(2 vectors of 128 at the end), 1.0)
    """

    steps: int = 2000
    batch_size: int = 16
    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-6
    clip: float = 1.0
    warmup: float = 0.006
    evaluate_every: int = 100
    patience: int | None = 6
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 but is {value}. Give a larger number.")
        if self.rate <= 0 or self.clip <= 0 or not 0 <= self.warmup < 1:
            raise ValueError(
                f"rate and clip must be above 0, and warmup a share of the steps, but they are {self.rate}, "
                f"{self.clip} and {self.warmup}. A rate of 1e-3, a clip of 1 and a warmup of 0.006 are usual."
            )

    def tune(
        self,
        model: Any,
        task: Task,
        *,
        prompt: Prompt | None = None,
        folder: str | Path | None = None,
        watch: Watch | None = None,
    ) -> Prompt:
        """The best prompt for a task; its test examples are not looked at.

        Args:
            model: the model, left as it is.
            task: of :func:`~tlprune.tasks.prompted`, or another whose prompts hold prompt tokens.
            prompt: where to start; by default a random one of the length that the task's prompts ask for.
            folder: for checkpoints, from which the same call goes on, on a CPU bit for bit; at the end it holds the
                prompt, as of :meth:`Prompt.save`.
            watch: told of each look at validation examples: step, loss since the last look, rate and figures.

        Raises:
            ValueError: the task has no prompt tokens or one word only, the prompt has none that are trained, or the
                folder is of another run.
        """
        prompt = prompt or Prompt.random(model, prompt_length(model, task), seed=self.seed)
        run = Tuning(model, task, prompt, self)
        place = None if folder is None else Path(folder)
        if place is not None:
            place.mkdir(parents=True, exist_ok=True)
            if (place / CHECKPOINT).exists():
                run.resume(place)
        run.to_the_end(place, watch)
        found = run.best_prompt()
        if place is not None:
            found.save(place)
        return found

    def factor(self, step: int) -> float:
        """What the rate is multiplied with in a step, from 0.

        Example:
            >>> [PromptTuning(steps=4, warmup=0.5).factor(step) for step in range(4)]
            [0.5, 1.0, 1.0, 0.5]
        """
        rising = math.ceil(self.warmup * self.steps)
        return (step + 1) / rising if step < rising else (self.steps - step) / (self.steps - rising)


class Tuning:
    """A prompt on its way.

    Args:
        model: the model.
        task: its training and validation examples.
        prompt: where it starts.
        plan: the settings.
    """

    def __init__(self, model: Any, task: Task, prompt: Prompt, plan: PromptTuning) -> None:
        if prompt.frozen == len(prompt):
            raise ValueError(f"{prompt} has no vectors to train. Take a longer one.")
        self.model, self.prompt, self.plan, self.backend = model, prompt, plan, backend_of(model)
        discovery = task.discovery
        self.train, self.validation = (
            one.to(self.backend.device) for one in (discovery.train(), discovery.validation())
        )
        words = words_of(self.train, self.validation)
        self.objective, self.metrics = CrossEntropy(tokens=words), word_metrics(words)
        vectors = prompt.vectors.detach().clone().to(self.backend.device)
        self.kept, self.trained = vectors[: prompt.frozen], vectors[prompt.frozen :].clone().requires_grad_()
        self.adam = torch.optim.Adam([self.trained], lr=plan.rate, betas=plan.betas, eps=plan.epsilon)
        self.lengths = self.train.clean.lengths.tolist()
        self.order = lru_cache(1)(lambda epoch: batches(self.lengths, plan.batch_size, seed=plan.seed, epoch=epoch))
        self.settings = {
            **asdict(plan),
            "betas": list(plan.betas),
            "start": prompt.hash,
            "task": discovery.provenance["fingerprint"],
            "model": self.backend.fingerprint(),
        }
        self.done, self.losses, self.best, self.best_values = 0, 0.0, Best(), self.trained.detach().clone()

    @property
    def vectors(self) -> Float[Tensor, "prompt d_model"]:
        """The prompt's vectors as they are, trained ones with their gradient."""
        return torch.cat([self.kept, self.trained])

    def to_the_end(self, folder: Path | None, watch: Watch | None) -> None:
        """All steps that are left, and the looks at validation examples between them."""
        if not self.best.dev:
            self.look(folder, watch)
        while self.done < self.plan.steps and not self.stops:
            self.step()
            if self.done % self.plan.evaluate_every == 0 or self.done == self.plan.steps:
                self.look(folder, watch)

    @property
    def stops(self) -> bool:
        """Whether patience is at its end."""
        patience = self.plan.patience
        return patience is not None and self.done - self.best.step >= patience * self.plan.evaluate_every

    def step(self) -> None:
        """Take the next step."""
        epoch, place = divmod(self.done, math.ceil(len(self.train) / self.plan.batch_size))
        for group in self.adam.param_groups:
            group["lr"] = self.plan.rate * self.plan.factor(self.done)
        part = self.train.rows(torch.tensor(self.order(epoch)[place], device=self.backend.device))
        self.adam.zero_grad()
        logits = self.logits(part)
        loss = self.objective(logits, part, logits)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([self.trained], self.plan.clip)
        if not math.isfinite(float(loss.detach())) or not math.isfinite(float(norm)):
            raise FloatingPointError(
                f"Prompt tuning needs finite numbers but step {self.done + 1} has a loss of {float(loss.detach())} and "
                f"a gradient of norm {float(norm)}. Lower the rate, or look for infinities in the model's logits."
            )
        self.adam.step()
        self.done, self.losses = self.done + 1, self.losses + float(loss.detach())

    def logits(self, part: Batch) -> Float[Tensor, "example answer vocab"]:
        """Of the model with the prompt, where its answers are read."""
        with Prompt(self.vectors).attached(self.model):
            return self.backend.logits(part.clean.trimmed(), part.positions)

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """Accuracy and cross entropy on validation examples."""
        order = torch.argsort(self.validation.clean.lengths, stable=True)
        totals = dict.fromkeys(("accuracy", "cross_entropy"), 0.0)
        for part in self.validation.rows(order).split(max(32, self.plan.batch_size)):
            logits = self.logits(part)
            for name in totals:
                totals[name] += float(self.metrics[f"word_{name}"](logits, part, logits).double().sum())
        return {name: total / len(self.validation) for name, total in totals.items()}

    def look(self, folder: Path | None, watch: Watch | None) -> None:
        """Measure on validation examples; keep the prompt if it is the best so far, and the state of the run."""
        found = self.figures()
        before = self.best.dev
        if not before or (found["accuracy"], -found["cross_entropy"]) > (before["accuracy"], -before["cross_entropy"]):
            self.best, self.best_values = Best(found["accuracy"], self.done, found), self.trained.detach().clone()
        if watch is not None:
            since = self.done % self.plan.evaluate_every or min(self.done, self.plan.evaluate_every)
            loss = self.losses / since if since else None
            watch({"step": self.done, "loss": loss, "rate": self.adam.param_groups[0]["lr"], **found})
        self.losses = 0.0
        if folder is not None:
            self.save(folder)

    def best_prompt(self) -> Prompt:
        """The best so far, with a record of how it was made."""
        vectors = torch.cat([self.kept, self.best_values]).cpu()
        record = {"made": "tuned", "from": dict(self.prompt.record), "settings": self.settings}
        record |= {"step": self.best.step, "steps": self.done, "validation": self.best.dev}
        return Prompt(vectors, self.prompt.place, self.prompt.frozen, record)

    # ---- on the disk

    def save(self, folder: Path) -> None:
        """Write everything that the run needs to go on, as one file, whole."""
        tensors = {"prompt.vectors": self.trained, "best.vectors": self.best_values}
        tensors |= moments_of(self.adam, {"vectors": self.trained})
        write_tensors(
            folder / CHECKPOINT, tensors, {"done": self.done, "best": self.best.facts(), "settings": self.settings}
        )

    @torch.no_grad()
    def resume(self, folder: Path) -> None:
        """Go on from the folder's checkpoint."""
        tensors, facts = read_own_checkpoint(folder, self.settings, what="prompt tuning", otherwise="another folder")
        self.trained.copy_(part_of(tensors, "prompt")["vectors"])
        self.best_values.copy_(part_of(tensors, "best")["vectors"])
        put_back_moments(self.adam, {"vectors": self.trained}, tensors)
        self.done, self.best = facts["done"], Best.of(facts["best"])


def prompt_length(model: Any, task: Task) -> int:
    """How many vectors the prompts of a task ask for.

    Raises:
        ValueError: none.
    """
    first = embedded_tokens(backend_of(model).embedding)
    length = int(task.discovery.train().clean.ids.max()) - first + 1
    if length < 1:
        raise ValueError(
            f"Prompt tuning needs a task with prompt tokens but {task.name!r} has none. Build it with "
            "tp.tasks.prompted(model, ..., length=16)."
        )
    return length


def words_of(*batches: Batch) -> tuple[int, ...]:
    """The tokens that stand for classes: every answer and foil of some examples.

    Raises:
        ValueError: there is one only.
    """
    found = {int(one) for batch in batches for ids in (batch.answers, batch.foils) for one in ids.flatten() if one >= 0}
    if len(found) < 2:
        raise ValueError(
            f"Telling classes apart needs examples of two but these have {len(found)}. Take more examples."
        )
    return tuple(sorted(found))
