"""The slow, plain form of the edge engine: every reader's stream summed one writer at a time, in ordinary autograd.

It exists to check the fast engine, and reads like the definition. It shares with it no code for mixing or projecting:
the model's own norms and projections run, on inputs that TransformerLens splits per head when asked to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tlprune.backends.activations import Activations
from tlprune.graph import Graph, Readers
from tlprune.task import Tokens


def plain_run(
    model: Any,
    graph: Graph,
    tokens: Tokens,
    mask: Tensor,
    replaced: Activations,
    *,
    outputs: Sequence[Tensor] | None = None,
) -> Tensor:
    """Logits at all positions of a HookedTransformer under edge masks, ``(example, pos, vocab)``.

    Args:
        model: a HookedTransformer; its flags are set for the call and restored.
        graph: the edges.
        tokens: clean prompts.
        mask: one number per edge, ``(edge,)``, or ``(example or 1, pos or 1, edge)``.
        replaced: what an ablated writer sends.
        outputs: output projections of the run that gave ``replaced``, times the gain of a norm behind attention; by
            default the model's own.
    """
    run = _PlainRun(graph, mask, replaced, model, outputs or [_output(block) for block in model.blocks])
    with _slow_flags(model, graph):
        return model.run_with_hooks(
            tokens.ids,
            fwd_hooks=list(run.hooks()),
            **({} if tokens.attention_mask is None else {"attention_mask": tokens.attention_mask}),
        )


@contextmanager
def _slow_flags(model: Any, graph: Graph) -> Iterator[None]:
    wanted = {"use_attn_result": True, "use_split_qkv_input": True, "use_hook_mlp_in": graph.architecture.has_mlp}
    wanted["ungroup_grouped_query_attention"] = graph.convention.ungrouped
    before = {name: getattr(model.cfg, name) for name in wanted}
    try:
        vars(model.cfg).update(wanted)
        yield
    finally:
        vars(model.cfg).update(before)


class _PlainRun:
    def __init__(
        self, graph: Graph, mask: Tensor, replaced: Activations, model: Any, output_weights: Sequence[Tensor]
    ) -> None:
        self.graph, self.mask, self.replaced, self.model = graph, mask, replaced, model
        self.output_weights = output_weights
        self.clean: list[Tensor] = []
        self.kept = torch.zeros(())
        self.ablated = self._ablated()

    def _ablated(self) -> list[Tensor]:
        separate = self.graph.convention.embeddings == "separate"
        merged = self.graph.convention.embeddings == "merged"
        outputs = list(self.replaced.embeddings) if separate else [self.replaced.streams[0]] * merged
        for layer, weight in enumerate(self.output_weights):
            heads = torch.einsum("bphe,hed->hbpd", self.replaced.outgoing[layer], weight)
            outputs.extend(heads)
            if self.graph.architecture.has_mlp:
                outputs.append(self.replaced.mlps[layer])
        return outputs

    def stream(self, readers: Readers, row: int) -> Tensor:
        index = self.graph.readers.index(readers)
        total = self.replaced.streams[index] + self.kept
        block = readers.block(self.mask)
        for writer in range(readers.width):
            total = total + block[..., row, writer, None] * (self.clean[writer] - self.ablated[writer])
        return total

    def hooks(self) -> Iterator[tuple[str, Any]]:
        yield from self._embedding_hooks()
        for readers in self.graph.readers:
            layer = f"blocks.{min(readers.layer, len(self.model.blocks) - 1)}."
            if readers.kind == "attention":
                yield from self._attention_hooks(readers, layer)
            elif readers.kind == "mlp":
                yield layer + "hook_mlp_in", lambda value, hook, readers=readers: self.stream(readers, 0)
                yield layer + "hook_mlp_out", lambda value, hook: self.clean.append(value)
            else:
                yield layer + "hook_resid_post", lambda value, hook, readers=readers: self.stream(readers, 0)

    def _embedding_hooks(self) -> Iterator[tuple[str, Any]]:
        if self.graph.convention.embeddings == "kept":
            yield "blocks.0.hook_resid_pre", lambda value, hook: self._keep(value)
        elif self.graph.convention.embeddings == "merged":
            yield "blocks.0.hook_resid_pre", lambda value, hook: self.clean.append(value)
        else:
            for name in ("hook_embed", "hook_pos_embed")[: len(self.graph.embeddings)]:
                yield name, lambda value, hook: self.clean.append(value)

    def _keep(self, value: Tensor) -> None:
        self.kept = value - self.replaced.streams[0]

    def _attention_hooks(self, readers: Readers, layer: str) -> Iterator[tuple[str, Any]]:
        heads, kv = self.graph.architecture.n_heads, self.graph.n_kv_readers
        rows = {"q": range(heads), "k": range(heads, heads + kv), "v": range(heads + kv, heads + 2 * kv)}
        if self.graph.convention.qkv == "joined":
            rows = dict.fromkeys("qkv", range(heads))
        for part, own in rows.items():
            yield (
                layer + f"hook_{part}_input",
                lambda value, hook, own=own: torch.stack([self.stream(readers, row) for row in own], 2),
            )
        block = self.model.blocks[readers.layer]
        yield layer + "attn.hook_result", lambda value, hook: self.clean.extend(_sent(block, value).unbind(2))


def _output(block: Any) -> Tensor:
    """The output projection of attention, with the gain of the norm behind it."""
    return block.attn.W_O * block.ln1_post.w if hasattr(block, "ln1_post") else block.attn.W_O


def _sent(block: Any, results: Tensor) -> Tensor:
    """Each head's share of what a norm makes of their sum, ``(example, pos, head, d_model)``."""
    if not hasattr(block, "ln1_post"):
        return results
    total = results.sum(2, keepdim=True) + block.attn.b_O
    return results * block.ln1_post.w / (total.square().mean(-1, keepdim=True) + block.ln1_post.eps).sqrt()
