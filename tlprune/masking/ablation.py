"""Ablations: what is sent in place of an activation that is masked out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from tlprune.backends.activations import FOR_EDGES, Activations, Backend, Wanted
from tlprune.task import Tokens

Varies = Literal["never", "per_example", "per_step"]


@runtime_checkable
class Ablation(Protocol):
    """A choice of replacement.

    Attributes:
        varies: whether replacements are the same for all prompts (``"never"``), belong to an example
            (``"per_example"``), or change as training goes on (``"per_step"``); so what may be kept between steps.
    """

    varies: ClassVar[Varies]

    def replaced(
        self, backend: Backend, clean: Tokens, corrupt: Tokens | None, wanted: Wanted = FOR_EDGES
    ) -> Activations:
        """What ablated activations become, shaped to broadcast against the run on ``clean``."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """Plain data for provenance."""
        ...


@dataclass(frozen=True)
class Resample:
    """Interchange ablation: the activation on the example's corrupted twin, position by position.

    The twin is run through the unmasked model. Clean and corrupted prompts must have equal numbers of tokens.

    Source: Geiger et al. 2021; Edge Pruning, section 3.
    """

    varies: ClassVar[Varies] = "per_example"

    def replaced(
        self, backend: Backend, clean: Tokens, corrupt: Tokens | None, wanted: Wanted = FOR_EDGES
    ) -> Activations:
        if corrupt is None:
            raise ValueError(
                "Resample ablation needs a corrupted twin for each prompt but none was given. Pass masked(clean, "
                "corrupt), or choose Zero() or Mean(reference)."
            )
        if corrupt.ids.shape != clean.ids.shape:
            raise ValueError(
                f"Resample ablation needs clean and corrupted prompts of one shape but got {tuple(clean.ids.shape)} "
                f"and {tuple(corrupt.ids.shape)}. Give each prompt a twin with as many tokens."
            )
        return backend.observe(corrupt, wanted)

    def as_dict(self) -> dict[str, Any]:
        return {"name": "resample"}


@dataclass(frozen=True)
class Zero:
    """Ablated writers send nothing. What no edge carries (attention output biases) still reaches every reader.

    A reader in front of a norm with a single writer and nothing else (layer 0's q, k and v when embeddings are merged)
    would not notice a mask value between 0 and 1, because norms undo the scale. There q, k and v are gated behind the
    norm, which agrees at 0 and 1; an MLP in this place (parallel attention and MLP) is gated by ``mask > 0``.
    """

    varies: ClassVar[Varies] = "never"

    def replaced(
        self, backend: Backend, clean: Tokens, corrupt: Tokens | None, wanted: Wanted = FOR_EDGES
    ) -> Activations:
        shape = backend.architecture
        stream = torch.zeros(1, 1, backend.d_model, dtype=backend.dtype, device=backend.device)
        heads, d_head, _ = backend.output_weight(0).shape
        return Activations(
            embeddings=(stream,) * (2 if shape.position_embedding else 1),
            heads=(stream.new_zeros(1, 1, heads, d_head),) * shape.n_layers,
            mlps=(stream,) * (shape.n_layers if shape.has_mlp else 0),
            streams=tuple(constant[None, None] for constant in backend.constants()) if wanted.streams else (),
            neurons={layer: stream.new_zeros(1, 1, 1) for layer in wanted.neurons},
        )

    def as_dict(self) -> dict[str, Any]:
        return {"name": "zero"}


@dataclass(frozen=True)
class GaussianNoise:
    """Ablated activations keep their value and get noise ``scale * N(0, 1)`` on top, one draw per prompt and number.

    A draw is shared by all positions of its prompt. It depends on the seed, the prompt's tokens and the place in the
    model alone, so it is the same however prompts are batched and padded, and whatever else is masked. For heads the
    noise is on each number in front of the output projection. Not for edges: an edge would need the noise of a writer
    whose value in this very run differs between its readers.

    Attributes:
        scale: standard deviation of the noise, in the activation's own unit.
        seed: of the noise.

    Source: Wang et al., "Finding Skill Neurons" (2022), section 4.2, with scale 0.1.
    """

    scale: float = 0.1
    seed: int = 0
    varies: ClassVar[Varies] = "per_example"

    def replaced(
        self, backend: Backend, clean: Tokens, corrupt: Tokens | None, wanted: Wanted = FOR_EDGES
    ) -> Activations:
        if wanted.streams:
            raise ValueError(
                "Gaussian noise is added to heads, MLPs and neurons, but these sites hold edges, whose readers would "
                "each need another value. Choose Resample(), Mean() or Zero() for edges."
            )
        template = Zero().replaced(backend, clean, corrupt, wanted)
        sizes = _sizes(template, backend.d_mlp)
        rows = [[self._draw(ids, place, size) for place, size in sizes.items()] for ids in _real(clean)]
        tensors = [torch.stack(parts).to(backend.device, backend.dtype) for parts in zip(*rows, strict=True)]
        return Activations(
            template.embeddings, template.heads, template.mlps, neurons=template.neurons, relative=True
        ).with_tensors(tensors)

    def _draw(self, ids: Tensor, place: str, size: tuple[int, ...]) -> Tensor:
        digest = hashlib.sha256(f"{self.seed}/{place}".encode() + ids.numpy().tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
        return self.scale * torch.randn(size, generator=generator)

    def as_dict(self) -> dict[str, Any]:
        return {"name": "gaussian_noise", "scale": self.scale, "seed": self.seed}


def _sizes(template: Activations, d_mlp: int | None) -> dict[str, tuple[int, ...]]:
    """Numbers of one prompt at each place, in the order of the tensors of activations without streams."""
    kinds = {"embeddings": template.embeddings, "heads": template.heads, "mlps": template.mlps}
    sizes = {f"{kind}.{place}": (1, *one.shape[2:]) for kind, part in kinds.items() for place, one in enumerate(part)}
    return sizes | {f"neurons.{layer}": (1, d_mlp or 0) for layer in template.neurons}


def _real(tokens: Tokens) -> list[Tensor]:
    """The ids of each prompt without padding."""
    ids = tokens.ids.cpu()
    if tokens.attention_mask is None:
        return list(ids)
    return [row[real] for row, real in zip(ids, tokens.attention_mask.cpu().bool(), strict=True)]
