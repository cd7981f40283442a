"""Methods that find circuits. Adding one is a file here, a line in this table, a row in the contract test, a page."""

from __future__ import annotations

from tlprune.methods.acdc import ACDC
from tlprune.methods.atp import AtP
from tlprune.methods.attention_eap import AttentionEAP
from tlprune.methods.eap import EAP
from tlprune.methods.eap_ig import EAPIG
from tlprune.methods.edge_pruning import EdgePruning
from tlprune.methods.ensemble import Ensemble
from tlprune.methods.hap import HAP
from tlprune.methods.heuristic_core import HeuristicCore
from tlprune.methods.hisp import HISP
from tlprune.methods.information_flow import InformationFlowRoutes
from tlprune.methods.knowledge import KnowledgeSubnetwork
from tlprune.methods.magnitude import WeightMagnitude
from tlprune.methods.multi_granular import MultiGranularPruning
from tlprune.methods.patching import AttentionPatching, EdgePatching, NodePatching
from tlprune.methods.random import Random, RandomNodes
from tlprune.methods.relp import RelP
from tlprune.methods.saliency import Saliency
from tlprune.methods.skill_neurons import SkillNeurons
from tlprune.methods.subnetwork_probing import SubnetworkProbing
from tlprune.methods.uniform_gradient_sampling import UGS

METHODS = {
    "eap": EAP,
    "acdc": ACDC,
    "attention-eap": AttentionEAP,
    "attention-patching": AttentionPatching,
    "eap-ig": EAPIG,
    "edge-pruning": EdgePruning,
    "ensemble": Ensemble,
    "hap": HAP,
    "heuristic-core": HeuristicCore,
    "knowledge": KnowledgeSubnetwork,
    "multi-granular": MultiGranularPruning,
    "edge-patching": EdgePatching,
    "node-patching": NodePatching,
    "atp": AtP,
    "hisp": HISP,
    "information-flow-routes": InformationFlowRoutes,
    "magnitude": WeightMagnitude,
    "random": Random,
    "random-nodes": RandomNodes,
    "relp": RelP,
    "saliency": Saliency,
    "skill-neurons": SkillNeurons,
    "subnetwork-probing": SubnetworkProbing,
    "ugs": UGS,
}
