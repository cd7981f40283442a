"""Greater-than in GPT-2 small: nine heads, the MLPs that read the year, and those that compare it.

Hanna et al. keep all that reaches the queries of the six later heads as it is. Of these many edges Conmy et al. count
the ones from the MLPs, and the edges between the MLPs there.
"""

from __future__ import annotations

from tlprune.graph import LOGITS
from tlprune.truths.ioi import GPT2_SMALL
from tlprune.truths.stating import INPUT, Classes, Links, Published

CLASSES: Classes = {
    "first head": ("a0.h1",),
    "other first heads": ("a0.h3", "a0.h5"),
    "early MLPs": ("m0", "m1", "m2", "m3"),
    "MLPs before queries": ("m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8"),
    "year heads": ("a5.h5", "a6.h1", "a6.h9", "a7.h10", "a8.h11", "a9.h1"),
    "comparing MLPs": ("m8", "m9", "m10", "m11"),
}
LINKS: Links = {
    (INPUT, "first head"): "qkv",
    (INPUT, "other first heads"): "qkv",
    (INPUT, "early MLPs"): "",
    ("first head", "early MLPs"): "",
    ("first head", "year heads"): "qkv",
    ("other first heads", "year heads"): "qkv",
    ("early MLPs", "year heads"): "qkv",
    ("MLPs before queries", "MLPs before queries"): "",
    ("MLPs before queries", "year heads"): "q",
    ("year heads", "comparing MLPs"): "",
    ("comparing MLPs", "comparing MLPs"): "",
    ("year heads", LOGITS): "",
    ("comparing MLPs", LOGITS): "",
}

GREATER_THAN = Published(
    name="greater-than",
    model="GPT-2 small",
    architecture=GPT2_SMALL,
    source="Hanna et al. 2023 (arXiv 2305.00586), section 3 and figure 5; as counted by Conmy et al. 2023 "
    "(arXiv 2304.14997)",
    convention="one node for both embeddings; q, k and v apart; of all that reaches the queries of the later heads the "
    "MLPs alone; resampled from prompts with the year 01; 262 edges with those inside of heads",
    classes=CLASSES,
    links=LINKS,
).truth
