"""The trained model whose circuit is known because it was taught it."""

from __future__ import annotations

from tlprune.models.taught import taught_circuit
from tlprune.truths.stating import Truth

TAUGHT = Truth(
    task="taught",
    model="tp.taught().model",
    source="interchange-intervention training, see tlprune.taught; after Geiger et al. 2022 (arXiv 2112.00826) and "
    "Gupta et al. 2024 (arXiv 2407.14494)",
    convention="one node for both embeddings; q, k and v apart; resampled from the task's own twins; other edges have "
    "the small effects that the circuit's provenance states",
    circuit=taught_circuit,
)
