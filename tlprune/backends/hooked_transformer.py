"""HookedTransformer: every decoder of TransformerLens 3 whose blocks add to one residual stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module

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
    weights_in_place,
)
from tlprune.backends.linear_maps import Change, LinearMap, Read, attention_whole, block_maps, watched
from tlprune.graph import Architecture, Convention
from tlprune.sites import Matrix
from tlprune.task import Tokens

# Between steered readers the residual stream carries nothing, so these points would show a user's hook a stub.
UNUSED_STREAMS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "attn.hook_result", "ln1.")
UNUSED_INPUTS = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input")


class HookedTransformerBackend(Runs):
    """Reads and steers a HookedTransformer through its HookPoints, for the length of one call.

    Args:
        model: the model; nothing of it is changed afterwards.

    Where a norm behind attention divides by ``s`` (Gemma 2), ``sum_h z_h W_O / s * g`` is a sum over heads still, so
    that each head sends ``(z_h / s) (W_O g)``, with the scale of the run that it is in.

    Raises:
        ValueError: its blocks do not simply add to one stream (mixture of experts, 4-bit, shortformer, norms behind
            attention and MLP alone, or behind attention and its output bias).
    """

    def __init__(self, model: Any) -> None:
        refuse_unsupported(model.cfg)
        self.model = model
        self.coupled = bool(getattr(model.cfg, "use_normalization_before_and_after", False)) and _has_norms(model)
        if self.coupled:
            refuse_normed_biases(model, [block.attn.b_O for block in model.blocks])
        self.architecture = Architecture.of(model.cfg)
        self.d_model: int = model.cfg.d_model
        self.predicts: Literal["tokens", "prompts"] = "tokens"

    @property
    def d_mlp(self) -> int:
        return self.model.cfg.d_mlp

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed.W_E.dtype

    @property
    def precision(self) -> torch.dtype:
        return self.dtype

    @property
    def device(self) -> torch.device:
        return self.model.embed.W_E.device

    @property
    def embedding(self) -> Module:
        return self.model.embed

    # ---- plain runs

    @torch.no_grad()
    def observe(self, tokens: Tokens, wanted: Wanted = FOR_EDGES) -> Activations:
        seen: dict[str, Tensor] = {}
        names = self._observed(wanted)
        with hooked(self.model.hook_dict, [(name, stored(seen, name), False) for name in names]):
            self._forward(tokens, stop_at_layer=self.architecture.n_layers)
        layers = range(self.architecture.n_layers)
        z = tuple(seen[f"blocks.{layer}.attn.hook_z"] for layer in layers)
        scales = [seen[name] for name in self._post_scales(wanted)]
        return Activations(
            embeddings=tuple(seen[name] for name in self._embedding_points()),
            heads=z,
            mlps=tuple(seen[f"blocks.{layer}.hook_mlp_out"] for layer in layers if self.architecture.has_mlp),
            streams=tuple(seen[name] for name in self._streams()) if wanted.streams else (),
            neurons={layer: seen[f"blocks.{layer}.mlp.hook_post"] for layer in wanted.neurons},
            sent=tuple(map(sent, z, scales)) if scales else (),
        )

    @torch.no_grad()
    def norm_scales(self, tokens: Tokens) -> dict[Point, Tensor]:
        if not _has_norms(self.model):
            return {}
        kinds = ["attention_norm", *["mlp_norm"] * self.architecture.has_mlp]
        kinds += [kind.replace("norm", "post_norm") for kind in kinds] if self.coupled else []
        points = [(kind, layer) for layer in range(self.architecture.n_layers) for kind in kinds] + [("final_norm", 0)]
        seen: dict[str, Tensor] = {}
        names = [self._point(point) for point in points]
        with hooked(self.model.hook_dict, [(name, stored(seen, name), False) for name in names]):
            self._forward(tokens)
        return {point: seen[name] for point, name in zip(points, names, strict=True)}

    def final(self, tokens: Tokens, edits: Edits, positions: Tensor | None) -> Tensor:
        with self.edited(edits, positions) as met:
            stream = self._forward(tokens, stop_at_layer=self.architecture.n_layers)
        check_met(edits, met)
        return stream

    def unembed(self, stream: Tensor) -> Tensor:
        with frozen(self.model):
            return self.model(stream, start_at_layer=self.architecture.n_layers)

    @contextmanager
    def edited(self, edits: Edits, positions: Tensor | None = None) -> Iterator[set[Point]]:
        met: set[Point] = set()
        hooks: list[tuple[str, Hook, bool]] = []
        for point in edits:
            hooks.append((self._point(point), _edit(edits, point, met, positions), False))
        hooks.append((self._last_point(), lambda stream: select(stream, positions), False))
        with hooked(self.model.hook_dict, hooks), frozen(self.model):
            yield met

    def head_points(self) -> list[Module]:
        layers = range(self.architecture.n_layers)
        return [self.model.hook_dict[self._point(("heads", layer))] for layer in layers]

    def _point(self, point: Point) -> str:
        """The hook at which an activation is edited."""
        kind, layer = point
        if kind == "final_norm":
            return "ln_final.hook_scale"
        if kind in ("input", "embed", "pos_embed"):
            return {"input": "blocks.0.hook_resid_pre", "embed": "hook_embed", "pos_embed": "hook_pos_embed"}[kind]
        names = {
            "heads": "attn.hook_z",
            "mlp": "hook_mlp_out",
            "neurons": "mlp.hook_post",
            "preactivations": "mlp.hook_pre",
        }
        names |= {"attention_norm": "ln1.hook_scale", "mlp_norm": "ln2.hook_scale"}
        names |= {"attention_post_norm": "ln1_post.hook_scale", "mlp_post_norm": "ln2_post.hook_scale"}
        return f"blocks.{layer}.{names[kind]}"

    def _forward(self, tokens: Tokens, **options: Any) -> Tensor:
        return self.model(self._ids(tokens), attention_mask=self._attention_mask(tokens), **options)

    def _attention_mask(self, tokens: Tokens) -> Tensor | None:
        mask = tokens.attention_mask
        if mask is None and getattr(getattr(self.model, "tokenizer", None), "padding_side", "right") == "left":
            # TransformerLens would guess a mask from the padding token, which is often the first token of a prompt.
            return torch.ones_like(tokens.ids)
        return mask

    def _embedding_points(self) -> list[str]:
        return ["hook_embed", "hook_pos_embed"] if self.architecture.position_embedding else ["hook_embed"]

    def _streams(self) -> list[str]:
        """The residual-stream point that each set of readers reads in the plain model."""
        middle = "hook_resid_pre" if self.architecture.parallel else "hook_resid_mid"
        points = ["hook_resid_pre", middle] if self.architecture.has_mlp else ["hook_resid_pre"]
        layers = range(self.architecture.n_layers)
        return [*(f"blocks.{layer}.{point}" for layer in layers for point in points), self._last_point()]

    def _last_point(self) -> str:
        return f"blocks.{self.architecture.n_layers - 1}.hook_resid_post"

    def _observed(self, wanted: Wanted) -> list[str]:
        layers = range(self.architecture.n_layers)
        outputs = ["attn.hook_z", "hook_mlp_out"] if self.architecture.has_mlp else ["attn.hook_z"]
        points = [f"blocks.{layer}.{point}" for layer in layers for point in outputs]
        points += [f"blocks.{layer}.mlp.hook_post" for layer in wanted.neurons] + self._post_scales(wanted)
        return [*self._embedding_points(), *points, *dict.fromkeys(self._streams() if wanted.streams else [])]

    def _post_scales(self, wanted: Wanted) -> list[str]:
        """Where the norms behind attention say what they divide by, if there are any and edges need to know."""
        layers = range(self.architecture.n_layers if self.coupled and wanted.streams else 0)
        return [self._point(("attention_post_norm", layer)) for layer in layers]

    # ---- steered runs

    @contextmanager
    def steered(
        self, steering: Steering, convention: Convention, edits: Edits, positions: Tensor | None = None
    ) -> Iterator[set[Point]]:
        self._refuse_hidden_hooks()
        met: set[Point] = set()
        blocks = self._block_hooks(steering, edits, met, range(self.architecture.n_layers))
        hooks = [*self._embedding_hooks(steering, convention, edits, met), *blocks]
        hooks.append((self._last_point(), lambda _: select(steering.final(), positions), True))
        norms = [point for point in edits if point[0] in ("mlp_norm", "mlp_post_norm", "final_norm")]
        hooks += [(self._point(point), _edit(edits, point, met, positions), False) for point in norms]
        with hooked(self.model.hook_dict, hooks), self._flags(convention), frozen(self.model):
            yield met

    def resume(
        self, tokens: Tokens, steering: Steering, convention: Convention, positions: Tensor, layers: Sequence[int]
    ) -> Tensor:
        self._refuse_hidden_hooks()
        hooks, mask = self._block_hooks(steering, {}, set(), layers), self._attention_mask(tokens)
        stub = torch.zeros(1, 1, self.d_model, dtype=self.dtype, device=self.device)
        with hooked(self.model.hook_dict, hooks), self._flags(convention), frozen(self.model):
            for layer in layers:
                self.model(stub, start_at_layer=layer, stop_at_layer=layer + 1, attention_mask=mask)
            return self.model(steering.final(), start_at_layer=self.architecture.n_layers, attention_mask=mask)

    def _embedding_hooks(
        self, steering: Steering, convention: Convention, edits: Edits, met: set[Point]
    ) -> list[tuple[str, Hook, bool]]:
        if convention.embeddings != "separate":
            edit = edit_at(edits, ("input", 0), met)
            return [("blocks.0.hook_resid_pre", lambda value: steering.embedding(0, edit(value)), True)]
        result: list[tuple[str, Hook, bool]] = []
        for index, (point, kind) in enumerate(zip(self._embedding_points(), ("embed", "pos_embed"), strict=False)):
            edit = edit_at(edits, (kind, 0), met)
            result.append((point, lambda x, index=index, edit=edit: steering.embedding(index, edit(x)), False))
        return result

    def _block_hooks(
        self, steering: Steering, edits: Edits, met: set[Point], layers: Sequence[int]
    ) -> Iterator[tuple[str, Hook, bool]]:
        stub = torch.zeros(1, 1, self.d_model, dtype=self.dtype, device=self.device)
        for layer in layers:
            block, reads = f"blocks.{layer}.", AttentionReads(steering, layer)
            writes = Writes(steering, layer, edits, met)
            yield f"{block}hook_resid_pre", lambda _: stub, False
            for index, part in enumerate("qkv"):
                yield f"{block}attn.hook_{part}", lambda _, index=index, reads=reads: reads.take(index), True
            if self.coupled:
                yield f"{block}attn.hook_z", writes.before_norm, False
                yield f"{block}ln1_post.hook_scale", writes.at_norm, False
                yield f"{block}hook_attn_out", lambda _: stub, False
            else:
                yield f"{block}attn.hook_z", lambda z, writes=writes: passed(writes.heads(z), z[:1, :1]), False
            if self.architecture.has_mlp:
                yield f"{block}hook_mlp_in", lambda _, layer=layer: steering.mlp_input(layer), True
                yield f"{block}hook_mlp_out", lambda out, writes=writes: passed(writes.mlp(out), stub), False
            for point in {("preactivations", layer), ("neurons", layer)} & edits.keys():
                yield self._point(point), edit_at(edits, point, met), False

    def _refuse_hidden_hooks(self) -> None:
        for name, point in self.model.hook_dict.items():
            _, _, inside = name.partition("blocks.")
            inside = inside.partition(".")[2]
            if inside.startswith(UNUSED_STREAMS + UNUSED_INPUTS) and (point.fwd_hooks or point.bwd_hooks):
                raise ValueError(
                    f"Edge masks give each reader a residual stream of its own, so {name} holds no activation, but "
                    f"a hook of yours is on it. Hook a reader or writer instead (attn.hook_q, hook_mlp_in, "
                    f"attn.hook_z, hook_mlp_out), or remove it with model.reset_hooks()."
                )

    # ---- weights

    def matrices(self) -> list[Matrix]:
        shapes = {name: tuple(value.shape) for name, value in self.parameters().items()}
        return [Matrix(name, shape, input_axes(name, len(shape))) for name, shape in shapes.items()]

    def parameters(self) -> dict[str, Tensor]:
        return {_shown(name): value for name, value in self.model.named_parameters()}

    def held(self) -> dict[str, Tensor]:
        return self.parameters()

    def with_weights(self, changed: Mapping[str, Callable[[Tensor], Tensor]], run: Callable[[], Tensor]) -> Tensor:
        tensors = {
            f"model.{name}": changed[_shown(name)](value.detach())
            for name, value in self.model.named_parameters()
            if _shown(name) in changed
        }
        return torch.func.functional_call(WeightCall(self.model, run), tensors, ())

    def installed_weights(self, changed: Mapping[str, Callable[[Tensor], Tensor]]) -> Any:
        return weights_in_place(self.parameters(), changed)

    def linear_maps(self) -> list[LinearMap]:
        modules, has_mlp = dict(self.model.named_modules()), self.architecture.has_mlp
        layers, gated = range(self.architecture.n_layers), bool(self.model.cfg.gated_mlp)
        return [one for layer in layers for one in block_maps(modules, layer, gated=gated, has_mlp=has_mlp)]

    @contextmanager
    def mapped(self, *, read: Read | None = None, change: Change | None = None) -> Iterator[None]:
        with attention_whole(self.model.cfg), watched(self.linear_maps(), read=read, change=change):
            yield

    def projection(self, layer: int, convention: Convention) -> Projection:
        attention, norm = self.model.blocks[layer].attn, self.model.blocks[layer].ln1
        repeats = self.architecture.n_heads // self.architecture.n_kv_heads
        stored = "_" if repeats > 1 else ""  # grouped heads are stored once, under a private name
        weights = [attention.W_Q, getattr(attention, f"{stored}W_K"), getattr(attention, f"{stored}W_V")]
        biases = [attention.b_Q, getattr(attention, f"{stored}b_K"), getattr(attention, f"{stored}b_V")]
        if convention.ungrouped and repeats > 1:
            weights[1:] = [weight.repeat_interleave(repeats, 0) for weight in weights[1:]]
            biases[1:] = [bias.repeat_interleave(repeats, 0) for bias in biases[1:]]
        kind, epsilon = NORMS[self.model.cfg.normalization_type], self.model.cfg.eps
        gain, shift = getattr(norm, "w", None), getattr(norm, "b", None)
        return Projection(tuple(weights), tuple(biases), kind, epsilon, gain, shift)

    def output_weight(self, layer: int) -> Tensor:
        block = self.model.blocks[layer]
        return block.attn.W_O * block.ln1_post.w if self.coupled else block.attn.W_O

    def mlp_modules(self, layer: int) -> list[Module]:
        block = self.model.blocks[layer]
        inside = [block.ln2, block.mlp, *([block.ln2_post] if self.coupled else [])]
        return [block.hook_mlp_in, *inside, block.hook_mlp_out]

    def gate_bias(self, layer: int) -> Tensor | None:
        return self.model.blocks[layer].mlp.b_in.detach() if self.model.cfg.gated_mlp else None

    def constants(self) -> list[Tensor]:
        total = torch.zeros(self.d_model, dtype=self.dtype, device=self.device)
        result: list[Tensor] = []
        for block in self.model.blocks:
            result.append(total)
            after = total + block.attn.b_O.detach()
            if self.architecture.has_mlp:
                result.append(total if self.architecture.parallel else after)
            total = after
        return [*result, total]

    def fingerprint(self) -> dict[str, Any]:
        """Name and shape of the model, and a hash of a sample of every weight."""
        return {"name": self.model.cfg.model_name, "weights": weights_hash(self.parameters())}

    # ---- the model is lent, not changed

    @contextmanager
    def _flags(self, convention: Convention) -> Iterator[None]:
        config = self.model.cfg
        wanted = {"use_hook_mlp_in": self.architecture.has_mlp}
        if self.architecture.n_kv_heads < self.architecture.n_heads:
            wanted["ungroup_grouped_query_attention"] = convention.ungrouped
        before = {name: getattr(config, name) for name in wanted}
        try:
            for name, value in wanted.items():
                setattr(config, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(config, name, value)


def _edit(edits: Edits, point: Point, met: set[Point], positions: Tensor | None) -> Callable[[Tensor], Tensor]:
    edit = edit_at(edits, point, met)
    if point[0] != "final_norm":
        return edit
    return lambda scale: select(edit(scale), positions)  # the last norm runs where logits are wanted only


def _shown(name: str) -> str:
    """A parameter's name without the underscore of grouped key and value weights."""
    path, dot, leaf = name.rpartition(".")
    return f"{path}{dot}{leaf.removeprefix('_')}"


def refuse_unsupported(config: Any) -> None:
    """Raise a ValueError for models whose edges this backend would get wrong."""
    reasons = {
        "a mixture of experts": getattr(config, "num_experts", None),
        "4-bit weights": getattr(config, "load_in_4bit", False),
        "shortformer positions": config.positional_embedding_type == "shortformer",
        "norms only after attention and MLP (OLMo 2)": _is_post_norm(config),
        f"normalisation {config.normalization_type!r}": config.normalization_type not in NORMS,
    }
    for reason, found in reasons.items():
        if found:
            raise ValueError(
                f"Edge masks need blocks that add to one residual stream, but {config.model_name!r} has {reason}. "
                "Supported: LayerNorm or RMSNorm before attention and MLP, and behind them too (Gemma 2), rotary or "
                "learned positions, grouped-query attention, gated MLPs, parallel attention and MLP, attention-only "
                "models."
            )


def _has_norms(model: Any) -> bool:
    return NORMS[model.cfg.normalization_type] != "none"


def _is_post_norm(config: Any) -> bool:
    return str(getattr(config, "original_architecture", "")).startswith(("Olmo2", "Olmo3"))
