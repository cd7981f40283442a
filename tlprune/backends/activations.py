"""What the edge engine exchanges with a model, in names that no library owns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from tlprune.backends.linear_maps import Change, LinearMap, Read
from tlprune.graph import Architecture, Convention
from tlprune.sites import Matrix
from tlprune.task import Tokens

Norm = Literal["layer", "rms", "none"]
# By the name that TransformerLens gives them; those ending in Pre have their weights folded into what reads them.
NORMS: dict[str | None, Norm] = {"LN": "layer", "LNPre": "layer", "RMS": "rms", "RMSPre": "rms", None: "none"}
# Largest error between two ways to run a model of 12 layers that rounding explains, relative to the largest number.
ROUNDING = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 0.2, torch.float16: 0.05}
# Where a run can be edited: ("input" | "embed" | "pos_embed", 0); ("heads" | "mlp" | "neurons", layer); what the
# activation function of an MLP acts on, of a gated one the gate, ("preactivations", layer); and what norms
# divide by: ("attention_norm" | "mlp_norm", layer), ("final_norm", 0), and, where what attention and MLP wrote is
# normalised before it is added, ("attention_post_norm" | "mlp_post_norm", layer). A norm's edit gives a scale for all
# positions.
Point = tuple[str, int]
Edits = Mapping[Point, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Wanted:
    """Which activations of a run are needed beside what its writers wrote.

    Attributes:
        streams: the residual stream at each set of readers, and what heads send into it; edges need them.
        neurons: layers whose MLP neurons are needed.
    """

    streams: bool = True
    neurons: tuple[int, ...] = ()


FOR_EDGES = Wanted()


@dataclass(frozen=True)
class Activations:
    """Everything that a run's writers wrote, stored small: head outputs as ``z``, before the output projection.

    Each tensor has leading axes ``(example, pos)``, or 1 in place of either for a value that does not vary there.

    Attributes:
        embeddings: token embedding and, where it is learned, position embedding.
        heads: ``z`` of each block, ``(example, pos, head, d_head)``.
        mlps: MLP output of each block, ``(example, pos, d_model)``; empty for attention-only models.
        streams: the residual stream at each set of readers in graph order, ``(example, pos, d_model)``; empty where
            nobody asked for them, and in post-norm models, whose streams are no sums.
        neurons: MLP activations behind activation function and gate, ``(example, pos, d_mlp)``, by layer.
        relative: the numbers are what is *added* to an ablated activation, instead of what replaces it.
        sent: ``z / s`` of each block, where a norm behind attention divides the sum of its heads by ``s``; so a head
            sends ``sent @ output_weight`` into the residual stream. Empty without such norms: ``z`` is what is sent.
    """

    embeddings: tuple[Float[Tensor, "example pos d_model"], ...]
    heads: tuple[Float[Tensor, "example pos head d_head"], ...]
    mlps: tuple[Float[Tensor, "example pos d_model"], ...]
    streams: tuple[Float[Tensor, "example pos d_model"], ...] = ()
    neurons: Mapping[int, Float[Tensor, "example pos d_mlp"]] = field(default_factory=dict)
    relative: bool = False
    sent: tuple[Float[Tensor, "example pos head d_head"], ...] = ()

    def map(self, function: Callable[[Tensor], Tensor]) -> Activations:
        """Apply a function to every tensor."""
        return self.with_tensors(map(function, self.tensors))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.embeddings, *self.heads, *self.mlps, *self.streams, *self.neurons.values(), *self.sent)

    @property
    def outgoing(self) -> tuple[Float[Tensor, "example pos head d_head"], ...]:
        """What heads send, in front of the backend's ``output_weight``."""
        return self.sent or self.heads

    def with_tensors(self, tensors: Iterable[Tensor]) -> Activations:
        """Other tensors in the places of these, in the order of :attr:`tensors`."""
        rest = iter(tensors)
        parts = [tuple(next(rest) for _ in part) for part in (self.embeddings, self.heads, self.mlps, self.streams)]
        neurons = {layer: next(rest) for layer in self.neurons}
        sent = tuple(next(rest) for _ in self.sent)
        return Activations(*parts, neurons=neurons, relative=self.relative, sent=sent)


@dataclass(frozen=True)
class Projection:
    """From the readers' mixed inputs to q, k and v: ``norm(x) @ weight + bias`` with the model's own tensors.

    Attributes:
        weights: ``W_Q``, ``W_K``, ``W_V`` of one block, each ``(head, d_model, d_head)``.
        biases: theirs, each ``(head, d_head)``.
        norm: kind of normalisation.
        epsilon: added to the variance or mean square.
        gain: the norm's weight, if it has one.
        shift: the norm's bias, if it has one.
        scale: what the norm divides by, if not what it finds in its input, ``(token, 1)``.
    """

    weights: tuple[Float[Tensor, "_ d_model d_head"], ...]
    biases: tuple[Float[Tensor, "_ d_head"], ...]
    norm: Norm
    epsilon: float
    gain: Float[Tensor, "d_model"] | None = None
    shift: Float[Tensor, "d_model"] | None = None
    scale: Float[Tensor, "token 1"] | None = None

    @property
    def splits(self) -> list[int]:
        """Numbers of q, k and v readers."""
        return [len(weight) for weight in self.weights]

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Everything that may be trained."""
        return (*self.weights, *self.biases, self.gain, self.shift)

    def normalise(self, mixed: Float[Tensor, "reader token d_model"]) -> Float[Tensor, "reader token d_model"]:
        """The norm alone, in the precision of its input."""
        gain, shift = (None if tensor is None else tensor.to(mixed.dtype) for tensor in (self.gain, self.shift))
        if self.scale is not None:
            centred = mixed - mixed.mean(-1, keepdim=True) if self.norm == "layer" else mixed
            scaled = centred / self.scale.to(mixed.dtype)
            scaled = scaled if gain is None else scaled * gain
            return scaled if shift is None else scaled + shift
        if self.norm == "layer":
            return F.layer_norm(mixed, mixed.shape[-1:], gain, shift, self.epsilon)
        if self.norm == "rms":
            scaled = mixed * torch.rsqrt(mixed.square().mean(-1, keepdim=True) + self.epsilon)
            return scaled if gain is None else scaled * gain
        return mixed

    def __call__(
        self, mixed: Float[Tensor, "stream token d_model"], of: Int[Tensor, "reader"] | None = None
    ) -> tuple[Float[Tensor, "_ token d_head"], ...]:
        """q, k and v of every reader; ``of`` says which stream each of them sees, by default its own."""
        normed = self.normalise(mixed).to(self.weights[0].dtype)
        seen = (normed if of is None else normed[of]).split(self.splits)
        parts = zip(self.biases, seen, self.weights, strict=True)
        return tuple(torch.baddbmm(bias[:, None], part, weight) for bias, part, weight in parts)


@runtime_checkable
class Steering(Protocol):
    """What a backend calls, in order, during a steered run. The engine is one."""

    def embedding(self, index: int, value: Float[Tensor, "example pos d_model"]) -> None: ...

    def attention(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of a block, each ``(example, pos, head, d_head)``."""
        ...

    def heads(self, layer: int, z: Float[Tensor, "example pos head d_head"]) -> None:
        """What heads send, in front of the backend's ``output_weight``."""
        ...

    def mlp_input(self, layer: int) -> Float[Tensor, "example pos d_model"]: ...

    def mlp(self, layer: int, output: Float[Tensor, "example pos d_model"]) -> None: ...

    def final(self) -> Float[Tensor, "example pos d_model"]:
        """The residual stream that the logits read."""
        ...


@runtime_checkable
class Backend(Protocol):
    """One kind of model: where its activations are and how to steer them.

    Attributes:
        model: the model, lent.
        architecture: what of it decides its graph.
        d_model: width of its residual stream.
        predicts: ``"tokens"``: logits are over the vocabulary, at positions; ``"prompts"``: one row of class logits per
            prompt, ``(example, 1, class)``, whatever ``positions`` are asked for.
        coupled: a norm behind attention divides the sum of a block's heads (Gemma 2), so that each moves the others.
    """

    model: Any
    architecture: Architecture
    d_model: int
    predicts: Literal["tokens", "prompts"]
    coupled: bool

    @property
    def d_mlp(self) -> int:
        """Neurons per MLP."""
        ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def precision(self) -> torch.dtype:
        """The type of the least exact step; some models norm in float32, whatever the type of their weights."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def embedding(self) -> Module:
        """The module that makes vectors of token ids, in front of everything else."""
        ...

    def observe(self, tokens: Tokens, wanted: Wanted = FOR_EDGES) -> Activations:
        """Run the plain model without gradients and return what its writers wrote."""
        ...

    def run(self, tokens: Tokens, edits: Edits, positions: Int[Tensor, "example answer"] | None) -> Tensor:
        """Run the model with activations edited on the way; logits at ``positions``."""
        ...

    def logits(self, tokens: Tokens, positions: Int[Tensor, "example answer"] | None) -> Tensor:
        """Logits of the plain model at ``positions``, or at all when ``None``."""
        ...

    def final(self, tokens: Tokens, edits: Edits, positions: Int[Tensor, "example answer"] | None) -> Tensor:
        """The last residual stream, in front of norm and unembedding, of a run with activations edited on the way.

        ``(example, answer, d_model)``, at ``positions`` or at all. Only of models that predict tokens.
        """
        ...

    def unembed(self, stream: Float[Tensor, "example answer d_model"]) -> Float[Tensor, "example answer vocab"]:
        """Logits of the plain model from its last residual stream."""
        ...

    def edited(self, edits: Edits, positions: Int[Tensor, "example answer"] | None = None) -> Any:
        """A context in which every run of the model is edited; it gives the set of points met so far."""
        ...

    def steered(
        self,
        steering: Steering,
        convention: Convention,
        edits: Edits,
        positions: Int[Tensor, "example answer"] | None = None,
    ) -> Any:
        """A context in which every run of the model is steered; it gives the set of edited points met so far."""
        ...

    def norm_scales(self, tokens: Tokens) -> dict[Point, Tensor]:
        """What each norm of the plain model divides by, ``(example, pos, 1)``; empty for models without norms."""
        ...

    def steer(
        self,
        tokens: Tokens,
        steering: Steering,
        convention: Convention,
        positions: Int[Tensor, "example answer"] | None,
        edits: Edits,
    ) -> Tensor:
        """Run the model with every reader's input taken from ``steering``; logits at ``positions``.

        Writers are edited before they are told to ``steering``.
        """
        ...

    def resume(
        self,
        tokens: Tokens,
        steering: Steering,
        convention: Convention,
        positions: Int[Tensor, "example answer"],
        layers: Sequence[int],
    ) -> Tensor:
        """Logits of a run of which ``steering`` knows all but some blocks; these are met in order, others perhaps.

        ``steering.final()`` gives the stream at ``positions`` alone.
        """
        ...

    def is_hooked(self) -> bool:
        """Whether there are hooks of somebody else's on the model."""
        ...

    def matrices(self) -> list[Matrix]:
        """Names and shapes of :meth:`parameters`, seen as matrices."""
        ...

    def parameters(self) -> dict[str, Tensor]:
        """Every weight tensor and bias, by the name that TransformerLens shows."""
        ...

    def held(self) -> dict[str, Tensor]:
        """Those of :meth:`parameters` that the model holds, each once, as it holds them.

        Left out are biases that a kind of model lacks, and further names of tied tensors.
        """
        ...

    def with_weights(self, changed: Mapping[str, Callable[[Tensor], Tensor]], run: Callable[[], Tensor]) -> Tensor:
        """``run()`` while some weights are replaced by functions of them."""
        ...

    def installed_weights(self, changed: Mapping[str, Callable[[Tensor], Tensor]]) -> Any:
        """A context in which some weights are replaced by functions of them, whatever runs the model."""
        ...

    def linear_maps(self) -> list[LinearMap]:
        """Every linear map of the blocks, and the pooler's; those of a head and of embeddings are left out."""
        ...

    def mapped(self, *, read: Read | None = None, change: Change | None = None) -> Any:
        """A context in which runs tell what linear maps read and change what they give."""
        ...

    def projection(self, layer: int, convention: Convention) -> Projection: ...

    def output_weight(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """From what heads send to the residual stream: ``W_O``, times the gain of a norm behind attention."""
        ...

    def head_points(self) -> list[Module]:
        """For each layer the module whose input is the output of its heads, ``(example, pos, ...)``."""
        ...

    def mlp_modules(self, layer: int) -> list[Module]:
        """From what an MLP reads of the residual stream to what it writes there: modules to be run in this order.

        Empty for post-norm models.
        """
        ...

    def constants(self) -> list[Float[Tensor, "d_model"]]:
        """What no edge carries: for each set of readers the sum of attention output biases before it.

        Empty for post-norm models.
        """
        ...

    def gate_bias(self, layer: int) -> Tensor | None:
        """What is added to an MLP's gated activations behind the product; ``None`` where it has no gate."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Plain data that tells this model from others."""
        ...


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The type that automatic casts give to products on a device, where they hold."""
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def select(stream: Float[Tensor, "example pos d_model"], positions: Tensor | None) -> Tensor:
    """Rows of a stream at each example's answer positions, ``(example, answer, d_model)``."""
    if positions is None:
        return stream
    return stream[torch.arange(len(stream), device=stream.device)[:, None], positions.to(stream.device)]
