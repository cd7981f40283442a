"""What a circuit says of itself to people who find it on the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tlprune.circuit import Circuit

TAGS = ("tlprune", "circuit", "mechanistic-interpretability", "transformer-lens")


def card(circuit: Circuit, repo_id: str, *, figures: Any = None, base_model: str | None = None) -> str:
    """Markdown with metadata of the hub in front.

    Args:
        circuit: what it is of.
        repo_id: where it will be.
        figures: of the circuit: what prints as a table, or a mapping of names to numbers.
        base_model: the model's own name on the hub.

    Example:
        >>> from tlprune.graph import Architecture, Graph
        >>> circuit = Circuit.from_edges(Graph(Architecture(1, 1, 1)), ["input->m0"])
        >>> print(card(circuit, "me/mine").partition("## Load it")[2].partition("##")[0].strip())
        ```python
        import tlprune as tp
        <BLANKLINE>
        circuit = tp.Circuit.from_hub("me/mine")
        logits = circuit.on(model)(task.test)  # tp.load(...) and tp.tasks have models and tasks
        ```
    """
    told = circuit.provenance
    parts = [
        _metadata(base_model),
        f"# {_title(circuit)}",
        f"A sparse subnetwork of a transformer, in the format of tlprune: `{circuit!r}`.",
        _table(_facts(circuit)),
        f'## Load it\n\n```python\nimport tlprune as tp\n\ncircuit = tp.Circuit.from_hub("{repo_id}")\n'
        "logits = circuit.on(model)(task.test)  # tp.load(...) and tp.tasks have models and tasks\n```",
        *([] if figures is None else [f"## Figures\n\n{_figures(figures)}"]),
        f"## Provenance\n\n{_fenced(json.dumps(dict(told), indent=1), 'json')}",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(base_model: str | None) -> str:
    """What the hub finds it by."""
    import yaml

    data: dict[str, Any] = {"library_name": "tlprune", "tags": [*TAGS]}
    if base_model is not None:
        data["base_model"] = base_model
    return f"---\n{yaml.safe_dump(data, sort_keys=False)}---"


def _title(circuit: Circuit) -> str:
    task, model = (circuit.provenance.get(name, {}).get("name") for name in ("task", "model"))
    kinds = " + ".join(f"{circuit.count(kind):,} {kind}" for kind in circuit.sites.kinds)
    return _plain(kinds + (f" of {model}" if model else "") + (f" for {task}" if task else ""))


def _facts(circuit: Circuit) -> dict[str, Any]:
    """What provenance tells in few words."""
    told = circuit.provenance
    method = told.get("method")
    facts = {
        "method": method.get("name") if isinstance(method, Mapping) else method,
        "model": told.get("model", {}).get("name"),
        "weights": told.get("model", {}).get("weights"),
        "task": told.get("task", {}).get("name"),
        "examples": told.get("task", {}).get("fingerprint"),
        "ablation": told.get("ablation", {}).get("name"),
        "convention": str(circuit.graph.convention) if "edges" in circuit.sites.kinds else None,
        "kept": f"{len(circuit):,} of {len(circuit.sites):,} ({', '.join(circuit.sites.kinds)})",
        "effective": f"{circuit.n_effective:,}" if "edges" in circuit.sites.kinds else None,
        "seed": told.get("seed"),
        "versions": ", ".join(f"{name} {version}" for name, version in told.get("versions", {}).items()) or None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _table(values: Mapping[str, Any]) -> str:
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {_plain(name)} | {_plain(value)} |" for name, value in values.items())]
    )


def _figures(figures: Any) -> str:
    return _table(figures) if isinstance(figures, Mapping) else _fenced(str(figures), "")


def _fenced(text: str, language: str) -> str:
    """Text as it is, between fences that are longer than any in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def _plain(value: Any) -> str:
    """One line that is no markup, whatever a name holds."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(value).split()))
