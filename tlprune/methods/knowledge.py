"""Knowledge-critical subnetworks: the few weights whose removal erases chosen facts and nothing else."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from tlprune.backends import backend_of
from tlprune.gates import Gate, HardConcrete, StraightThrough
from tlprune.learning.budgets import Penalty
from tlprune.learning.objectives import KL, CrossEntropy, Sum, Uniform
from tlprune.learning.optimiser import Optimiser
from tlprune.masking.ablation import Ablation, Zero
from tlprune.masking.masks import Masks
from tlprune.masking.sites import weights as weight_sites
from tlprune.methods.ablations import ablation_for
from tlprune.methods.mask_training import MaskTraining
from tlprune.schedules import constant, join, linear
from tlprune.sites import Sites
from tlprune.task import MAIN, Batch, Discovery

CONTROL, TEXT = "control", "text"
UPPER_HALF = "upper half"
UNDECIDED = StraightThrough().initial  # each weight is in the subnetwork with probability 0.45
STEPS = {"paper": 40_000, "short": 600}
WARMUP = 0.1  # of the steps
GATES: dict[str, Gate] = {"straight-through": StraightThrough(), "hard concrete": HardConcrete(initial=UNDECIDED)}
Slot = Literal["right", "released"]


@dataclass(frozen=True, kw_only=True)
class KnowledgeSubnetwork(MaskTraining):
    """Find the weights, or input or output neurons, whose removal erases facts and leaves all else as it is.

    The task has three streams: ``"main"``, the facts to erase, and ``"control"``, other facts, prompts up to and
    including the tail of a triplet and read in front of it; ``"text"``, read at all positions. With ``m`` drawn for
    every weight and every term, the model *without* the subnetwork, ``W (1 - m)``, is trained to know nothing of the
    first and to be itself on the others, under a price for the size of the subnetwork:

        ``suppression KL(uniform || q) + control KL(p || q) + text KL(p || q) + expression CE + price mean P(m = 1)``

    with ``p`` the full model and ``q`` that without the subnetwork; ``CE`` is of the tails, by the subnetwork alone,
    ``W m``. The circuit is the subnetwork: what it *keeps* is what is to be removed, so its complement is the model
    that has forgotten, and its density is what the source calls one less the sparsity. Ablated weights are 0 whatever
    ``ablation`` says.

    Attributes:
        layers: ``"upper half"`` (of an odd number the larger), or numbers of layers such as ``"6-11"`` or ``"0,3-5"``.
        matrices: which matrices of these layers, by names such as ``"attn.W_*"``; several with ``|``.
        unit: what is in the subnetwork or not: a ``"weight"``; a ``"row"``, all weights of one input neuron; or a
            ``"column"``, all of one output neuron.
        gate: ``"straight-through"``, as published, or ``"hard concrete"``; both start at a probability of 0.45.
        suppression: weight of the divergence from knowing nothing, on the facts to erase.
        control: weight of the divergence from the full model on other facts; 0 leaves the stream out.
        text: the same on text.
        expression: weight of the cross entropy of the erased facts' tails, by the subnetwork alone; 0 leaves it out.
        price: price of a subnetwork of all weights instead of none, in nats, in the first half of the steps.
        last_price: what it rises to, in a straight line, in the second half.
        recipe: ``"paper"``: 40,000 steps; ``"short"``: 600, for models of a few layers.
        steps: training steps; by default the recipe's.
        rate: learning rate of the masks; it rises to this over the first tenth of the steps and stays.
        target_batch: facts to erase per step, all of them where there are fewer.
        control_batch: other facts per step.
        text_batch: blocks of text per step.
        slot: where facts are read: ``"right"``: at the position in front of the tail, which predicts it;
            ``"released"``: one position later, as the source's code does, where the tail itself is the input and what
            follows it is predicted.
        validate_every: steps between hard measurements on validation examples.
        seed: of mask samples and example order; the source has 84, 1318 and 735.

    Raises:
        ValueError: a number is out of range; the model has no such layers or matrices; the task lacks a stream or has
            it without examples, or its prompts end in front of the tail and the slot is the released one.

    Source: Bayazit, Foroutan, Chen, Weiss, Bosselut, "Discovering Knowledge-Critical Subnetworks in Pretrained Language
    Models" (EMNLP 2024), sections 3 and 4.

    Example:
        >>> import tlprune as tp
        >>> sites = KnowledgeSubnetwork(matrices="mlp.W_*").sites(tp.planted("induction").model)
        >>> [matrix.name for matrix in sites.group("weights").matrices]
        ['blocks.1.mlp.W_in', 'blocks.1.mlp.W_out']
    """

    layers: str = UPPER_HALF
    matrices: str = "attn.W_*|mlp.W_*"
    unit: Literal["weight", "row", "column"] = "weight"
    gate: Literal["straight-through", "hard concrete"] = "straight-through"
    suppression: float = 1.5
    control: float = 1.0
    text: float = 1.0
    expression: float = 0.0
    price: float = 2.0
    last_price: float = 3.0
    recipe: Literal["paper", "short"] = "paper"
    steps: int | None = None
    rate: float = 0.2
    target_batch: int = 250
    control_batch: int = 250
    text_batch: int = 10
    slot: Slot = "right"
    validate_every: int | None = None
    seed: int = 84

    def __post_init__(self) -> None:
        choices = {"recipe": tuple(STEPS), "gate": tuple(GATES), "slot": get_args(Slot)}
        choices["unit"] = ("weight", "row", "column")
        for name, known in choices.items():
            if getattr(self, name) not in known:
                told = " or ".join(map(repr, known))
                raise ValueError(f"{name} must be {told} but is {getattr(self, name)!r}. Choose one of these.")
        for name in ("suppression", "control", "text", "expression", "price", "last_price"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise ValueError(f"{name} must be at least 0 and finite but is {value}. A weight of 0 leaves it out.")
        if not self.suppression + self.expression:
            raise ValueError(
                "A subnetwork needs facts to suppress or to express, but both weights are 0. Give suppression=1.5."
            )
        for name in ("steps", "target_batch", "control_batch", "text_batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 but is {value}. Leave it out for the recipe's own.")
        _ranges(self.layers)

    @property
    def objective(self) -> Sum:
        """What training lowers beside the price: a term for each weight that is not 0."""
        terms = (
            (self.suppression, Uniform(run="complement")),
            (self.control, KL(on=CONTROL, run="complement")),
            (self.text, KL(on=TEXT, run="complement")),
            (self.expression, CrossEntropy()),
        )
        return Sum(tuple(term for term in terms if term[0]))

    def sites(self, model: Any) -> Sites:
        layers = chosen_layers(self.layers, backend_of(model).architecture.n_layers)
        parts = [f"blocks.{layer}.{part}" for layer in layers for part in self.matrices.split("|")]
        return weight_sites(model, "|".join(parts), unit=self.unit)

    def keep(self, sites: Sites) -> dict[str, int]:
        return {}

    def ablation(self, discovery: Discovery, given: Ablation | None) -> Ablation:
        """The given one, by default zero; no activation is replaced, and ablated weights are 0 whatever it is."""
        return ablation_for(discovery, given or Zero())

    def examples(self, discovery: Discovery) -> Discovery:
        """The streams with a weight, facts read at the chosen slot."""
        wanted = dict.fromkeys(objective.on for _, objective in self.objective.terms)
        splits = {name: _split(discovery, name) for name in wanted}
        if self.slot == "released":
            read_later = {name: (_later(one), _later(two)) for name, (one, two) in splits.items() if name != TEXT}
            splits |= read_later
        return replace(discovery, streams=splits)

    def masks(self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool) -> Masks:
        return Masks(sites, GATES[self.gate])

    def plan(self, masks: Masks) -> dict[str, Any]:
        steps = self.steps or STEPS[self.recipe]
        half = steps // 2
        rise = linear(self.price, self.last_price, steps=steps - half)
        return {
            "objective": self.objective,
            "budget": Penalty(join(constant(self.price), rise, at=half)),
            "steps": steps,
            "batch_size": {MAIN: self.target_batch, CONTROL: self.control_batch, TEXT: self.text_batch},
            "optimiser": Optimiser(rate=self.rate, decay=False, warmup=round(WARMUP * steps)),
            "validate_every": self.validate_every,
            "seed": self.seed,
        }


def chosen_layers(layers: str, total: int) -> list[int]:
    """Numbers of the layers that ``layers`` tells of a model with ``total`` of them.

    Raises:
        ValueError: the model does not have these layers, or nothing that can be read is told.

    Example:
        >>> chosen_layers("upper half", 12), chosen_layers("0,3-5", 12)
        ([6, 7, 8, 9, 10, 11], [0, 3, 4, 5])
    """
    if layers == UPPER_HALF:
        return list(range(total // 2, total))
    found = sorted({layer for first, last in _ranges(layers) for layer in range(first, last + 1)})
    if found[-1] >= total:
        raise ValueError(
            f"layers must lie between 0 and {total - 1} in this model but are {layers!r}. Choose some of these, or "
            f"{UPPER_HALF!r}."
        )
    return found


def _ranges(layers: str) -> list[tuple[int, int]]:
    """First and last of each range; of the upper half, which depends on the model, none."""
    if layers == UPPER_HALF:
        return []
    found = [re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part) for part in layers.split(",")]
    ranges = [(int(one[1]), int(one[2] or one[1])) for one in found if one]
    if len(ranges) < len(found) or any(first > last for first, last in ranges):
        raise ValueError(
            f"layers must be {UPPER_HALF!r} or numbers such as '6-11' or '0,3-5' but is {layers!r}. Write it like one "
            "of these."
        )
    return ranges


def _split(discovery: Discovery, stream: str) -> tuple[Batch, Batch]:
    """Training and validation examples of a stream; a ValueError where there are none."""
    splits = discovery.streams.get(stream, ())
    if not splits or not all(map(len, splits)):
        lacks = "has it empty" if splits else f"has {', '.join(map(repr, discovery.streams))}"
        raise ValueError(
            f"Knowledge-critical subnetworks need examples in the streams 'main' (facts to erase), 'control' (other "
            f"facts) and 'text', but of {stream!r} task {discovery.name!r} {lacks}. Give it examples, or the weight 0, "
            "which leaves the stream out."
        )
    return splits


def _later(batch: Batch) -> Batch:
    """The same prompts read one position later, at the tail."""
    positions = batch.positions + 1
    if bool((positions >= batch.clean.lengths[:, None].to(positions.device)).any()):
        raise ValueError(
            "The released slot is the tail's own position, but some prompts end in front of it. Build prompts that "
            "include their tail, or use slot='right'."
        )
    return replace(batch, positions=positions)
