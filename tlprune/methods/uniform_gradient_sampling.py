"""Uniform gradient sampling: masks that are drawn hard, but for the few whose gradients are sampled."""

from __future__ import annotations

from dataclasses import dataclass

from tlprune.gates import UniformGradient
from tlprune.learning.optimiser import Optimiser
from tlprune.methods.penalised import Penalised


@dataclass(frozen=True, kw_only=True)
class UGS(Penalised):
    """Find the edges, or the heads and MLPs, that are worth their price, by unbiased gradients of random circuits.

    Every site has a :class:`~tlprune.UniformGradient` gate: kept with probability ``sigmoid(log_alpha)``, and drawn
    uniformly from [0, 1] where its gradient is taken. Training lowers the objective plus ``regularisation`` times the
    mean of these probabilities. Sites kept more likely than not are in the circuit, or an exact number.

    **Optimal ablation** is this method under learned constants, which are trained with the masks and in place:

        ``constant = tp.Constant(model, tp.Mean(task.discovery.train().corrupt))``
        ``circuit = tp.UGS().find(model, task, ablation=constant)``
        ``circuit.on(model, ablation=constant)``

    The constants are no part of the circuit; keep ``constant``, and give each run a new one. For the constants that
    suit a finished circuit best, train them once more under it: :func:`~tlprune.fit_constant`.

    The released code takes 3,000 steps (6,000 under learned constants) with 12 mask samples for each of 5 examples. Its
    price is per edge, ``regularisation`` divided by the number of edges, and its rate 0.05 to 0.15, lower by 2 or 5
    under resampling. It also prices nodes with many edges and closes edges on no path in each sample, and constants
    learn from whole ablations alone; these three are not done here.

    Attributes:
        level: ``"edges"``, or ``"nodes"``: every head and MLP.
        regularisation: the price of keeping all sites instead of none, in units of the objective (nats).
        edges: how many edges to keep, those most likely kept; by default all with ``log_alpha > 0``.
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

    Source: Li and Janson, "Optimal ablation for interpretability" (NeurIPS 2024).

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> circuit = UGS(level="nodes", steps=30, samples=2).find(planted.model, planted.task)
        >>> circuit.heads == planted.circuit.heads
        True
    """

    def gate(self) -> UniformGradient:
        return UniformGradient()

    def optimiser(self) -> Optimiser:
        return Optimiser(rate=self.rate, clip=5.0, samples=self.samples)
