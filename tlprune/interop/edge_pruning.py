"""Circuits in the file of the published code of Edge Pruning, read and written."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tlprune.circuit import Circuit
from tlprune.files import write_whole
from tlprune.graph import LOGITS, Convention, Graph
from tlprune.interop.reading import architecture_of, load_json, reading, record

EMBEDDINGS = {"tok_embeds": "embed", "embeds": "embed", "pos_embeds": "pos_embed"}
HEAD = re.compile(r"a(\d+)\.h(\d+)\.([qkv])")
READER = re.compile(r"(a\d+)\.(?:h|kv)(\d+)<([qkv])>")
RESIDUAL = "resid_post"


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


def to_edge_pruning(circuit: Circuit, path: str | Path) -> None:
    """Write ``edges.json`` as Edge Pruning does: the way back from :func:`from_edge_pruning`, which has the names.

    The token embedding is called ``"tok_embeds"`` where the model has a position embedding beside it, as in GPT-2, and
    ``"embeds"`` where it has none, as in Llama. The file says nothing of embeddings unless an edge comes from one: a
    circuit whose embeddings are nodes but have no edges is read again with ``embeddings="separate"``.

    Args:
        circuit: of edges, with embeddings as separate nodes or always kept, and k and v for each key/value head.
        path: the file; an existing one is replaced only once the new one is whole.

    Raises:
        ValueError: the circuit is of other sites, or of a convention that the file has no names for.

    Source: Bhaskar et al., NeurIPS 2024, princeton-nlp/Edge-Pruning.

    Example:
        >>> import tempfile
        >>> from tlprune.graph import Architecture
        >>> graph = Graph(Architecture(n_layers=2, n_heads=4, n_kv_heads=2), Convention("separate"))
        >>> circuit = Circuit.from_edges(graph, ["embed->a0.h3<q>", "a0.h2->a1.kv1<k>", "m1->logits"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_edge_pruning(circuit, Path(folder, "edges.json"))
        ...     pairs = json.loads(Path(folder, "edges.json").read_text())
        ...     again = from_edge_pruning(Path(folder, "edges.json"), graph)
        >>> pairs, again == circuit
        ([['embeds', 'a0.h3.q'], ['a0.h2', 'a1.h1.k'], ['m1', 'resid_post']], True)
    """
    graph = _sayable(circuit)
    names = {"embed": "tok_embeds" if "pos_embed" in graph.embeddings else "embeds", "pos_embed": "pos_embeds"}
    pairs = [edge.split("->") for edge in circuit.edges]
    content = [[names.get(writer, writer), _their_reader(reader)] for writer, reader in pairs]
    write_whole(Path(path), json.dumps(content, indent=4) + "\n")


def _sayable(circuit: Circuit) -> Graph:
    """The graph of a circuit that the file has names for."""
    sites = circuit.sites
    if sites.kinds != ("edges",) or sites.spans:
        raise ValueError(
            f"edges.json needs a circuit of edges that are the same at all positions but this one is of {sites}"
            f"{' that differ by span' if sites.spans else ''}. Save it with circuit.save()."
        )
    convention = circuit.graph.convention
    said = Convention("kept" if convention.embeddings == "kept" else "separate")
    if convention != said:
        raise ValueError(
            "edges.json needs embeddings that are separate or kept, and q, k and v of their own for each head, k and v "
            f"shared where the model shares them, but this circuit has: {convention}. Convert it: "
            f"tp.convert(circuit, tp.Convention({said.embeddings!r}))."
        )
    return circuit.graph


def _their_reader(name: str) -> str:
    found = READER.fullmatch(name)
    if found is None:
        return RESIDUAL if name == LOGITS else name
    return ".".join((found[1], f"h{found[2]}", found[3]))


def _reader(name: str, grouped: bool) -> str:
    if name == RESIDUAL:
        return LOGITS
    found = HEAD.fullmatch(name)
    if found is None:
        return name
    layer, head, letter = found.groups()
    return f"a{layer}.{'kv' if grouped and letter in 'kv' else 'h'}{head}<{letter}>"
