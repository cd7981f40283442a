"""The models and tasks of MIB's circuit track, and the shapes that its files state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tlprune.conventions import conventional
from tlprune.graph import Architecture, Graph


@dataclass(frozen=True)
class Shape:
    """What a file says of its model.

    Attributes:
        architecture: decides the graph.
        d_model: width of the residual stream.

    Example:
        >>> Shape.of("gpt2").graph, Shape.of("qwen2.5").cfg
        (Graph(32,491 edges; embeddings merged, kv shared),
         {'n_layers': 24, 'n_heads': 14, 'parallel_attn_mlp': False, 'd_model': 896})
    """

    architecture: Architecture
    d_model: int

    @staticmethod
    def of(model: Any) -> Shape:
        """The shape of a TransformerLens model, or of the model that MIB calls by this name; or a shape itself.

        Raises:
            ValueError: it is neither, or MIB has no graph for its kind.
        """
        if isinstance(model, Shape):
            return model
        if isinstance(model, str):
            if model not in MODELS:
                raise ValueError(
                    f"MIB's models of a known shape are {', '.join(MODELS)} but {model!r} was given. Give one of "
                    "these, or the model itself."
                )
            return MODELS[model]
        shape = Graph.of(model).architecture
        if not shape.has_mlp or shape.post_norm:
            kind = "an encoder" if shape.post_norm else "a model without MLPs"
            raise ValueError(
                f"MIB's graphs are of decoders with an MLP in each layer but this is {kind}. Use circuit.save()."
            )
        return Shape(shape, model.cfg.d_model)

    @property
    def graph(self) -> Graph:
        """MIB's graph: one embedding node, and k and v for each query head."""
        return Graph(self.architecture, conventional(Graph(self.architecture)))

    @property
    def cfg(self) -> dict[str, Any]:
        """As it stands in files."""
        own = self.architecture
        shape = {"n_layers": own.n_layers, "n_heads": own.n_heads, "parallel_attn_mlp": own.parallel}
        return {**shape, "d_model": self.d_model}


# GPT-2 small, Qwen 2.5 0.5B, Gemma 2 2B and Llama 3.1 8B.
MODELS = {
    "gpt2": Shape(Architecture(12, 12, 12, position_embedding=True), 768),
    "qwen2.5": Shape(Architecture(24, 14, 2), 896),
    "gemma2": Shape(Architecture(26, 8, 4), 2304),
    "llama3": Shape(Architecture(32, 32, 8), 4096),
}
# Which pairs the leaderboard has, as its folders are called.
PAIRS = (
    *("ioi_gpt2", "ioi_qwen2.5", "ioi_gemma2", "ioi_llama3", "ioi_interpbench"),
    *("mcqa_qwen2.5", "mcqa_gemma2", "mcqa_llama3"),
    *("arithmetic-addition_llama3", "arithmetic-subtraction_llama3"),
    *("arc-easy_gemma2", "arc-easy_llama3", "arc-challenge_llama3"),
)
