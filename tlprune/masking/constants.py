"""Learned constants: what an ablated activation becomes is itself trained, so that ablation hurts least."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tlprune.backends import backend_of
from tlprune.backends.activations import FOR_EDGES, Activations, Backend, Wanted
from tlprune.files import check_format, read_tensors, write_tensors
from tlprune.masking.ablation import Varies
from tlprune.masking.means import Mean, MeasuredMean, activations_named
from tlprune.task import Tokens

FORMAT, VERSION = "constants", 1


class Constant(nn.Module):
    """Ablated activations become constants that are trained with the masks ("optimal ablation").

    There is one vector per embedding, head (in front of the output projection), MLP and, where asked for, layer of
    neurons; the same for all prompts and positions. Where a norm stands behind attention, edges have a vector per head
    of their own (``sent``), behind the norm's division. They start at the mean over reference prompts.

    A method that trains masks trains them along, in place; :func:`~tlprune.fit_constant` trains them for a circuit that
    is finished. Circuits do not hold them: save both. The provenance of a circuit found with them has the hash of the
    values that they ended at, ``circuit.provenance["ablation"]["values"]``, which is :attr:`values_hash`.

    Args:
        model: the model.
        start: reference prompts, or means of this model measured before.
        neurons: layers whose MLP neurons have constants.

    Raises:
        ValueError: the means are of another model, differ by position, or lack neurons.

    Source: Li and Janson, "Optimal ablation for interpretability" (NeurIPS 2024).

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> constant = Constant(planted.model, tp.Mean(planted.task.discovery.train().corrupt))
        >>> sorted({name.partition(".")[0] for name, _ in constant.named_parameters()})
        ['embeddings', 'heads', 'mlps']
    """

    varies: ClassVar[Varies] = "per_step"

    def __init__(self, model: Any, start: Mean | MeasuredMean, *, neurons: tuple[int, ...] = ()) -> None:
        super().__init__()
        if isinstance(start, Mean):
            start = start.measure(model, neurons=neurons)
        start.check_model(backend_of(model))
        if start.origin["over"] != "positions":
            raise ValueError(
                "Learned constants are the same at all positions. Start at Mean(reference) over positions."
            )
        if set(neurons) - set(start.activations.neurons):
            raise ValueError(f"The means to start from lack neurons of layers {neurons}. Measure them with neurons=.")
        means, self.origin, self.model = start.activations, start.as_dict(), dict(start.origin["model"])
        self.embeddings = nn.ParameterList(means.embeddings)
        self.heads = nn.ParameterList(means.heads)
        self.mlps = nn.ParameterList(means.mlps)
        self.sent = nn.ParameterList(means.sent)
        self.neurons = nn.ParameterDict({str(layer): means.neurons[layer] for layer in neurons})

    def replaced(
        self, backend: Backend, clean: Tokens, corrupt: Tokens | None, wanted: Wanted = FOR_EDGES
    ) -> Activations:
        self._check_shape(backend)
        missing = [layer for layer in wanted.neurons if str(layer) not in self.neurons]
        if missing:
            raise ValueError(f"These constants lack the neurons of layers {missing}. Build them with neurons=(...).")
        streams = tuple(self._streams(backend)) if wanted.streams else ()
        neurons = {layer: self.neurons[str(layer)] for layer in wanted.neurons}
        return Activations(
            tuple(self.embeddings), tuple(self.heads), tuple(self.mlps), streams, neurons, sent=tuple(self.sent)
        )

    def _streams(self, backend: Backend) -> Iterator[Float[Tensor, "1 1 d_model"]]:
        """What each set of readers receives with every edge ablated: constants before it, and what no edge carries."""
        shape, carried = backend.architecture, iter(backend.constants())
        if shape.post_norm:
            return
        # No stack of the embeddings: their gradients would be views of one tensor, into which a second backward adds.
        total, heads = sum(self.embeddings), self.sent or self.heads
        for layer in range(shape.n_layers):
            yield total + next(carried)
            attention = torch.einsum("bphe,hed->bpd", heads[layer], backend.output_weight(layer).detach())
            if shape.has_mlp:
                yield total + (0 if shape.parallel else attention) + next(carried)
                attention = attention + self.mlps[layer]
            total = total + attention
        yield total + next(carried)

    def _check_shape(self, backend: Backend) -> None:
        n_layers, (n_heads, d_head, d_model) = backend.architecture.n_layers, backend.output_weight(0).shape
        own = (len(self.heads), *self.heads[0].shape[2:], self.embeddings[0].shape[-1])
        if own != (n_layers, n_heads, d_head, d_model):
            raise ValueError(
                f"These constants are of {self.model['name']!r}, which has {own[0]} layers of {own[1]} heads of width "
                f"{own[2]} and streams of width {own[3]}, but this model has {n_layers}, {n_heads}, {d_head} and "
                f"{d_model}. Give it constants of its own: tp.Constant(model, tp.Mean(reference))."
            )

    # ---- keeping them

    @property
    def values_hash(self) -> str:
        """Sixteen hexadecimal digits that tell these values from others."""
        digest = hashlib.sha256()
        for name, value in self.named_parameters():
            digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write the values as a safetensors file, with their hash, their start and the model that they are of."""
        about = {"start": self.origin, "model": self.model, "values": self.values_hash}
        tensors = {name: value.detach() for name, value in self.named_parameters()}
        write_tensors(Path(path), tensors, {"format": f"tlprune-{FORMAT}", "version": VERSION, **about})

    @staticmethod
    def load(path: str | Path, model: Any) -> Constant:
        """Read constants that :meth:`save` wrote.

        Args:
            path: the file.
            model: that they are of.

        Raises:
            ValueError: the file is missing, cut, edited or not of constants, or they are of another model.
        """
        tensors, data = read_tensors(Path(path), FORMAT)
        check_format(data, Path(path), FORMAT, VERSION)
        backend = backend_of(model)
        known, own = data["model"], backend.fingerprint()
        if own["weights"] != known["weights"]:
            raise ValueError(
                f"The constants in {path} are of model {known['name']!r} (weights {known['weights']}) but the model is "
                f"{own['name']!r} (weights {own['weights']}). Give the model that they are of."
            )
        values = activations_named(tensors)
        start = MeasuredMean(values, {**data["start"], "model": known})
        constant = Constant(model, start, neurons=tuple(values.neurons)).to(backend.device)
        if constant.values_hash != data["values"]:
            raise ValueError(f"{path} promises other values than it holds. The file was edited: save it again.")
        return constant

    def as_dict(self) -> dict[str, Any]:
        return {"name": "constant", "start": self.origin, "values": self.values_hash}
