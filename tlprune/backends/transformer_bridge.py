"""TransformerBridge: a Hugging Face decoder behind TransformerLens' names, on TransformerLens 3 and 4."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tlprune.backends.activations import (
    FOR_EDGES,
    NORMS,
    Activations,
    Edits,
    Point,
    Projection,
    Steering,
    Wanted,
    select,
)
from tlprune.backends.bridge_norms import BridgeHooks, Norms
from tlprune.backends.bridge_support import grouping, refuse_flags, refuse_unsupported
from tlprune.backends.bridge_weights import Places
from tlprune.backends.calls import (
    AttentionReads,
    Hook,
    Runs,
    WeightCall,
    Writes,
    check_met,
    edit_at,
    frozen,
    hooked,
    input_axes,
    passed,
    refuse_normed_biases,
    sent,
    stored,
    weights_hash,
)
from tlprune.backends.linear_maps import Change, LinearMap, Read, Spot, watched
from tlprune.graph import Architecture, Convention
from tlprune.sites import Matrix
from tlprune.task import Tokens

# Between steered readers the residual stream carries nothing, so these points would show a user's hook a stub.
UNUSED = ("hook_in", "hook_out", "hook_mlp_in", "ln1.", "ln1_post.", "attn.hook_in", "attn.hook_out")
UNUSED += ("attn.hook_hidden_states",)
UNUSED_PARTS = ("attn.q.hook_in", "attn.k.hook_in", "attn.v.hook_in", "attn.o.hook_out", "attn.hook_result")


class TransformerBridgeBackend(Runs):
    """Reads and steers a TransformerBridge through its HookPoints, for the length of one call.

    Everything is in TransformerLens' names and layouts, so sites, circuits and fingerprints are those of the
    HookedTransformer of the same checkpoint with no weight folded; so is what heads send where a norm is behind
    attention (Gemma 2).

    Args:
        model: the model; nothing of it is changed afterwards.

    Raises:
        ValueError: its blocks do not simply add to one stream (an encoder, a mixture of experts, norms behind attention
            and MLP alone, or behind attention and its output bias, MLA, a state-space model, scaled residuals), it is
            in compatibility mode, or it drops out.
    """

    # Within a block: what its MLP alone reads, what the MLP writes, and what is not there in a steered run.
    mlp_input, mlp_output, unused = "ln2.hook_in", "mlp.hook_out", UNUSED
    final_norm = "ln_final"  # what the tensors of the last norm are called

    def __init__(self, model: Any) -> None:
        refuse_unsupported(model)
        self._lend(model, Places(model), predicts="tokens")

    def _lend(self, model: Any, places: Places, *, predicts: Literal["tokens", "prompts"]) -> None:
        self.model, self.places = model, places
        self.architecture = Architecture.of(model.cfg)
        self.d_model: int = model.cfg.d_model
        self.predicts: Literal["tokens", "prompts"] = predicts
        kind = NORMS[model.cfg.normalization_type]
        self.norms = Norms(places, kind, model.cfg.eps, self.final_norm)
        self.coupled = "ln1_post" in model.blocks[0]._modules
        if self.coupled:
            self.mlp_output = "ln2_post.hook_out"
            refuse_normed_biases(model, [places[f"blocks.{layer}.attn.b_O"] for layer in self._layers])

    @property
    def _layers(self) -> range:
        return range(self.architecture.n_layers)

    @property
    def _gated(self) -> bool:
        return bool(getattr(self.model.cfg, "gated_mlp", False))

    @property
    def d_mlp(self) -> int:
        return self.model.cfg.d_mlp

    @property
    def dtype(self) -> torch.dtype:
        return self.places.like.dtype

    @property
    def precision(self) -> torch.dtype:
        rms = self.model.cfg.normalization_type == "RMS"  # Hugging Face computes it in float32
        return torch.float32 if rms and self.dtype == torch.float64 else self.dtype

    @property
    def device(self) -> torch.device:
        return self.places.like.device

    @property
    def embedding(self) -> nn.Module:
        return self.model.embed.original_component

    # ---- plain runs

    @torch.no_grad()
    def observe(self, tokens: Tokens, wanted: Wanted = FOR_EDGES) -> Activations:
        seen, has_mlp = self._seen(tokens, self._observed(wanted)), self.architecture.has_mlp
        z = tuple(self._by_head(seen[f"blocks.{layer}.attn.o.hook_in"]) for layer in self._layers)
        scales = [self.norms.scale(seen[name]) for name in self._normed_heads(wanted)]
        return Activations(
            embeddings=tuple(seen[name] for name in self._embedding_points()),
            heads=z,
            mlps=tuple(seen[f"blocks.{layer}.{self.mlp_output}"] for layer in self._layers if has_mlp),
            streams=tuple(seen[name] for name in self._streams()) if wanted.streams else (),
            neurons={layer: seen[f"blocks.{layer}.mlp.out.hook_in"] for layer in wanted.neurons},
            sent=tuple(map(sent, z, scales)) if scales else (),
        )

    @torch.no_grad()
    def norm_scales(self, tokens: Tokens) -> dict[Point, Tensor]:
        if self.norms.kind == "none":
            return {}
        points = self._norm_points()
        names = [f"{self.norms.name(point)}.hook_scale" for point in points]
        seen = self._seen(tokens, names)
        return {point: seen[name] for point, name in zip(points, names, strict=True)}

    def _norm_points(self) -> list[Point]:
        kinds = ["attention_norm", *["mlp_norm"] * self.architecture.has_mlp]
        kinds += [kind.replace("norm", "post_norm") for kind in kinds] if self.coupled else []
        return [(kind, layer) for layer in self._layers for kind in kinds] + [("final_norm", 0)]

    def final(self, tokens: Tokens, edits: Edits, positions: Tensor | None) -> Tensor:
        seen: dict[str, Tensor] = {}
        hooks: BridgeHooks = [(self._last_point(), stored(seen, "last"), False)]
        hooks += self._unembedded(lambda stream: stream[:, :1])
        with self.edited(edits) as met, hooked(self.model.hook_dict, hooks):
            self._forward(tokens)
        check_met(edits, met)
        return select(seen["last"], positions)

    def unembed(self, stream: Tensor) -> Tensor:
        with frozen(self.model):
            logits = self.model.unembed(self.model.ln_final(stream))
        config = getattr(self.model.original_model, "config", None)  # TransformerLens' own models have none
        own = getattr(config, "final_logit_softcapping", None)
        cap = own or getattr(self.model.cfg, "output_logits_soft_cap", None) or 0
        return cap * torch.tanh(logits / cap) if cap > 0 else logits

    @contextmanager
    def edited(self, edits: Edits, positions: Tensor | None = None) -> Iterator[set[Point]]:
        met: set[Point] = set()
        hooks = [hook for point in edits for hook in self._edit(edits, point, met)]
        hooks += self._unembedded(lambda stream: select(stream, positions))
        with hooked(self.model.hook_dict, hooks), frozen(self.model):
            yield met

    def _edit(self, edits: Edits, point: Point, met: set[Point]) -> BridgeHooks:
        """The hooks that edit one activation."""
        (kind, layer), edit = point, edit_at(edits, point, met)
        if kind.endswith("_norm"):
            return self.norms.hooks(self.norms.name(point), edit)
        if kind == "heads":
            return [(f"blocks.{layer}.attn.o.hook_in", lambda z: edit(self._by_head(z)).flatten(2), False)]
        name = {"input": "blocks.0.hook_in", "embed": "embed.hook_out", "pos_embed": "pos_embed.hook_out"}.get(kind)
        names = {"mlp": f"blocks.{layer}.{self.mlp_output}", "neurons": f"blocks.{layer}.mlp.out.hook_in"}
        names["preactivations"] = f"blocks.{layer}.mlp.{'gate' if self._gated else 'in'}.hook_out"
        return [(name or names[kind], edit, False)]

    def head_points(self) -> list[nn.Module]:
        layers = range(self.architecture.n_layers)
        return [self.model.hook_dict[f"blocks.{layer}.attn.o.hook_in"] for layer in layers]

    def _forward(self, tokens: Tokens) -> Tensor:
        return self.model(self._ids(tokens), attention_mask=tokens.attention_mask, use_cache=False)

    def _seen(self, tokens: Tokens, names: list[str]) -> dict[str, Tensor]:
        """What some points see in a plain run; logits are computed at the first position only."""
        seen: dict[str, Tensor] = {}
        hooks: BridgeHooks = [(name, stored(seen, name), False) for name in names]
        hooks += self._unembedded(lambda stream: stream[:, :1])
        with hooked(self.model.hook_dict, hooks):
            self._forward(tokens)
        return seen

    def _unembedded(self, choose: Hook) -> BridgeHooks:
        """Unembeds some positions only. Norms see all, because some models restore a shape behind the last one."""
        return [("unembed.hook_in", choose, True)]

    def _last_point(self) -> str:
        """Where the last residual stream is seen, in front of its norm."""
        return "ln_final.hook_in"

    def _by_head(self, z: Tensor) -> Tensor:
        return z.unflatten(-1, (self.architecture.n_heads, -1))

    def _embedding_points(self) -> list[str]:
        return ["embed.hook_out", "pos_embed.hook_out"] if self.architecture.position_embedding else ["embed.hook_out"]

    def _streams(self) -> list[str]:
        """The residual-stream point that each set of readers reads in the plain model."""
        middle = "hook_in" if self.architecture.parallel else "ln2.hook_in"
        points = ["hook_in", middle] if self.architecture.has_mlp else ["hook_in"]
        return [*(f"blocks.{layer}.{point}" for layer in self._layers for point in points), self._last_point()]

    def _normed_heads(self, wanted: Wanted) -> list[str]:
        """The sums of heads that a norm divides, if there are any and edges need to know."""
        return [f"blocks.{layer}.ln1_post.hook_in" for layer in self._layers if self.coupled and wanted.streams]

    def _observed(self, wanted: Wanted) -> list[str]:
        outputs = ["attn.o.hook_in", self.mlp_output] if self.architecture.has_mlp else ["attn.o.hook_in"]
        points = [f"blocks.{layer}.{point}" for layer in self._layers for point in outputs]
        points += [f"blocks.{layer}.mlp.out.hook_in" for layer in wanted.neurons] + self._normed_heads(wanted)
        return [*self._embedding_points(), *points, *dict.fromkeys(self._streams() if wanted.streams else [])]

    # ---- steered runs

    @contextmanager
    def steered(
        self, steering: Steering, convention: Convention, edits: Edits, positions: Tensor | None = None
    ) -> Iterator[set[Point]]:
        refuse_flags(self.model.cfg)
        self._refuse_hidden_hooks()
        met: set[Point] = set()
        hooks = [*self._embedding_hooks(steering, convention, edits, met), *self._block_hooks(steering, edits, met)]
        hooks.append((self._last_point(), lambda _: steering.final(), True))
        for point in edits:
            if point[0] in ("mlp_norm", "mlp_post_norm", "final_norm"):
                hooks += self._edit(edits, point, met)
        hooks += self._unembedded(lambda stream: select(stream, positions))
        with hooked(self.model.hook_dict, hooks), self._ungrouped(convention), frozen(self.model):
            yield met

    def _embedding_hooks(
        self, steering: Steering, convention: Convention, edits: Edits, met: set[Point]
    ) -> BridgeHooks:
        if convention.embeddings != "separate":
            edit = edit_at(edits, ("input", 0), met)
            return [("blocks.0.hook_in", lambda value: steering.embedding(0, edit(value)), True)]
        result: BridgeHooks = []
        for index, (point, kind) in enumerate(zip(self._embedding_points(), ("embed", "pos_embed"), strict=False)):
            edit = edit_at(edits, (kind, 0), met)
            result.append((point, lambda x, index=index, edit=edit: steering.embedding(index, edit(x)), False))
        return result

    def _block_hooks(self, steering: Steering, edits: Edits, met: set[Point]) -> Iterator[tuple[str, Hook, bool]]:
        """The stream between readers is zero, at full size, because Hugging Face takes shapes from it.

        Its projections are of one token, so what this costs is a few additions and one norm per block.
        """
        stub = torch.zeros(1, 1, self.d_model, dtype=self.dtype, device=self.device)
        for layer in self._layers:
            block, reads = f"blocks.{layer}.", AttentionReads(steering, layer)
            writes = Writes(steering, layer, edits, met)
            yield f"{block}hook_in", stub.expand_as, False
            for index, part in enumerate("qkv"):
                yield f"{block}attn.{part}.hook_in", lambda _: stub, False
                take = lambda _, index=index, reads=reads: reads.take(index).flatten(2)  # noqa: E731
                yield f"{block}attn.{part}.hook_out", take, True
            yield from self._head_hooks(block, writes, stub)
            if self.architecture.has_mlp:
                yield f"{block}{self.mlp_input}", lambda _, layer=layer: steering.mlp_input(layer), True
                yield f"{block}{self.mlp_output}", lambda out, writes=writes: passed(writes.mlp(out), stub), False
            for point in {("preactivations", layer), ("neurons", layer)} & edits.keys():
                yield from self._edit(edits, point, met)

    def _head_hooks(self, block: str, writes: Writes, stub: Tensor) -> BridgeHooks:
        """Tell what heads send: at once, or when the norm behind them has told what it divides their sum by."""
        if not self.coupled:
            return [(f"{block}attn.o.hook_in", lambda z: passed(writes.heads(self._by_head(z)), z[:1, :1]), False)]
        return [
            (f"{block}attn.o.hook_in", lambda z: writes.before_norm(self._by_head(z)).flatten(2), False),
            (f"{block}ln1_post.hook_in", lambda total: passed(writes.at_norm(self.norms.scale(total)), stub), False),
        ]

    def _refuse_hidden_hooks(self) -> None:
        for name, point in self.model.hook_dict.items():
            inside = name.partition("blocks.")[2].partition(".")[2]
            if inside.startswith(self.unused + UNUSED_PARTS) and (point.fwd_hooks or point.bwd_hooks):
                raise ValueError(
                    f"Edge masks give each reader a residual stream of its own, so {name} holds no activation, but "
                    f"a hook of yours is on it. Hook a reader or writer instead (attn.q.hook_out, "
                    f"{self.mlp_input}, attn.o.hook_in, {self.mlp_output}), or remove it with model.reset_hooks()."
                )

    @contextmanager
    def _ungrouped(self, convention: Convention) -> Iterator[None]:
        """Keys and values come for each query head, where the convention asks for it."""
        grouped = self.architecture.n_kv_heads < self.architecture.n_heads and convention.ungrouped
        attentions = [block.attn.original_component for block in self.model.blocks] if grouped else []
        changes = [(attention, grouping(attention, self.architecture.n_heads)) for attention in attentions]
        before = [(attention, {name: getattr(attention, name) for name in wanted}) for attention, wanted in changes]
        try:
            for attention, wanted in changes:
                vars(attention).update(wanted)
            yield
        finally:
            for attention, values in before:
                vars(attention).update(values)

    # ---- weights

    def matrices(self) -> list[Matrix]:
        shapes = {name: place.shape for name, place in self.places.all.items()}
        return [Matrix(name, shape, input_axes(name, len(shape))) for name, shape in shapes.items()]

    def parameters(self) -> dict[str, Tensor]:
        return {name: self.places[name] for name in self.places.all}

    def held(self) -> dict[str, Tensor]:
        return self.places.held()

    def with_weights(self, changed: Mapping[str, Callable[[Tensor], Tensor]], run: Callable[[], Tensor]) -> Tensor:
        changes = list(self.places.changes(changed))
        call = WeightCall(nn.ModuleList(module for module, _, _ in changes), run)
        tensors = {f"model.{index}.{attribute}": value for index, (_, attribute, value) in enumerate(changes)}
        # Input and output embedding are two tensors here, even where one parameter serves as both.
        return torch.func.functional_call(call, tensors, (), tie_weights=False)

    @contextmanager
    def installed_weights(self, changed: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """Parameters are put in the places of others, which are left as they are: they may be tied."""
        changes = list(self.places.changes(changed))
        before = [getattr(module, attribute) for module, attribute, _ in changes]
        try:
            for (module, attribute, value), old in zip(changes, before, strict=True):
                trained = isinstance(old, nn.Parameter)
                setattr(module, attribute, nn.Parameter(value, old.requires_grad) if trained else value)
            yield
        finally:
            for (module, attribute, _), old in zip(changes, before, strict=True):
                setattr(module, attribute, old)

    def linear_maps(self) -> list[LinearMap]:
        places, reads = self.places.all, {"W_O": "heads", "W_out": "neurons"}
        maps = []
        for weight, place in places.items():
            path, _, leaf = weight.rpartition(".")
            if (path == "pooler" and leaf == "W") or (weight.startswith("blocks.") and leaf.startswith("W_")):
                bias = f"{path}.{leaf.replace('W', 'b', 1)}"
                found, said = (bias if bias in places else None), f"{path}.{reads.get(leaf, 'input')}"
                maps.append(LinearMap(weight, found, said, Spot(place.module, "in"), Spot(place.module, "out")))
        return maps

    @contextmanager
    def mapped(self, *, read: Read | None = None, change: Change | None = None) -> Iterator[None]:
        refuse_flags(self.model.cfg)
        with watched(self.linear_maps(), read=read, change=change):
            yield

    def projection(self, layer: int, convention: Convention) -> Projection:
        block = f"blocks.{layer}."
        weights = [self.places[f"{block}attn.W_{part}"] for part in "QKV"]
        biases = [self.places[f"{block}attn.b_{part}"] for part in "QKV"]
        repeats = self.architecture.n_heads // self.architecture.n_kv_heads
        if convention.ungrouped and repeats > 1:
            weights[1:] = [weight.repeat_interleave(repeats, 0) for weight in weights[1:]]
            biases[1:] = [bias.repeat_interleave(repeats, 0) for bias in biases[1:]]
        return Projection(tuple(weights), tuple(biases), *self.norms.settings(f"{block}ln1"))

    def output_weight(self, layer: int) -> Tensor:
        weight = self.places[f"blocks.{layer}.attn.W_O"]
        gain = self.places.exact(f"blocks.{layer}.ln1_post.w")
        return weight if gain is None else (weight * gain).to(weight.dtype)

    def mlp_modules(self, layer: int) -> list[nn.Module]:
        block = self.model.blocks[layer]
        return [block.ln2, block.mlp, *([block.ln2_post] if self.coupled else [])]

    def gate_bias(self, layer: int) -> Tensor | None:
        return self.places.like.new_zeros(1).detach() if self._gated else None

    def constants(self) -> list[Tensor]:
        total = torch.zeros(self.d_model, dtype=self.dtype, device=self.device)
        result: list[Tensor] = []
        for layer in self._layers:
            after = total + self.places[f"blocks.{layer}.attn.b_O"].detach()
            result.append(total)
            if self.architecture.has_mlp:
                result.append(total if self.architecture.parallel else after)
            total = after
        return [*result, total]

    def fingerprint(self) -> dict[str, Any]:
        """Name and shape of the model, and a hash of a sample of every weight."""
        return {"name": self.model.cfg.model_name, "weights": weights_hash(self.parameters())}
