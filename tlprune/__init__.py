"""Sparse subnetworks of transformers: masks on any TransformerLens model, and the methods that find them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlprune import schedules as schedules
    from tlprune import tasks as tasks
    from tlprune import truths as truths
    from tlprune.benchmarking.running import benchmark as benchmark
    from tlprune.circuit import Circuit as Circuit
    from tlprune.conventions import convert as convert
    from tlprune.drawing import draw as draw
    from tlprune.drawing import draw_density as draw_density
    from tlprune.drawing import draw_faithfulness as draw_faithfulness
    from tlprune.drawing import draw_keep_counts as draw_keep_counts
    from tlprune.drawing import draw_overlay as draw_overlay
    from tlprune.drawing import draw_training as draw_training
    from tlprune.evaluation.areas import faithfulness_areas as faithfulness_areas
    from tlprune.evaluation.baselines import Evaluation as Evaluation
    from tlprune.evaluation.baselines import evaluate as evaluate
    from tlprune.evaluation.comparison import compare as compare
    from tlprune.evaluation.completeness import completeness as completeness
    from tlprune.evaluation.curve import faithfulness_curve as faithfulness_curve
    from tlprune.evaluation.equal_sizes import equal_sizes as equal_sizes
    from tlprune.evaluation.greedy import GreedyAnswers as GreedyAnswers
    from tlprune.evaluation.greedy import greedy_answers as greedy_answers
    from tlprune.evaluation.matrix import ablation_matrix as ablation_matrix
    from tlprune.evaluation.minimality import minimality as minimality
    from tlprune.evaluation.overlap import overlap as overlap
    from tlprune.evaluation.overlap import stability as stability
    from tlprune.evaluation.recovery import circuits_auc as circuits_auc
    from tlprune.evaluation.recovery import node_scores as node_scores
    from tlprune.evaluation.recovery import recovery as recovery
    from tlprune.evaluation.refound import StabilityReport as StabilityReport
    from tlprune.evaluation.refound import redrawn as redrawn
    from tlprune.evaluation.refound import refound as refound
    from tlprune.evaluation.shared import SharedParts as SharedParts
    from tlprune.evaluation.shared import shared_parts as shared_parts
    from tlprune.evaluation.spread import repaired as repaired
    from tlprune.evaluation.spread import spread as spread
    from tlprune.evaluation.subcases import subcases as subcases
    from tlprune.finetuning.prompt_tuning import PromptTuning as PromptTuning
    from tlprune.gates import Gate as Gate
    from tlprune.gates import HardConcrete as HardConcrete
    from tlprune.gates import Heaviside as Heaviside
    from tlprune.gates import Sigmoid as Sigmoid
    from tlprune.gates import StraightThrough as StraightThrough
    from tlprune.gates import UniformGradient as UniformGradient
    from tlprune.graph import Convention as Convention
    from tlprune.graph import Graph as Graph
    from tlprune.inducing import induced as induced
    from tlprune.interop.acdc import from_acdc as from_acdc
    from tlprune.interop.auto_circuit import from_auto_circuit as from_auto_circuit
    from tlprune.interop.edge_pruning import from_edge_pruning as from_edge_pruning
    from tlprune.interop.edge_pruning import to_edge_pruning as to_edge_pruning
    from tlprune.interop.edge_pruning_gates import EdgePruningGates as EdgePruningGates
    from tlprune.interop.edge_pruning_gates import from_edge_pruning_gates as from_edge_pruning_gates
    from tlprune.interop.mib import MibFile as MibFile
    from tlprune.interop.mib import from_mib as from_mib
    from tlprune.interop.mib import to_mib as to_mib
    from tlprune.interop.mib_submission import check_mib_submission as check_mib_submission
    from tlprune.interop.mib_submission import mib_submission as mib_submission
    from tlprune.knowledge.baselines import knowledge_baseline as knowledge_baseline
    from tlprune.knowledge.downstream import downstream as downstream
    from tlprune.knowledge.downstream_plan import DownstreamPlan as DownstreamPlan
    from tlprune.knowledge.figures import KnowledgeFigures as KnowledgeFigures
    from tlprune.knowledge.figures import knowledge_figures as knowledge_figures
    from tlprune.knowledge.finding import knowledge_subnetworks as knowledge_subnetworks
    from tlprune.knowledge.resizing import knowledge_sensitivity as knowledge_sensitivity
    from tlprune.knowledge.seeds import KnowledgeSeeds as KnowledgeSeeds
    from tlprune.knowledge.structure import Structure as Structure
    from tlprune.knowledge.structure import structure as structure
    from tlprune.knowledge.tradeoff import knowledge_tradeoff as knowledge_tradeoff
    from tlprune.learning.budgets import Lagrangian as Lagrangian
    from tlprune.learning.budgets import Penalty as Penalty
    from tlprune.learning.estimate import estimate as estimate
    from tlprune.learning.fit import fit as fit
    from tlprune.learning.fit import steps as steps
    from tlprune.learning.fit_constant import fit_constant as fit_constant
    from tlprune.learning.memory import Estimate as Estimate
    from tlprune.learning.objectives import KL as KL
    from tlprune.learning.objectives import CrossEntropy as CrossEntropy
    from tlprune.learning.objectives import LogitDifference as LogitDifference
    from tlprune.learning.objectives import SquaredError as SquaredError
    from tlprune.learning.objectives import Uniform as Uniform
    from tlprune.learning.optimiser import Optimiser as Optimiser
    from tlprune.learning.records import Step as Step
    from tlprune.masking.ablation import GaussianNoise as GaussianNoise
    from tlprune.masking.ablation import Resample as Resample
    from tlprune.masking.ablation import Zero as Zero
    from tlprune.masking.constants import Constant as Constant
    from tlprune.masking.masked import Masked as Masked
    from tlprune.masking.masks import Masks as Masks
    from tlprune.masking.means import Mean as Mean
    from tlprune.masking.means import MeasuredMean as MeasuredMean
    from tlprune.masking.sites import attention_edges as attention_edges
    from tlprune.masking.sites import edges as edges
    from tlprune.masking.sites import heads as heads
    from tlprune.masking.sites import layers as layers
    from tlprune.masking.sites import mlps as mlps
    from tlprune.masking.sites import neurons as neurons
    from tlprune.masking.sites import nodes as nodes
    from tlprune.masking.sites import prunable as prunable
    from tlprune.masking.sites import weights as weights
    from tlprune.methods.acdc import ACDC as ACDC
    from tlprune.methods.alive import DeadCircuitError as DeadCircuitError
    from tlprune.methods.atp import AtP as AtP
    from tlprune.methods.attention_eap import AttentionEAP as AttentionEAP
    from tlprune.methods.compression import density_for as density_for
    from tlprune.methods.criteria import SNIP as SNIP
    from tlprune.methods.criteria import GradCAM as GradCAM
    from tlprune.methods.criteria import Magnitude as Magnitude
    from tlprune.methods.criteria import MagnitudeActivation as MagnitudeActivation
    from tlprune.methods.criteria import MagnitudeGradient as MagnitudeGradient
    from tlprune.methods.criteria import RandomCriterion as RandomCriterion
    from tlprune.methods.criteria import SmoothGrad as SmoothGrad
    from tlprune.methods.criteria import SmoothGradCAM as SmoothGradCAM
    from tlprune.methods.criteria import Wanda as Wanda
    from tlprune.methods.eap import EAP as EAP
    from tlprune.methods.eap_ig import EAPIG as EAPIG
    from tlprune.methods.edge_pruning import EdgePruning as EdgePruning
    from tlprune.methods.ensemble import Ensemble as Ensemble
    from tlprune.methods.hap import HAP as HAP
    from tlprune.methods.heuristic_core import HeuristicCore as HeuristicCore
    from tlprune.methods.hisp import HISP as HISP
    from tlprune.methods.information_flow import InformationFlowRoutes as InformationFlowRoutes
    from tlprune.methods.knowledge import KnowledgeSubnetwork as KnowledgeSubnetwork
    from tlprune.methods.magnitude import WeightMagnitude as WeightMagnitude
    from tlprune.methods.multi_granular import MultiGranularPruning as MultiGranularPruning
    from tlprune.methods.paper_recipes import PaperRecipe as PaperRecipe
    from tlprune.methods.paper_recipes import recipes as recipes
    from tlprune.methods.patching import AttentionPatching as AttentionPatching
    from tlprune.methods.patching import EdgePatching as EdgePatching
    from tlprune.methods.patching import NodePatching as NodePatching
    from tlprune.methods.pooling import pooled as pooled
    from tlprune.methods.predictivity import Predictivity as Predictivity
    from tlprune.methods.provenance import method_from as method_from
    from tlprune.methods.random import Random as Random
    from tlprune.methods.random import RandomNodes as RandomNodes
    from tlprune.methods.relp import RelP as RelP
    from tlprune.methods.saliency import Saliency as Saliency
    from tlprune.methods.saliency import saliency_scores as saliency_scores
    from tlprune.methods.single_neurons import neuron_accuracy as neuron_accuracy
    from tlprune.methods.single_neurons import neuron_activations as neuron_activations
    from tlprune.methods.single_neurons import prompt_activations as prompt_activations
    from tlprune.methods.skill_neurons import SkillNeurons as SkillNeurons
    from tlprune.methods.strategies import saliency_strategy as saliency_strategy
    from tlprune.methods.subnetwork_probing import SubnetworkProbing as SubnetworkProbing
    from tlprune.methods.uniform_gradient_sampling import UGS as UGS
    from tlprune.models.bridge import bridge as bridge
    from tlprune.models.export import to_huggingface as to_huggingface
    from tlprune.models.huggingface import from_huggingface as from_huggingface
    from tlprune.models.load import load as load
    from tlprune.models.outline import outline as outline
    from tlprune.models.planted import planted as planted
    from tlprune.models.shrinking import shrink as shrink
    from tlprune.models.shrunk_files import load_shrunk as load_shrunk
    from tlprune.models.taught import taught as taught
    from tlprune.models.tracr.program import tracr as tracr
    from tlprune.named import forced as forced
    from tlprune.prompts.prompt import Prompt as Prompt
    from tlprune.pruning.grid import saliency_grid as saliency_grid
    from tlprune.pruning.grid_plan import SaliencyGrid as SaliencyGrid
    from tlprune.pruning.grid_result import GridResult as GridResult
    from tlprune.pruning.mask_overlap import MaskOverlap as MaskOverlap
    from tlprune.pruning.mask_overlap import mask_overlap as mask_overlap
    from tlprune.pruning.removed_heads import RemovedHeads as RemovedHeads
    from tlprune.pruning.removed_heads import removed_heads as removed_heads
    from tlprune.pruning.savings import Savings as Savings
    from tlprune.pruning.savings import savings as savings
    from tlprune.random_circuits import connected_random as connected_random
    from tlprune.scores import Scores as Scores
    from tlprune.sealing import LeakageError as LeakageError
    from tlprune.sealing import sealed as sealed
    from tlprune.selection.bisected import Bisected as Bisected
    from tlprune.selection.consistent import Consistent as Consistent
    from tlprune.selection.greedy import Greedy as Greedy
    from tlprune.selection.pattern import NM as NM
    from tlprune.selection.program import Connected as Connected
    from tlprune.selection.pruned import Pruned as Pruned
    from tlprune.selection.ranked import Ratio as Ratio
    from tlprune.selection.ranked import Selection as Selection
    from tlprune.selection.ranked import Threshold as Threshold
    from tlprune.selection.ranked import Top as Top
    from tlprune.selection.top_connected import TopConnected as TopConnected
    from tlprune.selection.within import PerOutput as PerOutput
    from tlprune.selection.within import PerTensor as PerTensor
    from tlprune.sites import Sites as Sites
    from tlprune.skills.choosing import top_neurons as top_neurons
    from tlprune.skills.correlation import SkillCorrelation as SkillCorrelation
    from tlprune.skills.correlation import skill_correlation as skill_correlation
    from tlprune.skills.histogram import predictivity_histogram as predictivity_histogram
    from tlprune.skills.perturbation import PerturbationCurve as PerturbationCurve
    from tlprune.skills.perturbation import perturbation as perturbation
    from tlprune.skills.pruning import skill_pruned as skill_pruned
    from tlprune.skills.specificity import SkillSpecificity as SkillSpecificity
    from tlprune.skills.specificity import skill_specificity as skill_specificity
    from tlprune.skills.transfer import PromptTransfer as PromptTransfer
    from tlprune.skills.transfer import prompt_transfer as prompt_transfer
    from tlprune.studies.ablating import one_at_a_time as one_at_a_time
    from tlprune.studies.agreement import agreement as agreement
    from tlprune.studies.collection import Subnetworks as Subnetworks
    from tlprune.studies.comparison import StudyComparison as StudyComparison
    from tlprune.studies.comparison import compare_studies as compare_studies
    from tlprune.studies.core import core as core
    from tlprune.studies.domains import Domains as Domains
    from tlprune.studies.domains import domains as domains
    from tlprune.studies.effective_size import effective_size as effective_size
    from tlprune.studies.effective_sizes import effective_sizes as effective_sizes
    from tlprune.studies.forcing import forcing as forcing
    from tlprune.studies.predictions import Predictions as Predictions
    from tlprune.studies.predictions import predict as predict
    from tlprune.studies.searching import subnetworks as subnetworks
    from tlprune.studies.shrinkage import shrinkage as shrinkage
    from tlprune.studies.sweeping import Sweep as Sweep
    from tlprune.studies.sweeping import sweep as sweep
    from tlprune.task import Batch as Batch
    from tlprune.task import Task as Task
    from tlprune.task import Tokens as Tokens
    from tlprune.truths import truth as truth
    from tlprune.views.attention import attention_view as attention_view
    from tlprune.views.attention import head_patterns as head_patterns
    from tlprune.views.tokens import position_importance as position_importance
    from tlprune.views.tokens import token_view as token_view

__version__ = "0.1.0"

# Where each public name lives; a name is imported when it is first used, so that `import tlprune` costs nothing.
_HOMES = {
    "schedules": "schedules",
    "tasks": "tasks",
    "benchmark": "benchmarking.running",
    "truths": "truths",
    "Circuit": "circuit",
    "convert": "conventions",
    "draw": "drawing",
    "draw_density": "drawing",
    "draw_faithfulness": "drawing",
    "draw_keep_counts": "drawing",
    "draw_overlay": "drawing",
    "draw_training": "drawing",
    "faithfulness_areas": "evaluation.areas",
    "Evaluation": "evaluation.baselines",
    "evaluate": "evaluation.baselines",
    "compare": "evaluation.comparison",
    "completeness": "evaluation.completeness",
    "faithfulness_curve": "evaluation.curve",
    "equal_sizes": "evaluation.equal_sizes",
    "GreedyAnswers": "evaluation.greedy",
    "greedy_answers": "evaluation.greedy",
    "ablation_matrix": "evaluation.matrix",
    "minimality": "evaluation.minimality",
    "overlap": "evaluation.overlap",
    "stability": "evaluation.overlap",
    "circuits_auc": "evaluation.recovery",
    "node_scores": "evaluation.recovery",
    "recovery": "evaluation.recovery",
    "StabilityReport": "evaluation.refound",
    "redrawn": "evaluation.refound",
    "refound": "evaluation.refound",
    "SharedParts": "evaluation.shared",
    "shared_parts": "evaluation.shared",
    "repaired": "evaluation.spread",
    "spread": "evaluation.spread",
    "subcases": "evaluation.subcases",
    "PromptTuning": "finetuning.prompt_tuning",
    "Gate": "gates",
    "HardConcrete": "gates",
    "Heaviside": "gates",
    "Sigmoid": "gates",
    "StraightThrough": "gates",
    "UniformGradient": "gates",
    "Convention": "graph",
    "Graph": "graph",
    "induced": "inducing",
    "from_acdc": "interop.acdc",
    "from_auto_circuit": "interop.auto_circuit",
    "from_edge_pruning": "interop.edge_pruning",
    "to_edge_pruning": "interop.edge_pruning",
    "EdgePruningGates": "interop.edge_pruning_gates",
    "from_edge_pruning_gates": "interop.edge_pruning_gates",
    "MibFile": "interop.mib",
    "from_mib": "interop.mib",
    "to_mib": "interop.mib",
    "check_mib_submission": "interop.mib_submission",
    "mib_submission": "interop.mib_submission",
    "downstream": "knowledge.downstream",
    "DownstreamPlan": "knowledge.downstream_plan",
    "Structure": "knowledge.structure",
    "structure": "knowledge.structure",
    "knowledge_baseline": "knowledge.baselines",
    "KnowledgeFigures": "knowledge.figures",
    "knowledge_figures": "knowledge.figures",
    "knowledge_subnetworks": "knowledge.finding",
    "knowledge_sensitivity": "knowledge.resizing",
    "KnowledgeSeeds": "knowledge.seeds",
    "knowledge_tradeoff": "knowledge.tradeoff",
    "Lagrangian": "learning.budgets",
    "Penalty": "learning.budgets",
    "estimate": "learning.estimate",
    "fit": "learning.fit",
    "steps": "learning.fit",
    "fit_constant": "learning.fit_constant",
    "Estimate": "learning.memory",
    "KL": "learning.objectives",
    "CrossEntropy": "learning.objectives",
    "LogitDifference": "learning.objectives",
    "SquaredError": "learning.objectives",
    "Uniform": "learning.objectives",
    "Optimiser": "learning.optimiser",
    "Step": "learning.records",
    "GaussianNoise": "masking.ablation",
    "Resample": "masking.ablation",
    "Zero": "masking.ablation",
    "Constant": "masking.constants",
    "Masked": "masking.masked",
    "Masks": "masking.masks",
    "Mean": "masking.means",
    "MeasuredMean": "masking.means",
    "attention_edges": "masking.sites",
    "edges": "masking.sites",
    "heads": "masking.sites",
    "layers": "masking.sites",
    "mlps": "masking.sites",
    "neurons": "masking.sites",
    "nodes": "masking.sites",
    "prunable": "masking.sites",
    "weights": "masking.sites",
    "AttentionEAP": "methods.attention_eap",
    "EAP": "methods.eap",
    "AtP": "methods.atp",
    "GradCAM": "methods.criteria",
    "Magnitude": "methods.criteria",
    "MagnitudeActivation": "methods.criteria",
    "MagnitudeGradient": "methods.criteria",
    "RandomCriterion": "methods.criteria",
    "SmoothGrad": "methods.criteria",
    "SmoothGradCAM": "methods.criteria",
    "SNIP": "methods.criteria",
    "Wanda": "methods.criteria",
    "ACDC": "methods.acdc",
    "DeadCircuitError": "methods.alive",
    "EAPIG": "methods.eap_ig",
    "density_for": "methods.compression",
    "EdgePruning": "methods.edge_pruning",
    "Ensemble": "methods.ensemble",
    "HAP": "methods.hap",
    "HeuristicCore": "methods.heuristic_core",
    "HISP": "methods.hisp",
    "InformationFlowRoutes": "methods.information_flow",
    "KnowledgeSubnetwork": "methods.knowledge",
    "WeightMagnitude": "methods.magnitude",
    "MultiGranularPruning": "methods.multi_granular",
    "PaperRecipe": "methods.paper_recipes",
    "recipes": "methods.paper_recipes",
    "AttentionPatching": "methods.patching",
    "EdgePatching": "methods.patching",
    "NodePatching": "methods.patching",
    "pooled": "methods.pooling",
    "Predictivity": "methods.predictivity",
    "method_from": "methods.provenance",
    "Random": "methods.random",
    "RandomNodes": "methods.random",
    "RelP": "methods.relp",
    "Saliency": "methods.saliency",
    "saliency_scores": "methods.saliency",
    "neuron_accuracy": "methods.single_neurons",
    "neuron_activations": "methods.single_neurons",
    "prompt_activations": "methods.single_neurons",
    "SkillNeurons": "methods.skill_neurons",
    "saliency_strategy": "methods.strategies",
    "SubnetworkProbing": "methods.subnetwork_probing",
    "UGS": "methods.uniform_gradient_sampling",
    "bridge": "models.bridge",
    "to_huggingface": "models.export",
    "from_huggingface": "models.huggingface",
    "load": "models.load",
    "outline": "models.outline",
    "planted": "models.planted",
    "shrink": "models.shrinking",
    "load_shrunk": "models.shrunk_files",
    "taught": "models.taught",
    "tracr": "models.tracr.program",
    "forced": "named",
    "Prompt": "prompts.prompt",
    "saliency_grid": "pruning.grid",
    "SaliencyGrid": "pruning.grid_plan",
    "GridResult": "pruning.grid_result",
    "MaskOverlap": "pruning.mask_overlap",
    "mask_overlap": "pruning.mask_overlap",
    "RemovedHeads": "pruning.removed_heads",
    "removed_heads": "pruning.removed_heads",
    "Savings": "pruning.savings",
    "savings": "pruning.savings",
    "connected_random": "random_circuits",
    "Scores": "scores",
    "Bisected": "selection.bisected",
    "Consistent": "selection.consistent",
    "Greedy": "selection.greedy",
    "NM": "selection.pattern",
    "Connected": "selection.program",
    "Pruned": "selection.pruned",
    "Ratio": "selection.ranked",
    "Selection": "selection.ranked",
    "Threshold": "selection.ranked",
    "Top": "selection.ranked",
    "TopConnected": "selection.top_connected",
    "PerOutput": "selection.within",
    "PerTensor": "selection.within",
    "Sites": "sites",
    "LeakageError": "sealing",
    "sealed": "sealing",
    "skill_pruned": "skills.pruning",
    "top_neurons": "skills.choosing",
    "SkillCorrelation": "skills.correlation",
    "skill_correlation": "skills.correlation",
    "predictivity_histogram": "skills.histogram",
    "PerturbationCurve": "skills.perturbation",
    "perturbation": "skills.perturbation",
    "SkillSpecificity": "skills.specificity",
    "skill_specificity": "skills.specificity",
    "PromptTransfer": "skills.transfer",
    "prompt_transfer": "skills.transfer",
    "one_at_a_time": "studies.ablating",
    "agreement": "studies.agreement",
    "Subnetworks": "studies.collection",
    "core": "studies.core",
    "Domains": "studies.domains",
    "domains": "studies.domains",
    "effective_size": "studies.effective_size",
    "effective_sizes": "studies.effective_sizes",
    "forcing": "studies.forcing",
    "Predictions": "studies.predictions",
    "predict": "studies.predictions",
    "subnetworks": "studies.searching",
    "StudyComparison": "studies.comparison",
    "compare_studies": "studies.comparison",
    "shrinkage": "studies.shrinkage",
    "Sweep": "studies.sweeping",
    "sweep": "studies.sweeping",
    "Batch": "task",
    "Task": "task",
    "Tokens": "task",
    "truth": "truths",
    "attention_view": "views.attention",
    "head_patterns": "views.attention",
    "position_importance": "views.tokens",
    "token_view": "views.tokens",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tlprune' has no attribute {name!r}")
    home = importlib.import_module(f"tlprune.{_HOMES[name]}")
    value = home if _HOMES[name] == name and name in ("schedules", "tasks", "truths") else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
