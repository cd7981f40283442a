"""Published figures that a comparison is held beside. None of them was measured here."""

from __future__ import annotations

from typing import Any

ACDC_PAPER = "Conmy et al. 2023, arXiv 2304.14997, random ablation, KL metric, pessimistic stairs"
# (task, method): ROC AUC over edges, over nodes.
ACDC_AUC: dict[tuple[str, str], tuple[float | None, float | None]] = {
    ("docstring", "acdc"): (0.982, 0.950),
    ("greater-than", "acdc"): (0.853, 0.890),
    ("ioi", "acdc"): (0.869, 0.880),
    ("docstring", "subnetwork-probing"): (0.937, None),
    ("greater-than", "subnetwork-probing"): (0.82, None),
    ("ioi", "subnetwork-probing"): (0.888, None),
}


def published(task: str, method: str) -> dict[str, Any]:
    """The figures of the ACDC paper for a task and a method; nothing where it has none.

    Example:
        >>> published("ioi", "acdc")
        {'edges': 0.869, 'nodes': 0.88}
        >>> published("ioi", "eap")
        {}
    """
    known = ACDC_AUC.get((task, method.partition(":")[0]))
    if known is None:
        return {}
    return {name: value for name, value in zip(("edges", "nodes"), known, strict=True) if value is not None}
