"""Mean ablation: averages over explicit reference prompts, saved, and refused where they do not belong."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.backends.activations import FOR_EDGES, Activations, Backend, Wanted
from tlprune.backends.prompting import attached_names
from tlprune.files import check_format, read_tensors, write_tensors
from tlprune.masking.ablation import Varies
from tlprune.task import Tokens

FORMAT, VERSION = "means", 1


@dataclass(frozen=True)
class Mean:
    """Ablated activations become their mean over reference prompts; padding is not counted.

    Attributes:
        reference: prompts to average over, never the evaluated ones. ``None`` is for methods alone, which take the
            task's training prompts, corrupted.
        over: ``"positions"``: one mean for all positions; ``"examples"``: one per position, for reference and
            evaluated prompts that are aligned and unpadded.
        batch_size: reference prompts per forward pass.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> mean = Mean(planted.task.discovery.train().corrupt)
        >>> planted.circuit.on(planted.model, ablation=mean)(planted.task.test).shape == (
        ...     len(planted.task.test), 1, planted.model.cfg.d_vocab)
        True
    """

    reference: Tokens | None = None
    over: Literal["positions", "examples"] = "positions"
    batch_size: int = 64
    varies: ClassVar[Varies] = "never"

    def __post_init__(self) -> None:
        if self.over not in ("positions", "examples"):
            raise ValueError(f"Mean goes over 'positions' or 'examples' but got {self.over!r}. Choose one of these.")
        if self.over == "examples" and self.reference is not None and self.reference.attention_mask is not None:
            raise ValueError(
                "A mean per position needs aligned prompts but the reference prompts are padded. Use "
                "Mean(reference, over='positions')."
            )

    @property
    def prompts(self) -> Tokens:
        """The reference prompts."""
        if self.reference is None:
            raise ValueError(
                "Mean ablation needs reference prompts but has none. Give some that are not evaluated: "
                "tp.Mean(task.discovery.train().corrupt)."
            )
        return self.reference

    def measure(self, model: Any, *, neurons: tuple[int, ...] = ()) -> MeasuredMean:
        """The means of a model, to be saved or used again.

        Args:
            model: the model.
            neurons: layers whose MLP neurons are averaged too.
        """
        backend = backend_of(model)
        means = self.means(backend, Wanted(neurons=neurons))
        attached = attached_names(backend.embedding)
        told = {"attached": attached} if attached else {}
        return MeasuredMean(means, {**self.as_dict(), **told, "model": backend.fingerprint()})

    def replaced(
        self, backend: Backend, clean: Tokens, corrupt: Tokens | None, wanted: Wanted = FOR_EDGES
    ) -> Activations:
        _check_length(self.over, self.prompts.ids.shape[1], clean)
        return self.means(backend, wanted)

    def means(self, backend: Backend, wanted: Wanted) -> Activations:
        """Averages over the reference prompts: one batch's activations are held at a time, and sums."""
        if not len(self.prompts.ids):
            raise ValueError("A mean needs reference prompts but got none. Give at least one.")
        totals: Activations | None = None
        for rows in torch.argsort(self.prompts.lengths, stable=True).split(self.batch_size):
            tokens = self.prompts.rows(rows).trimmed().to(backend.device)
            sums = self._sums(backend.observe(tokens, wanted), tokens)
            totals = sums if totals is None else totals.with_tensors(map(torch.add, totals.tensors, sums.tensors))
        assert totals is not None
        return totals.map(lambda total: (total / self._count()).to(backend.dtype))

    def _sums(self, seen: Activations, tokens: Tokens) -> Activations:
        return seen.map(lambda value: self._sum(value, tokens))

    def _sum(self, value: Tensor, tokens: Tokens) -> Tensor:
        value = value.to(torch.promote_types(value.dtype, torch.float32))
        if self.over == "examples":
            return value.sum(0, keepdim=True)
        if tokens.attention_mask is not None:
            padding = tokens.attention_mask == 0
            # Not a product: some models compute numbers that are not finite where there is nothing to attend to.
            value = value.masked_fill(padding.reshape(*padding.shape, *(1,) * (value.dim() - 2)), 0)
        return value.sum((0, 1), keepdim=True)

    def _count(self) -> int:
        ids, mask = self.prompts.ids, self.prompts.attention_mask
        if self.over == "examples":
            return len(ids)
        return ids.numel() if mask is None else int(mask.sum())

    def as_dict(self) -> dict[str, Any]:
        count = len(self.prompts.ids)
        return {"name": "mean", "over": self.over, "reference": fingerprint(self.prompts), "prompts": count}


@dataclass(frozen=True)
class MeasuredMean:
    """Means that were measured before, with the fingerprints of the model and the prompts that they are of.

    Attributes:
        activations: the means.
        origin: what :class:`Mean` says, the model's fingerprint, and the hash of the soft prompt that was
            attached, if one was.
    """

    activations: Activations
    origin: dict[str, Any]
    varies: ClassVar[Varies] = "never"

    def replaced(
        self, backend: Backend, clean: Tokens, corrupt: Tokens | None, wanted: Wanted = FOR_EDGES
    ) -> Activations:
        self.check_model(backend)
        missing = set(wanted.neurons) - set(self.activations.neurons)
        if missing:
            raise ValueError(
                f"These means lack the neurons of layers {sorted(missing)}. Measure them with "
                f"tp.Mean(reference).measure(model, neurons={tuple(sorted(wanted.neurons))})."
            )
        if self.origin["over"] == "examples":
            _check_length("examples", self.activations.embeddings[0].shape[1], clean)
        return self.activations.with_tensors(tensor.to(backend.device) for tensor in self.activations.tensors)

    def check_model(self, backend: Backend) -> None:
        """Raise a ValueError unless the means are of this model."""
        own = backend.fingerprint()
        if own["weights"] != self.origin["model"]["weights"]:
            raise ValueError(
                f"These means are of model {self.origin['model']['name']!r} (weights "
                f"{self.origin['model']['weights']}) but the model is {own['name']!r} (weights {own['weights']}). "
                "Measure them again: tp.Mean(reference).measure(model)."
            )

    def check_reference(self, reference: Tokens) -> None:
        """Raise a ValueError unless the means are of these prompts."""
        if fingerprint(reference) != self.origin["reference"]:
            raise ValueError(
                f"These means are of other prompts (fingerprint {self.origin['reference']}) than these "
                f"({fingerprint(reference)}). Measure them again: tp.Mean(reference).measure(model)."
            )

    def save(self, path: str | Path) -> None:
        """Write the means as a safetensors file."""
        names = ("embeddings", "heads", "mlps", "streams", "sent")
        kinds = {kind: getattr(self.activations, kind) for kind in names}
        tensors = {f"{kind}.{index}": value for kind, part in kinds.items() for index, value in enumerate(part)}
        tensors |= {f"neurons.{layer}": value for layer, value in self.activations.neurons.items()}
        write_tensors(Path(path), tensors, {"format": f"tlprune-{FORMAT}", "version": VERSION, **self.origin})

    @staticmethod
    def load(path: str | Path, *, reference: Tokens | None = None) -> MeasuredMean:
        """Read means that :meth:`save` wrote.

        Args:
            path: the file.
            reference: the prompts that the means should be of, to be checked; ``None`` trusts the file.

        Raises:
            ValueError: the file is missing, cut or not of means, or they are of other prompts.
        """
        tensors, data = read_tensors(Path(path), FORMAT)
        check_format(data, Path(path), FORMAT, VERSION)
        origin = {key: value for key, value in data.items() if key not in ("format", "version")}
        means = MeasuredMean(activations_named(tensors), origin)
        if reference is not None:
            means.check_reference(reference)
        return means

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in self.origin.items() if key != "model"}


def fingerprint(tokens: Tokens) -> str:
    """A hash of every token, of what is padding, and of the sentence that each token is of."""
    digest = hashlib.sha256(str(tuple(tokens.ids.shape)).encode() + tokens.ids.cpu().numpy().tobytes())
    if tokens.attention_mask is not None:
        digest.update(tokens.attention_mask.cpu().numpy().tobytes())
    if tokens.token_types is not None:
        digest.update(b"token types" + tokens.token_types.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_length(over: str, length: int, clean: Tokens) -> None:
    if over == "examples" and clean.ids.shape[1] != length:
        raise ValueError(
            f"A mean per position needs prompts of one length but the reference has {length} tokens and the prompts "
            f"have {clean.ids.shape[1]}. Use Mean(reference, over='positions')."
        )


def activations_named(tensors: Mapping[str, Tensor]) -> Activations:
    """Activations from tensors that are called by part and place, such as ``"heads.3"``."""
    parts = [tuple(_numbered(tensors, kind).values()) for kind in ("embeddings", "heads", "mlps", "streams", "sent")]
    return Activations(*parts[:4], neurons=_numbered(tensors, "neurons"), sent=parts[4])


def _numbered(tensors: Mapping[str, Tensor], kind: str) -> dict[int, Tensor]:
    found = {int(name.partition(".")[2]): value for name, value in tensors.items() if name.startswith(f"{kind}.")}
    return dict(sorted(found.items()))
