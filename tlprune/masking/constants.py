"""Learned constants: what an ablated activation becomes is itself trained, so that ablation hurts least."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tlprune.backends.activations import FOR_EDGES, Activations, Backend, Wanted
from tlprune.masking.ablation import Varies
from tlprune.masking.means import Mean, MeasuredMean
from tlprune.task import Tokens


class Constant(nn.Module):
    """Ablated activations become constants that are trained with the masks ("optimal ablation").

    There is one vector per embedding, head (in front of the output projection), MLP and, where asked for, layer of
    neurons; the same for all prompts and positions. Where a norm stands behind attention, edges have a vector per head
    of their own (``sent``), behind the norm's division. They start at the mean over reference prompts.

    Args:
        model: the model.
        start: reference prompts, or means measured before.
        neurons: layers whose MLP neurons have constants.

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
        if start.origin["over"] != "positions":
            raise ValueError(
                "Learned constants are the same at all positions. Start at Mean(reference) over positions."
            )
        if set(neurons) - set(start.activations.neurons):
            raise ValueError(f"The means to start from lack neurons of layers {neurons}. Measure them with neurons=.")
        means, self.origin = start.activations, start.as_dict()
        self.embeddings = nn.ParameterList(means.embeddings)
        self.heads = nn.ParameterList(means.heads)
        self.mlps = nn.ParameterList(means.mlps)
        self.sent = nn.ParameterList(means.sent)
        self.neurons = nn.ParameterDict({str(layer): means.neurons[layer] for layer in neurons})

    def replaced(
        self, backend: Backend, clean: Tokens, corrupt: Tokens | None, wanted: Wanted = FOR_EDGES
    ) -> Activations:
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
        total, heads = torch.stack(list(self.embeddings)).sum(0), self.sent or self.heads
        for layer in range(shape.n_layers):
            yield total + next(carried)
            attention = torch.einsum("bphe,hed->bpd", heads[layer], backend.output_weight(layer).detach())
            if shape.has_mlp:
                yield total + (0 if shape.parallel else attention) + next(carried)
                attention = attention + self.mlps[layer]
            total = total + attention
        yield total + next(carried)

    def as_dict(self) -> dict[str, Any]:
        return {"name": "constant", "start": self.origin}
