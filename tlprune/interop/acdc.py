"""Circuits that the published code of ACDC saved."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tlprune.circuit import Circuit
from tlprune.conventions import conventional
from tlprune.graph import LOGITS, Convention, Graph
from tlprune.interop.reading import architecture_of, load_tensors, reading, record

EMBEDDINGS = {"blocks.0.hook_resid_pre": "input", "hook_embed": "embed", "hook_pos_embed": "pos_embed"}
READER = re.compile(r"blocks\.(\d+)\.(hook_([qkv])_input|hook_mlp_in|hook_resid_mid|hook_resid_post)")
WRITER = re.compile(r"blocks\.(\d+)\.(attn\.hook_result|hook_mlp_out)")
INTERNAL = re.compile(r"blocks\.\d+\.(attn\.hook_[qkv]|attn\.hook_result|hook_mlp_out)")


class Index:
    """ACDC's own index: ``hashable_tuple`` holds ``None`` for all of an axis, or a number."""


# From a receiver and its index to a sender and its index, as ACDC keys its edges.
Key = tuple[str, tuple[Any, ...], str, tuple[Any, ...]]


def from_acdc(path: str | Path, model: Any) -> Circuit:
    """Read the edges of an ACDC run, in either of its formats.

    ``save_edges`` (``another_final_edges.pkl``, and ``edges.pth`` of logged runs) pickles a list with an entry
    ``((receiver, index, sender, index), effect size)`` for each kept edge. ``save_subgraph`` writes by ``torch.save`` a
    mapping of such keys, for all edges, to whether they are kept. Names are hook points of TransformerLens, indices say
    which head. Of a pickle only names, numbers and ACDC's own index are read; anything else in it is refused, not run.

    Edges inside of a node (q, k and v into their own head, an MLP's input into it) are no edges here and are left out;
    ``provenance["internal_edges"]`` counts them. Effect sizes, by how much ACDC's metric rose without the edge, stand
    there for kept edges alone, so they are no scores and are not read.

    Args:
        path: the file.
        model: the model that it is of, or its graph.

    Returns:
        A circuit with one embedding node, or with two where the run had them, and with k and v for each query head.

    Raises:
        ValueError: the file is missing, of another kind, or names what the model does not have.

    Source: Conmy et al., NeurIPS 2023, ArthurConmy/Automatic-Circuit-Discovery.
    """
    path, graph = Path(path), Graph(architecture_of(model))
    keys = reading(path, "a file of ACDC", _keys)
    between = [key for key in keys if not INTERNAL.fullmatch(key[0])]
    separate = any(sender in ("hook_embed", "hook_pos_embed") for _, _, sender, _ in between)
    convention = Convention("separate" if separate else "merged", conventional(graph).kv)
    told = {**record(path, "ACDC"), "internal_edges": len(keys) - len(between)}
    try:
        names = [f"{_writer(sender, its)}->{_reader(receiver, own, graph)}" for receiver, own, sender, its in between]
        return Circuit.from_edges(Graph(graph.architecture, convention), names, provenance=told)
    except ValueError as error:
        raise ValueError(f"{path}: {error} Give the model that it was found on.") from None


# ---- names


def _reader(name: str, index: tuple[Any, ...], graph: Graph) -> str:
    found = READER.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no place where ACDC's edges end.")
    layer, place, letter = found.groups()
    if letter:
        return f"a{layer}.h{_head(name, index)}<{letter}>"
    _check_whole(name, index)
    if place != "hook_resid_post":
        return f"m{layer}"
    if int(layer) != graph.architecture.n_layers - 1:
        raise ValueError(f"{name!r} is not behind the last of {graph.architecture.n_layers} layers.")
    return LOGITS


def _writer(name: str, index: tuple[Any, ...]) -> str:
    if name in EMBEDDINGS:
        _check_whole(name, index)
        return EMBEDDINGS[name]
    found = WRITER.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no place where ACDC's edges begin.")
    if found[2] == "hook_mlp_out":
        _check_whole(name, index)
        return f"m{found[1]}"
    return f"a{found[1]}.h{_head(name, index)}"


def _head(name: str, index: tuple[Any, ...]) -> int:
    if len(index) != 3 or index[:2] != (None, None) or not isinstance(index[2], int):
        raise ValueError(f"{name!r} needs an index [:, :, head] but has {list(index)}.")
    return index[2]


def _check_whole(name: str, index: tuple[Any, ...]) -> None:
    if any(place is not None for place in index):
        raise ValueError(f"{name!r} has the index {list(index)}, but edges are the same at all positions here.")


# ---- files


def _keys(path: Path) -> list[Key]:
    """Keys of the kept edges."""
    if zipfile.is_zipfile(path):
        data = load_tensors(path)
        if not isinstance(data, Mapping) or not all(isinstance(kept, bool) for kept in data.values()):
            raise ValueError("it holds something else than edges with whether they are kept")
        return [_key(key) for key, kept in data.items() if kept]
    entries = _unpickled(path)
    if not isinstance(entries, list):
        raise ValueError("it holds something else than a list of edges")
    return [_key(entry[0] if isinstance(entry, tuple) and len(entry) == 2 else entry) for entry in entries]


def _key(key: Any) -> Key:
    if not isinstance(key, tuple) or len(key) != 4 or not all(isinstance(name, str) for name in key[::2]):
        raise ValueError("its entries are not edges from a sender to a receiver, each with an index")
    receiver, own, sender, its = key
    return receiver, _places(own), sender, _places(its)


def _places(index: Any) -> tuple[Any, ...]:
    """An index as a tuple with ``None`` for all of an axis."""
    places = vars(index).get("hashable_tuple") if isinstance(index, Index) else index
    if not isinstance(places, tuple):
        raise ValueError("its edges have no indices of ACDC")
    return places


def _unpickled(path: Path) -> Any:
    class Own(Index):
        """Made anew for each file, because a pickle may change it."""

    known = {("acdc.TLACDCEdge", "TorchIndex"): Own}
    known |= dict.fromkeys([("builtins", "slice"), ("__builtin__", "slice")], slice)  # the second in old protocols

    class Restricted(pickle.Unpickler):
        def find_class(self, module_name: str, global_name: str, /) -> Any:
            if (module_name, global_name) not in known:
                raise pickle.UnpicklingError(f"it wants {module_name}.{global_name}, which is not read from files")
            return known[module_name, global_name]

    try:
        with open(path, "rb") as file:
            return Restricted(file).load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle fails in any way
        raise ValueError(str(error) or type(error).__name__) from None
