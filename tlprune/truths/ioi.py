"""Indirect object identification in GPT-2 small: 26 heads in seven classes, and all MLPs.

Wang et al. describe heads and the paths between them. Paths may run through any MLPs, which their experiments leave
intact; so Conmy et al. count every MLP as part of the circuit.
"""

from __future__ import annotations

from tlprune.graph import LOGITS, Architecture
from tlprune.truths.stating import INPUT, Classes, Links, Published

GPT2_SMALL = Architecture(n_layers=12, n_heads=12, n_kv_heads=12, position_embedding=True)
GPT2_MLPS: tuple[str, ...] = tuple(f"m{layer}" for layer in range(12))

HEADS: Classes = {
    "duplicate token": ("a0.h1", "a0.h10", "a3.h0"),
    "previous token": ("a2.h2", "a4.h11"),
    "induction": ("a5.h5", "a5.h8", "a5.h9", "a6.h9"),
    "S-inhibition": ("a7.h3", "a7.h9", "a8.h6", "a8.h10"),
    "name mover": ("a9.h6", "a9.h9", "a10.h0"),
    "backup name mover": ("a9.h0", "a9.h7", "a10.h1", "a10.h2", "a10.h6", "a10.h10", "a11.h2", "a11.h9"),
    "negative name mover": ("a10.h7", "a11.h10"),
}
MOVERS = ("name mover", "backup name mover", "negative name mover")

# The paths of the paper: who reads whom, through q, k or v.
PATHS: Links = {
    (INPUT, "duplicate token"): "qkv",
    (INPUT, "previous token"): "qkv",
    (INPUT, "S-inhibition"): "q",
    ("previous token", "induction"): "kv",
    ("induction", "S-inhibition"): "kv",
    ("duplicate token", "S-inhibition"): "kv",
    **{(INPUT, mover): "kv" for mover in MOVERS},
    **{("S-inhibition", mover): "q" for mover in MOVERS},
    **{(mover, LOGITS): "" for mover in MOVERS},
}
# Whatever is in the circuit may read and be read through MLPs; and the embeddings reach the logits.
THROUGH_MLPS: Links = {
    (INPUT, LOGITS): "",
    (INPUT, "MLP"): "",
    ("MLP", "MLP"): "",
    ("MLP", LOGITS): "",
    **{("MLP", kind): "qkv" for kind in HEADS},
    **{(kind, "MLP"): "" for kind in HEADS},
}

IOI = Published(
    name="ioi",
    model="GPT-2 small",
    architecture=GPT2_SMALL,
    source="Wang et al. 2022 (arXiv 2211.00593), figure 2 and section 3; as counted by Conmy et al. 2023 "
    "(arXiv 2304.14997)",
    convention="one node for both embeddings; q, k and v apart; all MLPs in the circuit; resampled from prompts with "
    "three other names; 1041 edges with those inside of heads",
    classes={**HEADS, "MLP": GPT2_MLPS},
    links={**PATHS, **THROUGH_MLPS},
).truth
