"""Subnetwork probing: hard concrete masks under a price for what they are expected to keep."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tlprune.gates import HardConcrete
from tlprune.learning.optimiser import Optimiser
from tlprune.methods.penalised import Penalised

KEPT_AT_START = 0.9  # the median mask value of the first step
INITIAL = math.log((KEPT_AT_START + 0.1) / (1.1 - KEPT_AT_START))


@dataclass(frozen=True, kw_only=True)
class SubnetworkProbing(Penalised):
    """Find the edges, or the heads and MLPs, that are worth their price.

    Every site has a hard concrete gate whose first median value is 0.9. Training lowers the objective plus
    ``regularisation`` times the mean of ``P(z > 0)``. There is no target: the larger the price, the smaller the
    circuit. Sites with ``log_alpha > 0`` are kept, or an exact number.

    The price sets the scale. ACDC's authors train 3,000 full batches at a rate of 0.001 and take a circuit of each of
    some thirty prices from 0.01 to 250 (``rate=0.001, steps=3000, samples=1``); auto-circuit ranks edges after 20
    epochs at a rate of 0.1 and a price of 10. Both use Adam at a constant rate, as here, and one mask sample for a
    batch. At a rate of 0.1 that is less sure: the noise of the first steps can close one input of a planted AND gate
    for good, which four samples keep open.

    Attributes:
        level: ``"edges"``, as auto-circuit has it, or ``"nodes"``: every head and MLP. (ACDC's port masks q, k and v of
            a head apart, and counts edges between what it keeps.)
        regularisation: the price of keeping all sites instead of none, in units of the objective (nats).
        edges: how many edges to keep, those whose gates are most likely open; by default all with ``log_alpha > 0``.
        nodes: the same of nodes.
        objective: what training lowers beside the price.
        embeddings: of edges: ``"merged"``, ``"separate"`` or ``"kept"``, as of :class:`~tlprune.Convention`.
        kv: of edges: under grouped-query attention, k and v readers per key/value head or per query head.
        qkv: of edges: ``"split"``, or ``"joined"``: an edge into a head carries q, k and v together.
        heads: of edges: ``"split"``, or ``"joined"``: all heads of a layer are one node.
        steps: training steps.
        rate: learning rate of the masks.
        samples: mask samples per step, each for an equal part of the batch.
        batch_size: examples per step.
        validate_every: steps between hard measurements on validation examples.
        seed: of mask samples and example order.

    Source: Cao, Sanh, Rush, "Low-Complexity Probing via Finding Subnetworks" (NAACL 2021); as compared with in Conmy et
    al., "Towards Automated Circuit Discovery for Mechanistic Interpretability" (NeurIPS 2023).

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> circuit = SubnetworkProbing(level="nodes", steps=30).find(planted.model, planted.task)
        >>> circuit.heads == planted.circuit.heads
        True
    """

    def gate(self) -> HardConcrete:
        return HardConcrete(initial=INITIAL)

    def optimiser(self) -> Optimiser:
        return Optimiser(rate=self.rate, decay=False, samples=self.samples)
