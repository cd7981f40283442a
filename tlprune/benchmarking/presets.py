"""Named comparisons: which models, tasks and methods belong together."""

from __future__ import annotations

from dataclasses import dataclass

from tlprune.benchmarking.sizes import SIZES, TRUE


@dataclass(frozen=True)
class Preset:
    """A comparison by name.

    Attributes:
        behaviours: pairs of a model and a task.
        methods: as of :func:`~tlprune.benchmarking.entries.entries_of`.
        sizes: effective edges.
        ablations: of discovery and evaluation; each is a table of its own.
    """

    behaviours: tuple[tuple[str, str], ...]
    methods: tuple[str, ...]
    sizes: tuple[str, ...]
    ablations: tuple[str, ...]


GPT2 = "gpt2"
# Where no preset is named.
DEFAULTS = Preset((("testbed", "ioi"),), ("random", "eap", "edge-pruning"), SIZES, ("resample",))
# The behaviours and methods of Conmy et al. 2023 whose true circuits are stated, with the methods that came after them.
# Their "random" ablation, activations of a random other prompt, is resample here.
ACDC_GRID = Preset(
    behaviours=((GPT2, "ioi"), (GPT2, "greater-than"), ("attn-only-4l", "docstring")),
    methods=("random", "hisp", "subnetwork-probing", "acdc", "eap", "eap-ig", "edge-pruning"),
    sizes=(*SIZES, TRUE),
    ablations=("resample", "zero"),
)
PRESETS = {"acdc-grid": ACDC_GRID}
