"""Rows against the true circuit, where one is known."""

from __future__ import annotations

from typing import Any

from tlprune.circuit import Circuit
from tlprune.evaluation.overlap import overlap
from tlprune.evaluation.recovery import Recovery, node_scores, recovery
from tlprune.scores import Scores

FIGURES = ("roc_auc", "stairs_auc", "average_precision", "precision")


def against_truth(circuit: Circuit, truth: Circuit | None) -> dict[str, Any]:
    """Overlap of a circuit with the true one, beside that of random connected circuits; nothing where none is known."""
    if truth is None or circuit.sites != truth.sites:
        return {}
    found = overlap(circuit, truth)
    return {
        "iou": found.iou,
        "iou_less_chance": found.excess,
        "precision": found.shared / len(circuit) if len(circuit) else None,
        "recall": found.shared / len(truth) if len(truth) else None,
    }


def ranking_against_truth(scores: Scores, truth: Circuit | None) -> dict[str, Any]:
    """How well a ranking tells true edges, and true nodes, from others; nothing where none are known.

    Scores of nodes are held against the nodes of the true circuit alone. What is always true, or never, has no figure.
    """
    if truth is None:
        return {}
    if scores.sites == truth.sites:
        return {**_named("edges", recovery(scores, truth)), **_of_nodes(node_scores(scores), truth)}
    return _of_nodes(scores, truth) if {*scores.sites.kinds} <= {"nodes", "heads", "mlps"} else {}


def _of_nodes(scores: Scores, truth: Circuit) -> dict[str, Any]:
    known = {scores.sites.name(index) for index in range(len(scores.sites))}
    true = Circuit.from_names(scores.sites, known & {*truth.nodes})
    if len(true) in (0, len(scores.sites)):
        return {}
    return _named("nodes", recovery(scores, true))


def _named(kind: str, found: Recovery) -> dict[str, float]:
    return {f"{name}_{kind}": getattr(found, name) for name in FIGURES}
