"""Circuits that the published code of Edge Pruning saved."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tlprune.circuit import Circuit
from tlprune.graph import LOGITS, Convention, Graph
from tlprune.interop.reading import architecture_of, load_json, reading, record

EMBEDDINGS = {"tok_embeds": "embed", "embeds": "embed", "pos_embeds": "pos_embed"}
HEAD = re.compile(r"a(\d+)\.h(\d+)\.([qkv])")


def from_edge_pruning(
    path: str | Path, model: Any, *, embeddings: Literal["separate", "kept"] | None = None
) -> Circuit:
    """Read ``edges.json``, which Edge Pruning's ``vis_fpt2.py`` and ``vis_fllama.py`` write.

    The file is a list of pairs of a writer and a reader. Writers are ``"a0.h1"`` and ``"m0"``, and with
    ``--with_embedding_nodes`` GPT-2's ``"tok_embeds"`` and ``"pos_embeds"`` or Llama's ``"embeds"``. Readers are
    ``"a3.h2.q"``, ``"a3.h2.k"``, ``"a3.h2.v"``, ``"m0"`` and ``"resid_post"``. Under grouped queries the head of k and
    v is a key/value head. Pairs of removed writers are left out already.

    Args:
        path: the file.
        model: the model that it is of, or its graph.
        embeddings: whether embeddings were nodes (``"separate"``), or always kept and not counted; by default as the
            file has pairs from embeddings or not.

    Raises:
        ValueError: the file is missing, not such a list, or names what the model does not have.

    Source: Bhaskar et al., NeurIPS 2024, princeton-nlp/Edge-Pruning.

    Example:
        >>> import json, tempfile
        >>> from tlprune.graph import Architecture, Graph
        >>> graph = Graph(Architecture(n_layers=2, n_heads=2, n_kv_heads=2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "edges.json")
        ...     _ = file.write_text(json.dumps([["a0.h1", "a1.h0.k"], ["a1.h0", "resid_post"]]))
        ...     found = from_edge_pruning(file, graph)
        >>> found.edges, found.graph.convention.embeddings
        (['a0.h1->a1.h0<k>', 'a1.h0->logits'], 'kept')
    """
    path, architecture = Path(path), architecture_of(model)
    pairs = reading(path, "a list of pairs as Edge Pruning saves it", _pairs)
    if embeddings is None:
        embeddings = "separate" if any(writer in EMBEDDINGS for writer, _ in pairs) else "kept"
    graph = Graph(architecture, Convention(embeddings))
    grouped = architecture.n_kv_heads < architecture.n_heads
    try:
        names = [f"{EMBEDDINGS.get(writer, writer)}->{_reader(reader, grouped)}" for writer, reader in pairs]
        return Circuit.from_edges(graph, names, provenance=record(path, "Edge Pruning"))
    except ValueError as error:
        raise ValueError(f"{path}: {error} Give the model that it was found on, and embeddings=.") from None


def _pairs(path: Path) -> Sequence[tuple[str, str]]:
    data = load_json(path)
    whole = isinstance(data, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair) for pair in data
    )
    if not whole:
        raise ValueError("it holds something else than pairs of names")
    return [(writer, reader) for writer, reader in data]


def _reader(name: str, grouped: bool) -> str:
    if name == "resid_post":
        return LOGITS
    found = HEAD.fullmatch(name)
    if found is None:
        return name
    layer, head, letter = found.groups()
    return f"a{layer}.{'kv' if grouped and letter in 'kv' else 'h'}{head}<{letter}>"
