"""Methods that find circuits. Adding one is a file here, a line in this table, a row in the contract test, a page."""

from __future__ import annotations

from tlprune.methods.eap import EAP
from tlprune.methods.eap_ig import EAPIG
from tlprune.methods.edge_pruning import EdgePruning
from tlprune.methods.random import Random

METHODS = {
    "eap": EAP,
    "eap-ig": EAPIG,
    "edge-pruning": EdgePruning,
    "random": Random,
}
