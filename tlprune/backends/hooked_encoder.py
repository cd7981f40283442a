"""HookedEncoder: BERT and RoBERTa in TransformerLens 3, whose blocks normalise behind every sum, with any head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module

from tlprune.backends.activations import (
    FOR_EDGES,
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
    stored,
    weights_hash,
    weights_in_place,
)
from tlprune.backends.linear_maps import Change, LinearMap, Read, Spot, attention_whole, block_maps, watched
from tlprune.backends.post_norms import LayerNorm, PostNorms
from tlprune.graph import Architecture, Convention
from tlprune.sites import Matrix
from tlprune.task import Tokens

INPUT = "blocks.0.hook_resid_pre"
POINTS = {
    "heads": "attn.hook_z",
    "mlp": "hook_mlp_out",
    "neurons": "mlp.hook_post",
    "preactivations": "mlp.hook_pre",
    "attention_norm": "ln1.hook_scale",
    "mlp_norm": "ln2.hook_scale",
}
# Between steered readers the residual stream carries nothing, so these points would show a user's hook a stub.
UNUSED = (
    *("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_normalized_resid_post", "hook_attn_out"),
    *("hook_mlp_in", "hook_q_input", "hook_k_input", "hook_v_input", "attn.hook_result", "ln1.", "ln2."),
)


class HookedEncoderBackend(Runs):
    """Reads and steers a HookedEncoder through its HookPoints, for the length of one call.

    A plain HookedEncoder predicts masked words, ``predicts="tokens"``; one with a head says itself what it predicts.

    Args:
        model: the model; nothing of it is changed afterwards.

    Raises:
        ValueError: its blocks are not those of BERT (mixture of experts, other norms, 4-bit).
    """

    def __init__(self, model: Any) -> None:
        refuse_unsupported(model.cfg)
        self.model = model
        self.architecture = Architecture.of(model.cfg)
        self.d_model: int = model.cfg.d_model
        self.predicts: Literal["tokens", "prompts"] = getattr(model, "predicts", "tokens")

    @property
    def d_mlp(self) -> int:
        return self.model.cfg.d_mlp

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed.embed.W_E.dtype

    @property
    def precision(self) -> torch.dtype:
        return self.dtype

    @property
    def device(self) -> torch.device:
        return self.model.embed.embed.W_E.device

    @property
    def embedding(self) -> Module:
        return self.model.embed.embed

    # ---- plain runs

    @torch.no_grad()
    def observe(self, tokens: Tokens, wanted: Wanted = FOR_EDGES) -> Activations:
        layers = range(self.architecture.n_layers)
        points = [("input", 0), *((kind, layer) for kind in ("heads", "mlp") for layer in layers)]
        points += [("neurons", layer) for layer in wanted.neurons]
        seen = self._seen(points, lambda: self._states(tokens))
        return Activations(
            embeddings=(seen["input", 0],),
            heads=tuple(seen["heads", layer] for layer in layers),
            mlps=tuple(seen["mlp", layer] for layer in layers),
            neurons={layer: seen["neurons", layer] for layer in wanted.neurons},
        )

    @torch.no_grad()
    def norm_scales(self, tokens: Tokens) -> dict[Point, Tensor]:
        layers = range(self.architecture.n_layers)
        points = [(kind, layer) for layer in layers for kind in ("attention_norm", "mlp_norm")]
        points += [("final_norm", 0)] if self.predicts == "tokens" else []
        return self._seen(points, lambda: self._forward(tokens))

    def _seen(self, points: list[Point], run: Callable[[], Tensor]) -> dict[Point, Tensor]:
        """Activations of a plain run."""
        seen: dict[str, Tensor] = {}
        names = {point: self._point(point) for point in points}
        with hooked(self.model.hook_dict, [(name, stored(seen, name), False) for name in names.values()]):
            run()
        return {point: seen[name] for point, name in names.items()}

    def final(self, tokens: Tokens, edits: Edits, positions: Tensor | None) -> Tensor:
        with self.edited(edits, positions) as met:
            stream = self._states(tokens)
        check_met(edits, met)
        return stream

    def unembed(self, stream: Tensor) -> Tensor:
        with frozen(self.model):
            return self.model.unembed(self.model.mlm_head(stream))

    @contextmanager
    def edited(self, edits: Edits, positions: Tensor | None = None) -> Iterator[set[Point]]:
        met: set[Point] = set()
        hooks = [(self._point(point), self._edit(edits, point, met, positions), False) for point in edits]
        hooks.append((self._last_point(), lambda stream: self._chosen(stream, positions), False))
        with hooked(self.model.hook_dict, hooks), frozen(self.model):
            yield met

    def head_points(self) -> list[Module]:
        layers = range(self.architecture.n_layers)
        return [self.model.hook_dict[self._point(("heads", layer))] for layer in layers]

    def _point(self, point: Point) -> str:
        """The hook at which an activation is edited."""
        kind, layer = point
        if kind in ("input", "final_norm"):
            return {"input": INPUT, "final_norm": "mlm_head.ln.hook_scale"}[kind]
        return f"blocks.{layer}.{POINTS[kind]}"

    def _last_point(self) -> str:
        return f"blocks.{self.architecture.n_layers - 1}.hook_normalized_resid_post"

    def _edit(self, edits: Edits, point: Point, met: set[Point], positions: Tensor | None) -> Hook:
        edit = edit_at(edits, point, met)
        return (lambda scale: self._chosen(edit(scale), positions)) if point[0] == "final_norm" else edit

    def _chosen(self, stream: Tensor, positions: Tensor | None) -> Tensor:
        """What a head for masked words reads; other heads choose for themselves."""
        return select(stream, positions) if self.predicts == "tokens" else stream

    def _states(self, tokens: Tokens) -> Tensor:
        return self.model.encoder_output(self._ids(tokens), tokens.token_types, tokens.attention_mask)

    def _forward(self, tokens: Tokens) -> Tensor:
        logits = self.model(
            self._ids(tokens), token_type_ids=tokens.token_types, one_zero_attention_mask=tokens.attention_mask
        )
        return logits if self.predicts == "tokens" else logits[:, None]

    # ---- steered runs

    @contextmanager
    def steered(
        self, steering: Steering, convention: Convention, edits: Edits, positions: Tensor | None = None
    ) -> Iterator[set[Point]]:
        self._refuse_hidden_hooks()
        # The norms of blocks are the engine's, which takes their scales from the same edits.
        met: set[Point] = {point for point in edits if point[0] in ("attention_norm", "mlp_norm")}
        edit = edit_at(edits, ("input", 0), met)
        hooks: list[tuple[str, Hook, bool]] = [(INPUT, lambda value: steering.embedding(0, edit(value)), True)]
        hooks += self._block_hooks(steering, edits, met)
        hooks.append((self._last_point(), lambda _: self._chosen(steering.final(), positions), True))
        if ("final_norm", 0) in edits:
            hooks.append((self._point(("final_norm", 0)), self._edit(edits, ("final_norm", 0), met, positions), False))
        with hooked(self.model.hook_dict, hooks), self._mlp_inputs(steering), frozen(self.model):
            yield met

    def _block_hooks(self, steering: Steering, edits: Edits, met: set[Point]) -> Iterator[tuple[str, Hook, bool]]:
        stub = torch.zeros(1, 1, self.d_model, dtype=self.dtype, device=self.device)
        for layer in range(self.architecture.n_layers):
            block, reads = f"blocks.{layer}.", AttentionReads(steering, layer)
            writes = Writes(steering, layer, edits, met)
            yield f"{block}hook_resid_pre", lambda _: stub, False
            for index, part in enumerate("qkv"):
                yield f"{block}attn.hook_{part}", lambda _, index=index, reads=reads: reads.take(index), True
            yield f"{block}attn.hook_z", lambda z, writes=writes: passed(writes.heads(z), z[:1, :1]), False
            yield f"{block}hook_mlp_out", lambda out, writes=writes: passed(writes.mlp(out), stub), False
            for point in {("preactivations", layer), ("neurons", layer)} & edits.keys():
                yield self._point(point), edit_at(edits, point, met), False

    @contextmanager
    def _mlp_inputs(self, steering: Steering) -> Iterator[None]:
        """What MLPs alone read: the hook before ``ln1`` would also change what their output is added to."""
        with ExitStack() as stack:
            for layer, block in enumerate(self.model.blocks):
                handle = block.mlp.register_forward_pre_hook(
                    lambda module, inputs, layer=layer: (steering.mlp_input(layer),)
                )
                stack.callback(handle.remove)
            yield

    def _refuse_hidden_hooks(self) -> None:
        for name, point in self.model.hook_dict.items():
            inside = name.partition("blocks.")[2].partition(".")[2]
            if inside.startswith(UNUSED) and (point.fwd_hooks or point.bwd_hooks):
                raise ValueError(
                    f"Edge masks give each reader a residual stream of its own, so {name} holds no activation, but "
                    f"a hook of yours is on it. Hook a reader or writer instead (attn.hook_q, mlp.hook_pre, "
                    f"attn.hook_z, hook_mlp_out), or remove it with model.reset_hooks()."
                )

    # ---- weights

    def matrices(self) -> list[Matrix]:
        shapes = {name: tuple(value.shape) for name, value in self.parameters().items()}
        return [Matrix(name, shape, _input_axes(name, len(shape))) for name, shape in shapes.items()]

    def parameters(self) -> dict[str, Tensor]:
        return dict(self.model.named_parameters())

    def held(self) -> dict[str, Tensor]:
        return self.parameters()

    def with_weights(self, changed: Mapping[str, Callable[[Tensor], Tensor]], run: Callable[[], Tensor]) -> Tensor:
        weights = self.parameters()
        tensors = {f"model.{name}": change(weights[name].detach()) for name, change in changed.items()}
        return torch.func.functional_call(WeightCall(self.model, run), tensors, ())

    def installed_weights(self, changed: Mapping[str, Callable[[Tensor], Tensor]]) -> Any:
        return weights_in_place(self.parameters(), changed)

    def linear_maps(self) -> list[LinearMap]:
        modules, layers = dict(self.model.named_modules()), range(self.architecture.n_layers)
        maps = [one for layer in layers for one in block_maps(modules, layer, gated=False, has_mlp=True)]
        if "pooler" in modules and self.predicts == "prompts":
            pooler, activation = modules["pooler"], modules["pooler.activation"]
            first, target = Spot(pooler, "in", first=True), Spot(activation, "in")
            maps.append(LinearMap("pooler.W", "pooler.b", "pooler", first, target))
        return maps

    @contextmanager
    def mapped(self, *, read: Read | None = None, change: Change | None = None) -> Iterator[None]:
        with attention_whole(self.model.cfg), watched(self.linear_maps(), read=read, change=change):
            yield

    def projection(self, layer: int, convention: Convention) -> Projection:
        attention = self.model.blocks[layer].attn
        weights = (attention.W_Q, attention.W_K, attention.W_V)
        return Projection(weights, (attention.b_Q, attention.b_K, attention.b_V), "none", self.model.cfg.eps)

    def output_weight(self, layer: int) -> Tensor:
        return self.model.blocks[layer].attn.W_O

    def mlp_modules(self, layer: int) -> list[Module]:
        return []

    def gate_bias(self, layer: int) -> Tensor | None:
        return None

    def constants(self) -> list[Tensor]:
        return []

    def post_norms(self, layer: int) -> PostNorms:
        """The block's two norms and its attention's output bias."""
        block = self.model.blocks[layer]
        first, second = (LayerNorm(norm.w, norm.b, norm.eps) for norm in (block.ln1, block.ln2))
        return PostNorms(first, second, block.attn.b_O)

    def fingerprint(self) -> dict[str, Any]:
        """Name and shape of the model, and a hash of a sample of every weight."""
        return {"name": self.model.cfg.model_name, "weights": weights_hash(self.parameters())}


def _input_axes(name: str, axes: int) -> tuple[int, ...]:
    """Which axes of a weight tensor count inputs; the matrices of heads are called ``W`` alone."""
    return (0,) if name.endswith(".W") else input_axes(name, axes)


def refuse_unsupported(config: Any) -> None:
    """Raise a ValueError for encoders that this backend would get wrong."""
    reasons = {
        "a mixture of experts": getattr(config, "num_experts", None),
        "4-bit weights": getattr(config, "load_in_4bit", False),
        f"normalisation {config.normalization_type!r}": config.normalization_type != "LN",
        f"{config.attention_dir} attention": config.attention_dir != "bidirectional",
    }
    for reason, found in reasons.items():
        if found:
            raise ValueError(
                f"Masks on an encoder need the blocks of BERT, but {config.model_name!r} has {reason}. Supported: "
                "bidirectional attention and MLP, each followed by a LayerNorm."
            )
