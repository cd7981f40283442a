"""Hugging Face's BERT and RoBERTa written out by hand, head by head, with a stream of its own for every reader.

It names no hook and shares no code with the engine or with TransformerLens: only Hugging Face's weights, embeddings,
norms and heads. What it computes is the definition of an edge mask in a post-norm model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tlprune.graph import Graph
from tlprune.task import Tokens

Values = dict[str, Tensor]


class PlainEncoder:
    """A transformers encoder; it is read, not changed."""

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config
        self.trunk = getattr(model, "bert", getattr(model, "roberta", model))
        self.blocks = list(self.trunk.encoder.layer)
        self.heads, self.d_head = self.config.num_attention_heads, self.trunk.embeddings.word_embeddings.weight.shape[1]
        self.d_head //= self.heads

    def input(self, tokens: Tokens) -> Tensor:
        return self.trunk.embeddings(input_ids=tokens.ids, token_type_ids=tokens.token_types)

    def attention(self, layer: int, head: int, read: Values, mask: Tensor | None) -> Tensor:
        """What one head adds to the residual stream, where q, k and v read a stream each."""
        own, rows = self.blocks[layer].attention, slice(head * self.d_head, (head + 1) * self.d_head)
        linear = {"q": own.self.query, "k": own.self.key, "v": own.self.value}
        q, k, v = (read[part] @ linear[part].weight[rows].T + linear[part].bias[rows] for part in "qkv")
        scores = q @ k.mT / self.d_head**0.5
        if mask is not None:
            scores = scores.masked_fill(mask[:, None] == 0, -torch.inf)
        return scores.softmax(-1) @ v @ own.output.dense.weight[:, rows].T

    def mlp(self, layer: int, stream: Tensor) -> Tensor:
        return self.blocks[layer].output.dense(self.blocks[layer].intermediate(stream))

    def after_attention(self, layer: int, total: Tensor) -> Tensor:
        output = self.blocks[layer].attention.output
        return output.LayerNorm(total + output.dense.bias)

    def after_mlp(self, layer: int, total: Tensor) -> Tensor:
        return self.blocks[layer].output.LayerNorm(total)

    def head(self, last: Tensor, mask: Tensor | None) -> Tensor:
        """What the class says of last states; one row per prompt but for words."""
        name, model = type(self.model).__name__, self.model
        if name.endswith("ForMaskedLM"):
            return (model.cls if name.startswith("Bert") else model.lm_head)(last)
        if name == "RobertaForSequenceClassification":
            return model.classifier(last)[:, None]
        if self.trunk.pooler is None:
            real = torch.ones(last.shape[:2]) if mask is None else mask
            return torch.einsum("bpd,bp->bd", last, real / real.sum(1, keepdim=True).to(last))[:, None]
        pooled = self.trunk.pooler(last)
        return (model.classifier(pooled) if hasattr(model, "classifier") else pooled)[:, None]


def written(model: Any, tokens: Tokens) -> Values:
    """What every writer writes in the plain model."""
    plain, values = PlainEncoder(model), {}
    stream = values["input"] = plain.input(tokens)
    for layer in range(len(plain.blocks)):
        for head in range(plain.heads):
            read = dict.fromkeys("qkv", stream)
            values[f"a{layer}.h{head}"] = plain.attention(layer, head, read, tokens.attention_mask)
        total = sum((values[f"a{layer}.h{head}"] for head in range(plain.heads)), stream)
        stream = plain.after_attention(layer, total)
        values[f"m{layer}"] = plain.mlp(layer, stream)
        stream = plain.after_mlp(layer, stream + values[f"m{layer}"])
    return values


def plain_logits(model: Any, graph: Graph, tokens: Tokens, replaced: Values, mask: Tensor) -> Tensor:
    """Logits under an edge mask, one writer at a time into one reader at a time.

    Args:
        replaced: what writers send where an edge is ablated, by name.
    """
    plain, values = PlainEncoder(model), {"input": PlainEncoder(model).input(tokens)}
    kept, joined = graph.convention.embeddings == "kept", graph.convention.qkv == "joined"

    def sent(writer: str, reader: str) -> Tensor:
        if kept and writer == "input":
            return values[writer]
        gate = mask[graph.index(f"{writer}->{reader}")]
        return gate * values[writer] + (1 - gate) * replaced[writer]

    def stream(reader: str, layers: int) -> Tensor:
        result = sent("input", reader)
        for layer in range(layers):
            result = plain.after_mlp(layer, halfway(reader, layer, result) + sent(f"m{layer}", reader))
        return result

    def halfway(reader: str, layer: int, before: Tensor) -> Tensor:
        total = sum((sent(f"a{layer}.h{head}", reader) for head in range(plain.heads)), before)
        return plain.after_attention(layer, total)

    for layer in range(len(plain.blocks)):
        found = {}
        for head in range(plain.heads):
            node = f"a{layer}.h{head}"
            read = {part: stream(node if joined else f"{node}<{part}>", layer) for part in "qkv"}
            found[node] = plain.attention(layer, head, read, tokens.attention_mask)
        values |= found
        reader = f"m{layer}"
        values[reader] = plain.mlp(layer, halfway(reader, layer, stream(reader, layer)))
    return plain.head(stream("logits", len(plain.blocks)), tokens.attention_mask)
