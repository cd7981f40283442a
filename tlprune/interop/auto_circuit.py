"""Scores that the package auto-circuit saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tlprune.conventions import conventional
from tlprune.graph import Convention, Graph, Readers
from tlprune.interop.reading import architecture_of, load_tensors, reading, record
from tlprune.scores import Scores
from tlprune.sites import Sites

JOINED = "hook_attn_in"


def from_auto_circuit(path: str | Path, model: Any, *, task: str | None = None, algorithm: str | None = None) -> Scores:
    """Read the ``PruneScores`` of auto-circuit, which ``torch.save`` wrote alone or, as its cache has them, by task and
    algorithm.

    They map the name of a module of TransformerLens to a tensor with a score for each edge into it: ``(head, writer)``
    for ``blocks.3.hook_q_input``, ``hook_k_input`` and ``hook_v_input`` (``hook_attn_in`` without ``separate_qkv``),
    ``(writer,)`` for ``blocks.3.hook_mlp_in`` and the last ``hook_resid_post``. Writers are in the order of the model,
    the embedding first.

    auto-circuit's masks are 1 where an edge is *ablated*, and its gradients are those of a loss with respect to these
    masks, ``dL/dm = (x~_w - x_w) . dL/dx_r``: positive helps, as here, so that no sign changes. Its trained masks,
    thresholds of ACDC (``inf``: never removed) and circuits rank the same way. It takes circuits by absolute value:
    ``scores.absolute.top(n)``.

    Args:
        path: the file, such as ``task-prune-scores-....pkl``.
        model: the model that it is of, or its graph.
        task: which task's, where the file has several.
        algorithm: which algorithm's, where the file has several.

    Returns:
        Scores with one embedding node and k and v for each query head, or with q, k and v joined.

    Raises:
        ValueError: the file is missing, of another kind, holds several results and does not say which, is of a model of
            another shape or of an unfactorized graph, or tells positions apart.

    Source: Miller et al., "Transformer Circuit Metrics are not Robust", COLM 2024; UFO-101/auto-circuit.
    """
    path = Path(path)
    data = reading(path, "a file of auto-circuit", load_tensors)
    chosen = {"task": task, "algorithm": algorithm}
    for level, kind in ((3, "task"), (2, "algorithm")):
        data, chosen[kind] = _chosen(path, data, kind, chosen[kind], nested=_depth(data) == level)
    if _depth(data) != 1:
        raise ValueError(f"{path} needs tensors by the names of modules but holds something else. Give prune scores.")
    architecture = architecture_of(model)
    qkv = "joined" if any(name.endswith(JOINED) for name in data) else "split"
    graph = Graph(architecture, Convention(kv=conventional(Graph(architecture)).kv, qkv=qkv))
    return Scores(Sites((graph,)), _values(path, data, graph), {**record(path, "auto-circuit"), **chosen})


def _depth(data: Any) -> int | None:
    """How many mappings lie in each other around the tensors; ``None`` where there is something else."""
    if isinstance(data, Tensor):
        return 0
    inner = {_depth(value) for value in data.values()} if isinstance(data, Mapping) else set()
    depth = inner.pop() if len(inner) == 1 else None
    return None if depth is None else depth + 1


def _chosen(path: Path, data: Any, kind: str, name: str | None, *, nested: bool) -> tuple[Any, str | None]:
    if not nested and name is None:
        return data, None
    if name is None and len(data) == 1:
        name = str(next(iter(data)))
    if not nested or name not in data:
        known = ", ".join(map(repr, data)) if nested else "none"
        raise ValueError(f"{path} has scores by {kind} for {known} but needs {name!r}. Give {kind}= as it is there.")
    return data[name], name


def _values(path: Path, data: Mapping[str, Tensor], graph: Graph) -> Float[Tensor, "edge"]:
    last = graph.architecture.n_layers - 1
    modules = [_modules(readers, graph.convention, last) for readers in graph.readers]
    known = {module for names in modules for module in names}
    if {*data} != known:
        odd = sorted({*data} ^ known)
        raise ValueError(
            f"{path} needs scores for the {len(known)} modules of this model that read edges but {odd[0]!r} is "
            f"{'unknown' if odd[0] in data else 'missing'}. Give the model that it is of, and factorized scores."
        )
    pairs = zip(graph.readers, modules, strict=True)
    return torch.cat([_block(path, data, readers, names) for readers, names in pairs])


def _modules(readers: Readers, convention: Convention, last: int) -> list[str]:
    """The modules whose tensors hold the edges of these readers, in their order."""
    if readers.kind == "logits":
        return [f"blocks.{last}.hook_resid_post"]
    if readers.kind == "mlp":
        return [f"blocks.{readers.layer}.hook_mlp_in"]
    places = [JOINED] if convention.qkv == "joined" else [f"hook_{letter}_input" for letter in "qkv"]
    return [f"blocks.{readers.layer}.{place}" for place in places]


def _block(path: Path, data: Mapping[str, Tensor], readers: Readers, modules: list[str]) -> Float[Tensor, "some"]:
    heads = [len(readers.names) // len(modules)] if readers.kind == "attention" else []
    for module in modules:
        if list(data[module].shape) != [*heads, readers.width]:
            raise ValueError(
                f"{path} needs scores of shape {(*heads, readers.width)} for {module} but has "
                f"{tuple(data[module].shape)}. Give scores of this model that are the same at all positions."
            )
    return torch.cat([data[module].detach().float().flatten() for module in modules])
