"""Hugging Face decoders written out by hand, head by head, with every reader's stream summed one writer at a time.

It names no hook and shares no code with the engine or with TransformerLens: only Hugging Face's weights, norms, MLPs
and rotary angles. What it computes is the definition of an edge mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tlprune.graph import Graph, Readers


class Decoder:
    """What decoders differ in; this one is a Llama (Mistral, Qwen)."""

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config
        self.trunk = model.model
        self.blocks = list(self.trunk.layers)
        self.heads = self.config.num_attention_heads
        self.groups = self.config.num_key_value_heads
        self.d_head = self.config.head_dim
        self.window = getattr(self.config, "sliding_window", None)

    def embeddings(self, ids: Tensor) -> list[Tensor]:
        return [self.trunk.embed_tokens(ids)]

    def norms(self, layer: int) -> tuple[Any, Any]:
        return self.blocks[layer].input_layernorm, self.blocks[layer].post_attention_layernorm

    def mlp(self, layer: int, stream: Tensor) -> Tensor:
        return self.blocks[layer].mlp(stream)

    def project(self, layer: int, part: str, head: int, stream: Tensor) -> Tensor:
        """q, k or v of one head; k and v of its group."""
        attention = self.blocks[layer].self_attn
        index = head if part == "q" else head // (self.heads // self.groups)
        linear = getattr(attention, f"{part}_proj")
        rows = slice(index * self.d_head, (index + 1) * self.d_head)
        vector = stream @ linear.weight[rows].T + (0 if linear.bias is None else linear.bias[rows])
        norm = getattr(attention, f"{part}_norm", None)
        return vector if norm is None else norm(vector)

    def rotate(self, vector: Tensor, layer: int) -> Tensor:
        return self.turn(vector, *self.trunk.rotary_emb(vector, torch.arange(vector.shape[1])[None]))

    @staticmethod
    def turn(vector: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned, left = vector[..., : cos.shape[-1]], vector[..., cos.shape[-1] :]
        first, second = turned.chunk(2, -1)
        return torch.cat([turned * cos + torch.cat([-second, first], -1) * sin, left], -1)

    def output(self, layer: int, head: int) -> Tensor:
        columns = slice(head * self.d_head, (head + 1) * self.d_head)
        return self.blocks[layer].self_attn.o_proj.weight[:, columns].T

    def output_bias(self, layer: int) -> Tensor | float:
        bias = self.blocks[layer].self_attn.o_proj.bias
        return 0.0 if bias is None else bias

    def logits(self, stream: Tensor) -> Tensor:
        return self.model.lm_head(self.trunk.norm(stream))

    def attend(self, layer: int, head: int, inputs: Sequence[Tensor]) -> Tensor:
        """What one head writes, from what its q, k and v see behind the norm."""
        q, k, v = (self.project(layer, part, head, seen) for part, seen in zip("qkv", inputs, strict=True))
        return self.pattern(layer, self.rotate(q, layer), self.rotate(k, layer)) @ v @ self.output(layer, head)

    def pattern(self, layer: int, q: Tensor, k: Tensor) -> Tensor:
        return self.hide(q @ k.mT / self.d_head**0.5, self.window).softmax(-1)

    @staticmethod
    def hide(scores: Tensor, window: int | None) -> Tensor:
        distance = torch.arange(scores.shape[-1])[:, None] - torch.arange(scores.shape[-1])
        return scores.masked_fill((distance < 0) | (distance >= (window or 10**9)), -torch.inf)

    def written(self, layer: int, heads: list[Tensor]) -> list[Tensor]:
        """What the heads of a block add to the stream."""
        return heads


class Gemma(Decoder):
    """Scaled scores, soft caps, windows in some layers, and, from Gemma 2 on, norms behind attention and MLP."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.normed = hasattr(self.blocks[0], "post_feedforward_layernorm")

    def norms(self, layer: int) -> tuple[Any, Any]:
        block = self.blocks[layer]
        return block.input_layernorm, block.pre_feedforward_layernorm if self.normed else block.post_attention_layernorm

    def mlp(self, layer: int, stream: Tensor) -> Tensor:
        block = self.blocks[layer]
        return block.post_feedforward_layernorm(block.mlp(stream)) if self.normed else block.mlp(stream)

    def pattern(self, layer: int, q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.mT * self.blocks[layer].self_attn.scaling
        cap = getattr(self.config, "attn_logit_softcapping", None)
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        kinds = getattr(self.config, "layer_types", None)
        within = kinds is not None and kinds[layer] == "sliding_attention"
        return self.hide(scores, self.window if within else None).softmax(-1)

    def rotate(self, vector: Tensor, layer: int) -> Tensor:
        kinds = {} if "gemma3" not in self.config.model_type else {"layer_type": self.config.layer_types[layer]}
        return self.turn(vector, *self.trunk.rotary_emb(vector, torch.arange(vector.shape[1])[None], **kinds))

    def written(self, layer: int, heads: list[Tensor]) -> list[Tensor]:
        """The norm behind attention divides the sum of the heads: each gets its share of the result."""
        if not self.normed:
            return heads
        norm, total = self.blocks[layer].post_attention_layernorm, sum(heads[1:], heads[0])
        scale = (total.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        return [head / scale * (1 + norm.weight) for head in heads]

    def logits(self, stream: Tensor) -> Tensor:
        cap, logits = getattr(self.config, "final_logit_softcapping", None), super().logits(stream)
        return logits if cap is None else cap * torch.tanh(logits / cap)


class Gpt2(Decoder):
    def __init__(self, model: Any) -> None:
        self.model, self.trunk = model, model.transformer
        self.blocks = list(self.trunk.h)
        self.heads = self.groups = model.config.n_head
        self.d_head, self.width, self.window = model.config.n_embd // self.heads, model.config.n_embd, None

    def embeddings(self, ids: Tensor) -> list[Tensor]:
        return [self.trunk.wte(ids), self.trunk.wpe(torch.arange(ids.shape[1])).expand(len(ids), -1, -1)]

    def norms(self, layer: int) -> tuple[Any, Any]:
        return self.blocks[layer].ln_1, self.blocks[layer].ln_2

    def project(self, layer: int, part: str, head: int, stream: Tensor) -> Tensor:
        start = "qkv".index(part) * self.width + head * self.d_head
        joined, columns = self.blocks[layer].attn.c_attn, slice(start, start + self.d_head)
        return stream @ joined.weight[:, columns] + joined.bias[columns]

    def rotate(self, vector: Tensor, layer: int) -> Tensor:
        return vector

    def output(self, layer: int, head: int) -> Tensor:
        return self.blocks[layer].attn.c_proj.weight[head * self.d_head : (head + 1) * self.d_head]

    def output_bias(self, layer: int) -> Tensor:
        return self.blocks[layer].attn.c_proj.bias

    def logits(self, stream: Tensor) -> Tensor:
        return self.model.lm_head(self.trunk.ln_f(stream))


class NeoX(Decoder):
    def __init__(self, model: Any) -> None:
        self.model, self.trunk = model, model.gpt_neox
        self.blocks = list(self.trunk.layers)
        self.heads = self.groups = model.config.num_attention_heads
        self.d_head, self.window = model.config.hidden_size // self.heads, None

    def embeddings(self, ids: Tensor) -> list[Tensor]:
        return [self.trunk.embed_in(ids)]

    def project(self, layer: int, part: str, head: int, stream: Tensor) -> Tensor:
        start = (3 * head + "qkv".index(part)) * self.d_head
        joined, rows = self.blocks[layer].attention.query_key_value, slice(start, start + self.d_head)
        return stream @ joined.weight[rows].T + joined.bias[rows]

    def output(self, layer: int, head: int) -> Tensor:
        columns = slice(head * self.d_head, (head + 1) * self.d_head)
        return self.blocks[layer].attention.dense.weight[:, columns].T

    def output_bias(self, layer: int) -> Tensor:
        return self.blocks[layer].attention.dense.bias

    def logits(self, stream: Tensor) -> Tensor:
        head = getattr(self.model, "lm_head", None) or self.model.embed_out
        return head(self.trunk.final_layer_norm(stream))


def decoder_of(model: Any) -> Decoder:
    kinds: dict[str, type[Decoder]] = {"GPT2LMHeadModel": Gpt2, "GPTNeoXForCausalLM": NeoX}
    kinds |= {f"Gemma{version}ForCausalLM": Gemma for version in ("", 2, 3)}
    return kinds.get(type(model).__name__, Decoder)(model)


class EdgeRun:
    """One run under edge masks; ``outputs`` are what the writers wrote, ``logits`` what the last reader makes of it."""

    def __init__(self, model: Any, graph: Graph, ids: Tensor, mask: Tensor, replaced: EdgeRun | None = None) -> None:
        self.decoder, self.graph, self.mask, self.replaced = decoder_of(model), graph, mask, replaced
        self.constant, self.outputs = self._embed(ids)
        for readers in graph.readers:
            if readers.kind == "attention":
                self._attention(readers)
            elif readers.kind == "mlp":
                norm = self.decoder.norms(readers.layer)[1]
                self.outputs.append(self.decoder.mlp(readers.layer, norm(self.stream(readers, 0))))
            else:
                self.logits = self.decoder.logits(self.stream(readers, 0))

    def _embed(self, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        parts = self.decoder.embeddings(ids)
        whole = sum(parts[1:], parts[0])
        convention = self.graph.convention.embeddings
        if convention == "kept":
            return whole, []
        return torch.zeros_like(whole), parts if convention == "separate" else [whole]

    def stream(self, readers: Readers, row: int) -> Tensor:
        """What one reader sees."""
        total, block = self.constant + self._biases(readers), readers.block(self.mask)
        for writer in range(readers.width):
            now = self.outputs[writer]
            instead = now if self.replaced is None else self.replaced.outputs[writer]
            total = total + instead + block[..., row, writer, None, None] * (now - instead)
        return total

    def _biases(self, readers: Readers) -> Tensor | float:
        """Output biases of the attention blocks before a reader."""
        own = readers.kind == "mlp" and not self.graph.architecture.parallel
        return sum((self.decoder.output_bias(layer) for layer in range(readers.layer + own)), start=0.0)

    def _attention(self, readers: Readers) -> None:
        norm = self.decoder.norms(readers.layer)[0]
        heads = []
        for head in range(self.decoder.heads):
            inputs = [norm(self.stream(readers, self._row(part, head))) for part in "qkv"]
            heads.append(self.decoder.attend(readers.layer, head, inputs))
        self.outputs += self.decoder.written(readers.layer, heads)

    def _row(self, part: str, head: int) -> int:
        heads, convention = self.decoder.heads, self.graph.convention
        if convention.qkv == "joined" or part == "q":
            return head
        group = head if convention.ungrouped else head // (heads // self.decoder.groups)
        return heads + group + (self.graph.n_kv_readers if part == "v" else 0)


def plain_logits(model: Any, graph: Graph, clean: Tensor, corrupt: Tensor, mask: Tensor) -> Tensor:
    """Logits under edge masks and resample ablation; mask ``(edge,)`` or ``(example, edge)``."""
    everything = torch.ones(graph.n_edges, dtype=mask.dtype)
    twin = EdgeRun(model, graph, corrupt, everything)
    return EdgeRun(model, graph, clean, mask, twin).logits
