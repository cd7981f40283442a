"""Docstrings in an attention-only model of 4 layers: six heads, two of which name the next argument."""

from __future__ import annotations

from tlprune.graph import LOGITS, Architecture
from tlprune.truths.stating import INPUT, Classes, Links, Published

CLASSES: Classes = {"argument movers": ("a3.h0", "a3.h6")}
LINKS: Links = {
    (INPUT, "a0.h5"): "v",
    (INPUT, "a1.h2"): "qk",
    ("a0.h5", "a1.h2"): "qk",
    (INPUT, "a1.h4"): "v",
    ("a0.h5", "a1.h4"): "v",
    (INPUT, "a2.h0"): "qk",
    ("a0.h5", "a2.h0"): "qk",
    ("a1.h4", "a2.h0"): "v",
    (INPUT, "argument movers"): "v",
    ("a0.h5", "argument movers"): "v",
    ("a1.h2", "argument movers"): "k",
    ("a2.h0", "argument movers"): "k",
    ("a1.h4", "argument movers"): "q",
    ("argument movers", LOGITS): "",
}

DOCSTRING = Published(
    name="docstring",
    model="attn-only-4l (NeelNanda/Attn_Only_4L512W_C4_Code)",
    architecture=Architecture(n_layers=4, n_heads=8, n_kv_heads=8, has_mlp=False, position_embedding=True),
    source="Heimersheim and Janiak 2023, A circuit for Python docstrings in a 4-layer attention-only transformer; its "
    "edges as in the appendix of Conmy et al. 2023 (arXiv 2304.14997)",
    convention="one node for both embeddings; q, k and v apart; of q, k and v only those through which the circuit "
    "works; resampled from prompts with other arguments; 37 edges with those inside of heads",
    classes=CLASSES,
    links=LINKS,
).truth
