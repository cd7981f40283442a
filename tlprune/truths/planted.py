"""Models whose circuit is known because they were made so."""

from __future__ import annotations

from tlprune.models.planted import planted_circuit
from tlprune.truths.stating import Truth

PLANTED = Truth(
    task="planted",
    model="tp.planted(name).model",
    source="construction, see tlprune.planted; the gates are those of Chen et al. 2025 (arXiv 2505.10039)",
    convention="one node for both embeddings; q, k and v apart; resampled from the task's own twins; every other edge "
    "has no effect in any state of the rest",
    circuit=planted_circuit,
)
