"""What must hold before masks are put on a model: its shape, its weights, that with everything kept it is itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tlprune.backends.activations import ROUNDING, Backend, autocast_dtype
from tlprune.backends.processing import processing, signature
from tlprune.between_spans import AttentionEdges, key_value_readers
from tlprune.circuit import Circuit
from tlprune.graph import Graph
from tlprune.grouping import of_heads
from tlprune.masking.ablation import Ablation
from tlprune.masking.crossing import graph_of
from tlprune.sites import Neurons, Nodes, Sites, Weights

SAME_WEIGHTS = 1e-5  # how far folding and centring in float32 move a signature, relative to its scale
FIXED = ("zero", "constant")  # what they put in a head's place knows nothing of its value biases


def check_model(backend: Backend, circuit: Circuit, ablation: Ablation) -> None:
    """Raise a ValueError unless the circuit means on this model what it means on the one that its provenance names.

    Weights that were processed otherwise (folded, centred), or the same checkpoint behind another class, are accepted
    where that changes nothing: for edges and nodes, and for neurons unless a norm lies behind them; never for weights.
    Heads under Zero and Constant ablation need both or neither to have their value biases folded.

    Args:
        backend: the model that it is used on.
        circuit: the circuit.
        ablation: what replaces ablated sites.
    """
    known, own = circuit.provenance.get("model"), backend.fingerprint()
    if known is None or known.get("weights") == own["weights"]:
        return
    reason = _other_function(backend, known) or _other_meaning(backend, circuit, ablation)
    if reason:
        raise ValueError(
            f"This circuit was found on model {known.get('name')!r} (weights {known.get('weights')}) but is used on "
            f"{own['name']!r} (weights {own['weights']}), {reason}. Load the model it was found on."
        )


def _other_function(backend: Backend, known: Mapping[str, Any]) -> str | None:
    """Why this is not the known model processed otherwise, if it is not."""
    dtypes = {known.get("processing", {}).get("dtype"), processing(backend)["dtype"]}
    if known.get("signature") is None or not dtypes <= {"float32", "float64"}:
        return "which has other weights"
    now = signature(backend)
    same = len(known["signature"]) == len(now.values) and all(
        abs(then - value) <= SAME_WEIGHTS * scale
        for then, value, scale in zip(known["signature"], now.values, now.scales, strict=True)
    )
    return None if same else "which computes something else"


def _other_meaning(backend: Backend, circuit: Circuit, ablation: Ablation) -> str | None:
    """Why a circuit means something else on a model with the same function, if it does."""
    kinds, then, now = circuit.sites.kinds, circuit.provenance["model"]["processing"], processing(backend)
    if "weights" in kinds:
        return "whose weights are processed otherwise (folded or centred), so that the same places hold other weights"
    if "neurons" in kinds and str(backend.model.cfg.act_fn).endswith("_ln"):
        return "whose weights are processed otherwise, which changes the neurons behind the norm of its MLPs"
    of_heads = bool({"edges", "nodes", "heads", "layers"} & {*kinds})
    if of_heads and ablation.as_dict()["name"] in FIXED and then["value_biases"] != now["value_biases"]:
        return "whose value biases are folded otherwise, so that ablation to zero or a constant removes something else"
    return None


def check_sites(sites: Sites, backend: Backend) -> None:
    """Raise a ValueError unless the sites are of a model of this shape, and go together."""
    shape = backend.architecture
    if "edges" in sites.kinds and Graph(shape, sites.graph.convention) != sites.graph:
        expected, given = Graph(shape, sites.graph.convention), sites.graph
        raise ValueError(
            f"The masks have {given.n_edges:,} edges of a model with {given.architecture.n_layers} layers and "
            f"{given.architecture.n_heads} heads, but this model has {expected.n_edges:,}, {shape.n_layers} and "
            f"{shape.n_heads}. Build both from one model."
        )
    known = {matrix.name: matrix for matrix in backend.matrices()}
    for group in map(sites.bare, sites.kinds):
        if isinstance(group, AttentionEdges):
            _check_attention_edges(group, sites, backend)
        if isinstance(group, Nodes):
            _check_nodes(group, sites, backend)
        if isinstance(group, Neurons) and (max(group.layers) >= shape.n_layers or group.width != backend.d_mlp):
            raise ValueError(
                f"The masks are over {group.width} neurons in layers up to {max(group.layers)} but this model has "
                f"{backend.d_mlp} in {shape.n_layers} layers. Build them from the same model: tp.neurons(model)."
            )
        if isinstance(group, Weights):
            _check_weights(group, sites, known)


def _check_attention_edges(group: AttentionEdges, sites: Sites, backend: Backend) -> None:
    refuse_post_norm(backend)
    if "weights" in sites.kinds:
        raise ValueError(
            "Attention edges are replaced by keys and values of the unmasked model, but the masked weights beside them "
            "would make others of its streams. Mask weights, or attention edges, alone."
        )
    known = [*key_value_readers(backend.architecture, of_heads(graph_of(sites, backend)).convention)]
    strange = [name for name in group.readers if name not in known]
    if strange:
        raise ValueError(
            f"The masks name keys and values of {', '.join(strange[:3])}, but this model has those of {known[0]} to "
            f"{known[-1]} under this convention. Build them from the same model, with the same kv= as the edges beside "
            "them: tp.attention_edges(model, spans=...)."
        )


def refuse_post_norm(backend: Backend) -> None:
    """Raise a ValueError for models whose residual stream is no sum."""
    if backend.architecture.post_norm:
        raise ValueError(
            "Attention edges need the residual stream of the replacing run in front of every head, which this encoder, "
            "a model that normalises every sum, does not have. Mask its edges by span: tp.edges(model, spans=...)."
        )


def _check_nodes(group: Nodes, sites: Sites, backend: Backend) -> None:
    shape = backend.architecture
    known = {"embed", "pos_embed"} if _separate(sites) else {"input", "embed", "pos_embed"}
    known |= {f"a{layer}" for layer in range(shape.n_layers)} | set(Graph(shape).writers[1:])
    if shape.post_norm or ("edges" in sites.kinds and not _separate(sites)):
        known -= {"embed", "pos_embed"}
    strange = [name for name in group.names if name not in known]
    if strange:
        raise ValueError(
            f"The masks name {', '.join(strange[:3])}, which this model of {shape.n_layers} layers and {shape.n_heads} "
            "heads does not have under this convention. Build them from the same model, with the same embeddings= as "
            "the edges beside them."
        )


def _separate(sites: Sites) -> bool:
    return "edges" in sites.kinds and sites.graph.convention.embeddings == "separate"


def _check_weights(group: Weights, sites: Sites, known: Mapping[str, Any]) -> None:
    for matrix in group.matrices:
        if known.get(matrix.name) != matrix:
            raise ValueError(
                f"The masks are over {matrix.name} of shape {matrix.shape}, which this model does not have. Build them "
                "from the same model: tp.weights(model)."
            )
        if "edges" in sites.kinds and matrix.name.endswith("b_O"):
            raise ValueError(
                f"{matrix.name} reaches every reader without an edge, so it cannot be masked beside edges. Leave "
                "output biases out: tp.weights(model, 'blocks.*.W_*')."
            )


def check_same(backend: Backend, masked: Tensor, plain: Tensor) -> None:
    """Raise unless two sets of logits differ by rounding only."""
    if not plain.isfinite().all():
        raise FloatingPointError(
            "The model itself, without any mask, gives logits that are not finite. Look for infinities in its weights, "
            "or load it in another dtype."
        )
    scale = max(1.0, float(plain.abs().max()))
    error = float((masked - plain).abs().max()) / scale
    precision = autocast_dtype(backend.device) or backend.precision
    allowed = ROUNDING[precision] * max(1.0, math.sqrt(backend.architecture.n_layers / 12))
    if not error <= allowed:
        raise RuntimeError(
            f"With everything kept the masked model must equal the model, but logits differ by {error:.1e} of their "
            f"size where rounding explains {allowed:.1e}. This architecture is not supported as it stands, or a hook "
            "of yours makes the two runs differ: report it with model.cfg."
        )
