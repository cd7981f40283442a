"""The norms of a TransformerBridge, computed here: at given scales, and what the norms behind attention divide by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tlprune.backends.activations import Norm, Point, Projection
from tlprune.backends.bridge_weights import Places
from tlprune.backends.calls import Hook, stored

BridgeHooks = list[tuple[str, Hook, bool]]
PARTS = {"attention_norm": "ln1", "attention_post_norm": "ln1_post", "mlp_norm": "ln2", "mlp_post_norm": "ln2_post"}


@dataclass(frozen=True)
class Norms:
    """All norms of a bridge, by the names that TransformerLens gives them.

    Attributes:
        places: where their gains and shifts are.
        kind: of each of them.
        epsilon: added to the variance or mean square.
        final: what the tensors of the last one are called.
    """

    places: Places
    kind: Norm
    epsilon: float
    final: str = "ln_final"

    def name(self, point: Point) -> str:
        """The norm whose scale is edited at a point."""
        kind, layer = point
        return f"blocks.{layer}.{PARTS[kind]}" if kind in PARTS else "ln_final"

    def settings(self, name: str) -> tuple[Norm, float, Tensor | None, Tensor | None]:
        """Kind, epsilon, gain and shift of a norm."""
        name = self.final if name == "ln_final" else name
        return self.kind, self.epsilon, self.places.exact(f"{name}.w"), self.places.exact(f"{name}.b")

    def scale(self, stream: Tensor) -> Tensor:
        """What a norm divides a stream by, ``(example, pos, 1)``; a bridge's own hook cuts its gradient."""
        exact = _exact(stream)
        centred = exact - exact.mean(-1, keepdim=True) if self.kind == "layer" else exact
        return (centred.square().mean(-1, keepdim=True) + self.epsilon).sqrt()

    def hooks(self, name: str, edit: Callable[[Tensor], Tensor]) -> BridgeHooks:
        """A norm at an edited scale. A bridge whose norm is Hugging Face's own warns of edits and cuts gradients."""
        seen: dict[str, Tensor] = {}

        def normed(_: Tensor) -> Tensor:
            stream, scale = seen["stream"], edit(seen["scale"]).expand(*seen["stream"].shape[:2], 1)
            norm = Projection((), (), *self.settings(name), scale=scale.flatten(0, 1))
            return norm.normalise(_exact(stream).flatten(0, 1)[None])[0].view(stream.shape).to(stream.dtype)

        return [
            (f"{name}.hook_in", stored(seen, "stream"), False),
            (f"{name}.hook_scale", stored(seen, "scale"), False),
            (f"{name}.hook_out", normed, True),
        ]


def _exact(stream: Tensor) -> Tensor:
    return stream.to(torch.promote_types(stream.dtype, torch.float32))
