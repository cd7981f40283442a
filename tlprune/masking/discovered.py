"""The ablation that a circuit was found under, as far as its provenance tells it in full."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tlprune.circuit import Circuit
from tlprune.masking.ablation import Ablation, GaussianNoise, Resample, Zero

WHOLE: dict[Any, Callable[..., Ablation]] = {"resample": Resample, "zero": Zero, "gaussian_noise": GaussianNoise}


def ablation_of_discovery(circuit: Circuit) -> Ablation:
    """What replaced ablated sites when the circuit was found; Resample for one stated by hand.

    Raises:
        ValueError: reference prompts or trained constants are needed that a circuit does not hold.

    Example:
        >>> from tlprune.graph import Architecture, Graph
        >>> graph = Graph(Architecture(1, 1, 1))
        >>> ablation_of_discovery(Circuit.from_edges(graph, [], provenance={"ablation": {"name": "zero"}}))
        Zero()
    """
    told = dict(circuit.provenance.get("ablation", {"name": "resample"}))
    name = told.pop("name", None)
    if name in WHOLE:
        return WHOLE[name](**told)
    if name == "mean":
        raise ValueError(_mean_text(told))
    if name == "constant":
        raise ValueError(
            f"This circuit was found under constant ablation, whose trained values are not in it; their hash is "
            f"{told.get('values')}. Give the object that it was found with, or its file: "
            "ablation=tp.Constant.load(path, model)."
        )
    raise ValueError(
        f"This circuit was found under {name} ablation, whose data are not in it. Give the object that it was found "
        "with: ablation=..."
    )


def _mean_text(told: Mapping[str, Any]) -> str:
    over = f", over={told['over']!r}" if told.get("over", "positions") != "positions" else ""
    return (
        f"This circuit was found under mean ablation, whose reference data are not in it: {told.get('prompts')} "
        f"prompts with fingerprint {told.get('reference')}. Give them. If the method was left to choose, with "
        f"tp.Mean(), they are the task's training prompts: ablation=tp.Mean(task.discovery.train().corrupt{over}). "
        f"Else they are your own: ablation=tp.Mean(reference{over})."
    )
