"""The sites of a model, by kind. Each function gives :class:`~tlprune.sites.Sites`; ``+`` puts them side by side."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, Literal

from tlprune.backends import backend_of
from tlprune.between_spans import AttentionEdges, every_pair, key_value_readers, pair_of
from tlprune.graph import Convention, Graph
from tlprune.masking.checks import refuse_post_norm
from tlprune.placing import flow_of
from tlprune.sites import Neurons, Nodes, Sites, Weights
from tlprune.spans import Group, Spanned
from tlprune.task import Discovery, Task

Spans = Iterable[str] | Task | Discovery


def edges(
    model: Any,
    *,
    embeddings: Literal["merged", "separate", "kept"] = "merged",
    kv: Literal["shared", "per_query_head"] = "shared",
    qkv: Literal["split", "joined"] = "split",
    heads: Literal["split", "joined"] = "split",
    spans: Spans = (),
) -> Sites:
    """The edges between writers and readers of the residual stream.

    Args:
        model: a TransformerLens model.
        embeddings: whether token and position embedding are one node, two, or always kept and not counted.
        kv: whether grouped-query attention has one k and v reader per key/value head or per query head.
        qkv: whether a head has three readers, or one whose edges carry q, k and v together.
        heads: whether each head is a node, or all heads of a layer are one.
        spans: names of a task's spans; every edge then has a mask for each span, and one for the rest of the prompt.
            A task stands for all that it names, and its prompts then tell which span comes before which, so that
            ``effective`` counts no path that they cannot have.

    Raises:
        ValueError: the task names no spans.
    """
    return _sites(model, _graph(model, Convention(embeddings, kv, qkv, heads)), spans)


def attention_edges(
    model: Any,
    pattern: str = "*",
    *,
    spans: Spans = (),
    pairs: Iterable[str] = (),
    kv: Literal["shared", "per_query_head"] = "shared",
) -> Sites:
    """What attention moves between named spans, head by head, by keys and by values apart: ``a1.h0<v>@s1->end``.

    With mask ``m`` the queries in span ``end`` see, at the positions of ``s1``, ``m v + (1 - m) v~`` in place of the
    head's values ``v``, where ``v~`` is what the head makes of the residual stream of the replacing run; alike for
    keys. Queries in other spans, and the residual stream itself, are left alone. Where no position of the source is at
    or before one of the query span, a site does nothing.

    Args:
        model: a TransformerLens model; not an encoder that normalises every sum.
        pattern: which readers of keys and values, such as ``"a[6-9].*<v>"``; several with ``|``.
        spans: names of a task's spans; without any the whole prompt is one, ``rest``. A task stands for all that it
            names, and for the pairs of which some query sees the source in its prompts.
        pairs: which pairs of a source and a query span, such as ``"s1->end"``; by default those of the task, or all,
            ``rest`` included. Under causal attention :func:`tlprune.tasks.attended_pairs` has a task's, too.
        kv: under grouped-query attention, keys and values per key/value head or per query head.

    Raises:
        ValueError: no reader of the model is called so, a pair is not of these spans, the task names none, or the model
            is such an encoder.

    Source: Haklay et al., "Position-aware Automatic Circuit Discovery" (2025).

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> sites = attention_edges(planted.model, "a1.*<v>", spans=["copied", "end"])
        >>> sites, sites.name(1)
        (Sites(36 attention_edges), 'a1.h0<v>@copied->end')
        >>> len(attention_edges(planted.model, "a1.*<v>", spans=planted.task))  # the end is seen by itself alone
        28
    """
    backend = backend_of(model)
    refuse_post_norm(backend)
    readers = _matching(key_value_readers(backend.architecture, Convention(kv=kv)), pattern, "keys and values")
    named, known = _named(spans), None
    if isinstance(spans, (Task, Discovery)):
        known = flow_of(_discovery(spans), named, causal=_causal(model))
    chosen = tuple(pair_of(pair) for pair in pairs) or (every_pair(named) if known is None else known.moves)
    return Sites((AttentionEdges(readers, named, chosen),))


def nodes(
    model: Any,
    pattern: str = "*",
    *,
    embeddings: Literal["merged", "separate"] = "merged",
    spans: Spans = (),
) -> Sites:
    """Every writer of the residual stream: embeddings, heads and MLPs. Beside edges, both must be kept.

    Args:
        model: a TransformerLens model.
        pattern: which of the names, such as ``"a[6-9].*"``.
        embeddings: whether token and position embedding are one node or two; as for the edges beside them.
        spans: names of a task's spans that have masks of their own.
    """
    writers = _graph(model, Convention(embeddings)).writers
    return _sites(model, Nodes("nodes", _matching(writers, pattern, "nodes")), spans)


def heads(model: Any, pattern: str = "*", *, spans: Spans = ()) -> Sites:
    """Attention heads, ``a0.h3``: what a head writes. Output biases of attention belong to no head."""
    names = (name for name in _graph(model).writers if ".h" in name)
    return _sites(model, Nodes("heads", _matching(names, pattern, "heads")), spans)


def mlps(model: Any, pattern: str = "*", *, spans: Spans = ()) -> Sites:
    """MLPs, ``m0``: what a whole MLP writes, its output bias included."""
    names = (name for name in _graph(model).writers if name.startswith("m"))
    return _sites(model, Nodes("mlps", _matching(names, pattern, "mlps")), spans)


def layers(model: Any, pattern: str = "*", *, spans: Spans = ()) -> Sites:
    """Whole attention layers, ``a0``, and MLP layers, ``m0``; a head counts if both it and its layer are kept."""
    shape = _graph(model).architecture
    kinds = "am" if shape.has_mlp else "a"
    names = (f"{kind}{layer}" for layer in range(shape.n_layers) for kind in kinds)
    return _sites(model, Nodes("layers", _matching(names, pattern, "layers")), spans)


def neurons(model: Any, pattern: str = "*", *, spans: Spans = ()) -> Sites:
    """MLP neurons behind the activation function, and behind the gate where there is one: ``m3.n120``.

    Args:
        model: a TransformerLens model with MLPs.
        pattern: which MLPs, such as ``"m[6-9]"``.
        spans: names of a task's spans that have masks of their own.
    """
    names = _matching((name for name in _graph(model).writers if name.startswith("m")), pattern, "MLPs")
    return _sites(model, Neurons(tuple(int(name[1:]) for name in names), backend_of(model).d_mlp), spans)


def weights(model: Any, pattern: str = "blocks.*.W_*", *, unit: Literal["weight", "row", "column"] = "weight") -> Sites:
    """Weights of chosen matrices. An ablated weight is 0, whatever replaces activations.

    Args:
        model: a TransformerLens model.
        pattern: names as in ``model.named_parameters()``, such as ``"blocks.[6-9]*.W_*"``; several with ``|``.
        unit: ``"weight"``; ``"row"``: all weights of one input at once; ``"column"``: all of one output.

    Raises:
        ValueError: nothing has such a name, or rows or columns are asked of biases.
    """
    known = {matrix.name: matrix for matrix in backend_of(model).matrices()}
    chosen = tuple(known[name] for name in _matching(known, pattern, "weights"))
    if unit != "weight" and any(len(matrix.shape) < 2 for matrix in chosen):
        raise ValueError(f"A {unit} needs matrices but {pattern!r} also names biases. Use a pattern such as '*.W_*'.")
    return Sites((Weights(chosen, unit),))


def prunable(model: Any, *, classifier: str | None = None) -> Sites:
    """All weights and biases of the linear layers but the classifier: of every block, and an encoder's pooler.

    These are what one-shot pruning cuts; embeddings, norms and heads (for classes, or over the vocabulary) are left as
    they are. HookedTransformer stores zeros for a bias that an architecture lacks, so a decoder's bias that is zero
    throughout is no site.

    Args:
        model: a TransformerLens model.
        classifier: name of the layer that is left alone, ``"classifier"`` or ``"unembed"``, where the model has to have
            it; by default whichever it has.

    Raises:
        ValueError: the model has no such classifier.

    Example:
        >>> import tlprune as tp
        >>> sites = prunable(tp.load("testbed", device="cpu"))
        >>> names = [matrix.name for matrix in sites.group("weights").matrices]
        >>> "blocks.0.attn.b_Q" in names, any("embed" in name for name in names)
        (True, False)
    """
    backend = backend_of(model)
    parameters = backend.parameters()
    _check_classifier(parameters, classifier)
    encoder = backend.architecture.post_norm
    names: set[str] = set()
    for one in backend.linear_maps():
        has_bias = one.bias is not None and (encoder or bool(parameters[one.bias].any()))
        names |= {one.weight, one.bias} if has_bias and one.bias else {one.weight}
    return Sites((Weights(tuple(matrix for matrix in backend.matrices() if matrix.name in names)),))


def _check_classifier(parameters: Iterable[str], classifier: str | None) -> None:
    layers = {name.partition(".")[0] for name in parameters}
    known = [name for name in ("classifier", "unembed") if name in layers]
    if classifier is not None and classifier not in known:
        raise ValueError(
            f"Pruning leaves the classifier {classifier!r} alone but this model has {' and '.join(known) or 'none'}. "
            "Leave classifier out, or load a model with such a head: tp.from_huggingface(...)."
        )


def _graph(model: Any, convention: Convention | None = None) -> Graph:
    return Graph(backend_of(model).architecture, convention)


def follow(sites: Sites, model: Any, task: Task | Discovery) -> Sites:
    """The same sites with the order of their spans in a task's prompts: what can be on a path by span.

    Training and validation prompts are looked at. What one of their positions attends to (all before it, or all under
    bidirectional attention) it may hear of, and paths end in the spans of the answer positions; all other paths no
    longer make a site effective. Sites that do not differ by span stay as they are.

    Args:
        sites: edges and others, by span.
        model: the model that they are of.
        task: whose prompts they are for.

    Raises:
        ValueError: the prompts have other spans.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("and")
        >>> sites = tp.edges(planted.model, spans=planted.task.span_names)
        >>> later = tp.Circuit.from_names(sites, ["input->a0.h1<v>@end", "a0.h1->m0@x", "m0->logits@x"])
        >>> known = follow(sites, planted.model, planted.task)
        >>> known == sites, later.n_effective, tp.Circuit(known, later.kept).n_effective
        (True, 3, 0)
    """
    return sites.flowing(flow_of(_discovery(task), sites.spans, causal=_causal(model))) if sites.spans else sites


def _discovery(task: Task | Discovery) -> Discovery:
    return task.discovery if isinstance(task, Task) else task


def _causal(model: Any) -> bool:
    encoder = backend_of(model).architecture.post_norm
    return not encoder and getattr(model.cfg, "attention_dir", "causal") == "causal"


def _sites(model: Any, group: Group, spans: Spans) -> Sites:
    named = _named(spans)
    found = Sites((Spanned(group, named) if named else group,))
    return follow(found, model, spans) if isinstance(spans, (Task, Discovery)) else found


def _named(spans: Spans) -> tuple[str, ...]:
    """Names of spans, all of them where a task stands for its own."""
    if not isinstance(spans, (Task, Discovery)):
        return tuple(spans)
    if not spans.span_names:
        raise ValueError(
            f"Sites by span need a task that names spans of its prompts but {spans.name!r} names none. Name them with "
            "tp.tasks.with_spans(task, names, places)."
        )
    return spans.span_names


def _matching(names: Iterable[str], pattern: str, what: str) -> tuple[str, ...]:
    known = tuple(names)
    found = tuple(name for name in known if any(fnmatchcase(name, part) for part in pattern.split("|")))
    if not found:
        some = ", ".join(known[:3]) or "none at all"
        raise ValueError(f"{pattern!r} matches none of this model's {what}. They are called {some}, and so on.")
    return found
