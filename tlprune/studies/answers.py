"""The answers of one model or subnetwork to the test examples of a task: computed a batch at a time, kept in files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.circuit import Circuit
from tlprune.evaluation.bench import in_order
from tlprune.files import read_tensors, write_tensors
from tlprune.masking.ablation import Ablation
from tlprune.masking.cache import RunCache
from tlprune.masking.masked import Masked, masked_circuit
from tlprune.studies.collection import Run, path_of
from tlprune.task import Batch, Task

_KIND = "file of predictions"
_MOST_BYTES = 1 << 28  # of replacements that differ by example, so that a large test needs no more memory than a small


@dataclass(frozen=True)
class Answers:
    """What one model or subnetwork says of each example.

    Attributes:
        predicted: the most likely class, or token at each answer position, ``(example, answer)``.
        logits: of the classes, ``(example, class)``; ``None`` where tokens are predicted, of which there are too many.
    """

    predicted: Int[Tensor, "example answer"]
    logits: Float[Tensor, "example class"] | None = None


class Asking:
    """A model that is asked a task's test examples, with one set of replacements for all circuits.

    Args:
        model: a TransformerLens model.
        task: the task.
        ablation: what replaces what is removed; ``None`` for that of each circuit's discovery.
        batch_size: examples per forward pass.
    """

    def __init__(self, model: Any, task: Task, *, ablation: Ablation | None, batch_size: int) -> None:
        self.model, self.task, self.ablation, self.batch_size = model, task, ablation, batch_size
        self.backend, self.batch = backend_of(model), in_order(task.test)
        self._order = torch.argsort(self.batch.clean.lengths.cpu(), stable=True)  # so that little is padding
        self._caches: dict[str, RunCache] = {}

    def masked(self, circuit: Circuit) -> Masked:
        """The model with what the circuit lacks removed.

        Raises:
            ValueError: the circuit is of another model, or does not tell its ablation in full.
        """
        return masked_circuit(self.model, circuit, self.ablation)

    def of_model(self) -> Answers:
        """Answers of the full model."""
        return self._ask(lambda part: self.backend.logits(part.clean.trimmed(), part.positions))

    def of_subnetwork(self, masked: Masked) -> Answers:
        """Answers of a subnetwork."""
        values, cache = masked.hard_values(), self._cache(masked)
        return self._ask(lambda part: masked(part, mask=values, replaced=cache.replaced(part)))

    def _cache(self, masked: Masked) -> RunCache:
        key = f"{masked.ablation.as_dict()} {masked.wanted}"
        if key not in self._caches:
            known = {"wanted": masked.wanted, "most_bytes": _MOST_BYTES}
            self._caches[key] = RunCache(self.backend, masked.ablation, self.batch, **known)
        return self._caches[key]

    @torch.no_grad()
    def _ask(self, run: Callable[[Batch], Tensor]) -> Answers:
        found = [self._answers(run(part.to(self.backend.device))) for part in self._parts()]
        back = self._order.argsort()
        predicted = torch.cat([one.predicted for one in found])[back]
        logits = [one.logits for one in found if one.logits is not None]
        return Answers(predicted, torch.cat(logits)[back] if logits else None)

    def _parts(self) -> Any:
        return (self.batch.rows(rows) for rows in self._order.split(self.batch_size))

    def _answers(self, logits: Float[Tensor, "example answer class"]) -> Answers:
        predicted = logits.argmax(-1).cpu()
        if self.backend.predicts == "tokens":
            return Answers(predicted)
        check_classes(self.task, logits.shape[-1])
        return Answers(predicted, logits[:, 0].float().cpu())


def check_classes(task: Task, outputs: int) -> None:
    """Raise a ValueError unless a model with so many outputs has one for each class of the task."""
    accepted, answers = task.test.accepted, task.test.answers
    named = task.options.get("classes", ())
    wanted = len(named) or (int(answers.max()) + 1 if accepted is None else accepted.shape[1])
    if outputs < wanted or (outputs > wanted and (named or accepted is not None)):
        raise ValueError(
            f"Task {task.name!r} is for models with {wanted} classes{_listed(named)} but this model has {outputs}. "
            "Name the model's own in their order, classes=..., or take a task that it was fine-tuned for."
        )


def _listed(names: Any) -> str:
    return f" ({', '.join(names)})" if names else ""


@dataclass(frozen=True)
class Kept:
    """Answers with a folder that keeps them: those that are there are read, all others are computed and written.

    A file counts if it is whole and of this task, model, circuit and ablation; any other is written anew.

    Attributes:
        asking: what computes them.
        folder: the folder; ``None`` keeps nothing.
    """

    asking: Asking
    folder: Path | None

    def of_model(self) -> Answers:
        """Answers of the full model."""
        return self._kept(Path("full.safetensors"), {"circuit": None, "ablation": None}, self.asking.of_model)

    def of_subnetwork(self, run: Run, circuit: Circuit) -> Answers:
        """Answers of a subnetwork.

        Raises:
            ValueError: the circuit is of another model, or does not tell its ablation in full.
        """
        masked = self.asking.masked(circuit)
        told = {"circuit": fingerprint_of(circuit), "ablation": masked.ablation.as_dict()}
        path = path_of(Path(), run).with_suffix(".safetensors")
        return self._kept(path, told, lambda: self.asking.of_subnetwork(masked))

    def _kept(self, name: Path, told: dict[str, Any], compute: Callable[[], Answers]) -> Answers:
        if self.folder is None:
            return compute()
        task, model = self.asking.task, self.asking.backend.fingerprint()["weights"]
        path = self.folder / f"{task.name}-{task.fingerprint}" / name
        whole = {"format": "tlprune-predictions", "version": 1, "task": task.fingerprint, "model": model, **told}
        known = _read(path, whole)
        if known is not None:
            return known
        found = compute()
        _write(path, found, whole)
        return found


def _read(path: Path, told: dict[str, Any]) -> Answers | None:
    """What a file holds, if it is whole and of just this."""
    if not path.exists():
        return None
    try:
        tensors, data = read_tensors(path, _KIND)
    except ValueError:
        return None
    return Answers(**tensors) if data == json.loads(json.dumps(told)) else None


def _write(path: Path, answers: Answers, told: dict[str, Any]) -> None:
    tensors = {name: tensor for name, tensor in vars(answers).items() if tensor is not None}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, told)
    except OSError as error:
        raise ValueError(f"Cannot write to {path.parent}: {error.strerror}. Choose another folder: out=...") from None


def fingerprint_of(circuit: Circuit) -> str:
    """A hash of what a circuit keeps."""
    digest = hashlib.sha256(json.dumps(circuit.sites.as_dict(), sort_keys=True).encode())
    digest.update(circuit.kept.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
