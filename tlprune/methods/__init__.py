"""Methods that find circuits. Adding one is a file here, a line in this table, a row in the contract test, a page."""

from __future__ import annotations

from tlprune.methods.eap import EAP
from tlprune.methods.edge_pruning import EdgePruning
from tlprune.methods.random import Random
from tlprune.methods.subnetwork_probing import SubnetworkProbing
from tlprune.methods.uniform_gradient_sampling import UGS

METHODS = {
    "eap": EAP,
    "edge-pruning": EdgePruning,
    "random": Random,
    "subnetwork-probing": SubnetworkProbing,
    "ugs": UGS,
}
