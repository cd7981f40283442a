"""Compiled programs, whose circuits are computed from their weights and their behaviour on every input."""

from __future__ import annotations

from tlprune.models.tracr.compiler import KNOWN
from tlprune.models.tracr.program import tracr_circuit
from tlprune.truths.stating import Truth

TRACR: dict[str, Truth] = {
    name: Truth(
        task=name,
        model=f"tp.tracr({name!r}).model",
        source="behaviour on every input, see tlprune.tracr; after Lindner et al. 2023 (arXiv 2301.05062)",
        convention="one node for both embeddings; q, k and v apart; zero ablation of one edge at a time changes what "
        "is decoded of some input",
        circuit=tracr_circuit,
    )
    for name in KNOWN
}
