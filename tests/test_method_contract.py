"""What every method owes: it finds what was planted, repeats itself, looks at no test example, leaves no trace."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from styles import fresh, random_batch
from test_lent_model import assert_unchanged, mixed_settings, state

import tlprune as tp
from tlprune.methods import METHODS
from tlprune.models.planted import Planted
from tlprune.task import Stream, Tokenisation


@dataclass(frozen=True)
class Row:
    """How the contract calls one method.

    Attributes:
        exact: from a number of sites, the quickest settings that still find what was planted; ``None`` where nothing
            of the kind is promised.
        quick: the quickest settings of any kind, with ``size`` sites; the circuit need not be good, but one of edges
            keeps a path: the few best edges of a random model may have none.
        random: whether another seed gives another circuit.
        kind: the sites that it keeps, and the field that says how many; ``"mixed"`` of several kinds.
        size: how many the quick settings keep; ``None`` where the size is a consequence of other settings.
        total: how many there are in a planted model.
        runs: whether it runs the model.
        replaces: whether what replaces an ablated site makes a difference.
        bad: options that the method refuses when it is built, and what it says of each.
        records: how many records the quick settings write to the metrics file.
        streams: those of the task that the method needs.
        classes: how many answers the task has, where the method tells them apart; ``None`` for any.
    """

    exact: Callable[[int], Any] | None
    quick: Any
    random: bool
    kind: Literal["edges", "attention_edges", "nodes", "neurons", "weights", "mixed"] = "edges"
    size: int | None = 20
    total: int = 110
    runs: bool = True
    replaces: bool = True
    bad: Mapping[str, tuple[dict[str, Any], str]] = field(default_factory=dict)
    records: int = 0
    streams: tuple[str, ...] = ("main",)
    classes: int | None = None

    def of(self, size: int) -> Any:
        """The quick settings with another number of sites."""
        return dataclasses.replace(self.quick, **{self.kind: size})

    def truth(self, one: Planted) -> tp.Circuit:
        """The sites of a planted circuit that the method may find: its edges, or the writers on them."""
        if self.kind == "edges":
            return one.circuit
        sites = self.quick.sites(one.model)
        known = {sites.name(index) for index in range(len(sites))}
        return tp.Circuit.from_names(sites, known & {*one.circuit.nodes})


BATCHES = {"no examples": ({"batch_size": 0}, "batch_size must be at least 1")}
OBJECTIVES = {
    "two objectives": (
        {"objective": tp.LogitDifference() + tp.CrossEntropy()},
        "scored by one objective but got a sum",
    ),
    "complement": ({"objective": tp.LogitDifference(run="complement")}, "is of the complement"),
}
PATCHING = BATCHES | OBJECTIVES
GRADIENTS = PATCHING | {"flat": ({"objective": tp.KL()}, "KL from the full model is 0 and flat there")}
# One entry for each method: all that adding one to the contract takes.
ROWS = {
    "acdc": Row(
        exact=lambda edges: tp.ACDC(threshold=0.1),
        quick=tp.ACDC(threshold=0.1),
        random=False,
        size=None,
        bad={
            "negative": ({"threshold": -0.1}, "a positive number, but is -0.1"),
            "no number": ({"threshold": float("nan")}, "a positive number, but is nan"),
            "nothing": ({"threshold": 0.0}, "a positive number, but is 0.0"),
            "endless": ({"threshold": float("inf")}, "a positive number, but is inf"),
            "no examples": ({"examples": 0}, "examples must be at least 1"),
            "no prompts": ({"batch_size": 0}, "batch_size must be at least 1"),
            "what is removed": ({"objective": tp.KL(run="complement")}, "run='kept'"),
            "two streams": ({"objective": tp.KL() + tp.KL(on="other")}, "one on="),
        },
    ),
    "eap": Row(
        exact=lambda edges: tp.EAP(edges=edges),
        quick=tp.EAP(edges=20, batch_size=5, selection=tp.TopConnected()),
        random=False,
        bad={
            "percent": ({"sparsity": 95}, "give 0.95"),
            "no examples": ({"batch_size": 0}, "batch_size must be at least 1"),
            "no gradient": ({"objective": tp.KL()}, "KL compares with the full model and is 0 there"),
            "removed": ({"objective": tp.CrossEntropy(run="complement")}, "cross_entropy is of the complement"),
        },
    ),
    "attention-eap": Row(
        exact=None,  # of the planted models, between named spans; see test_attention_scores.py
        quick=tp.AttentionEAP(attention_edges=5, batch_size=3),
        random=False,
        kind="attention_edges",
        size=5,
        total=16,
        bad={
            "percent": ({"sparsity": 95}, "give 0.95"),
            "no steps": ({"steps": 0}, "steps must be at least 1"),
            **GRADIENTS,
        },
    ),
    "attention-patching": Row(
        exact=None,
        quick=tp.AttentionPatching(attention_edges=5),
        random=False,
        kind="attention_edges",
        size=5,
        total=16,
        bad={"percent": ({"sparsity": 95}, "give 0.95"), **PATCHING},
    ),
    "eap-ig": Row(
        exact=lambda edges: tp.EAPIG(edges=edges),
        quick=tp.EAPIG(edges=20, batch_size=5, steps=2, selection=tp.TopConnected()),
        random=False,
        bad={
            "no steps": ({"steps": 0}, "steps must be at least 1"),
            "no examples": ({"batch_size": 0}, "batch_size must be at least 1"),
            "no gradient": ({"objective": tp.KL(), "steps": 1}, "at the clean end alone needs a loss that changes"),
        },
    ),
    "edge-pruning": Row(
        exact=lambda edges: tp.EdgePruning(edges=edges, steps=30),
        quick=tp.EdgePruning(edges=20, steps=6, validate_every=3),
        random=True,
        bad={
            "dense": ({"sparsity": 0.0}, "Sparsity must lie between 0 and 1"),
            "percent": ({"sparsity": 95}, "give 0.95"),
            "no steps": ({"steps": 0}, "steps must be at least 1"),
            "no examples": ({"batch_size": 0}, "batch_size must be at least 1"),
            "turned start": ({"spread": -1.0}, "spread must be at least 0"),
        },
        records=6,
    ),
    "ensemble": Row(
        exact=lambda edges: tp.Ensemble(edges=edges, methods=(tp.EAP(), tp.EAP(objective=tp.CrossEntropy()))),
        quick=tp.Ensemble(edges=20, methods=(tp.EAP(), tp.EAP(objective=tp.CrossEntropy()))),
        random=False,
        bad={
            "percent": ({"sparsity": 95}, "give 0.95"),
            "nobody": ({"methods": ()}, "needs methods that score"),
            "no method": ({"methods": (tp.KL(),)}, "needs methods that score"),
        },
    ),
    "multi-granular": Row(
        exact=None,
        quick=tp.MultiGranularPruning(steps=6, samples=1, rate=0.5, layers=0.0, heads=20.0, mlps=0.0, neurons=20.0),
        random=True,
        kind="mixed",
        size=None,
        bad={
            "nothing to prune": ({"layers": None, "heads": None, "mlps": None, "neurons": None}, "all prices are None"),
            "paid for heads": ({"heads": -1.0}, "The price of heads must be at least 0"),
            "no steps": ({"steps": 0}, "steps must be at least 1"),
        },
        records=6,
    ),
    "hap": Row(
        exact=lambda edges: tp.HAP(edges=edges, steps=20, attribution=tp.EAP(edges=30)),
        quick=tp.HAP(edges=20, steps=6, attribution=tp.EAP(edges=40)),
        random=True,
        bad={"no steps": ({"steps": 0}, "steps must be at least 1")},
        records=6,
    ),
    "heuristic-core": Row(
        exact=lambda nodes: tp.HeuristicCore(nodes=nodes, recipe="short", steps=60),
        quick=tp.HeuristicCore(nodes=3, recipe="short", steps=6, validate_every=3),
        random=True,
        kind="nodes",
        size=3,
        total=10,
        bad={
            "percent": ({"sparsity": 50}, "give 0.5"),
            "no steps": ({"steps": 0}, "steps must be at least 1"),
        },
        records=6,
    ),
    "knowledge": Row(
        exact=None,
        quick=tp.KnowledgeSubnetwork(steps=6, validate_every=3),
        random=True,
        kind="weights",
        size=None,
        replaces=False,
        bad={
            "no numbers": ({"layers": "middle"}, "layers must be 'upper half' or numbers such as '6-11'"),
            "backwards": ({"layers": "5-3"}, "layers must be 'upper half' or numbers such as '6-11'"),
            "rewarded": ({"price": -1.0}, "price must be at least 0 and finite but is -1.0"),
            "endless": ({"control": float("inf")}, "control must be at least 0 and finite"),
            "nothing to erase": ({"suppression": 0.0}, "needs facts to suppress or to express"),
            "no steps": ({"steps": 0}, "steps must be at least 1"),
            "no text": ({"text_batch": 0}, "text_batch must be at least 1"),
        },
        records=6,
        streams=("main", "control", "text"),
    ),
    "random": Row(
        exact=None,
        quick=tp.Random(edges=20),
        random=True,
        runs=False,
        replaces=False,
        bad={"percent": ({"sparsity": 95}, "give 0.95")},
    ),
    "random-nodes": Row(
        exact=None,
        quick=tp.RandomNodes(nodes=4),
        random=True,
        kind="nodes",
        size=4,
        total=10,
        runs=False,
        replaces=False,
        bad={"percent": ({"sparsity": 95}, "give 0.95")},
    ),
    "magnitude": Row(
        exact=None,
        quick=tp.WeightMagnitude(nodes=4),
        random=False,
        kind="nodes",
        size=4,
        total=10,
        runs=False,
        replaces=False,
        bad={"percent": ({"sparsity": 95}, "give 0.95")},
    ),
    "relp": Row(
        exact=lambda edges: tp.RelP(edges=edges),
        quick=tp.RelP(edges=20, batch_size=5, selection=tp.TopConnected()),
        random=False,
        bad={"no gradient": ({"objective": tp.KL()}, "RelP needs a loss that changes where nothing is ablated")},
    ),
    "edge-patching": Row(
        exact=lambda edges: tp.EdgePatching(edges=edges),
        quick=tp.EdgePatching(edges=20, selection=tp.TopConnected()),
        random=False,
        bad={"percent": ({"sparsity": 95}, "give 0.95"), **PATCHING},
    ),
    "node-patching": Row(
        exact=lambda nodes: tp.NodePatching(nodes=nodes),
        quick=tp.NodePatching(nodes=6),
        random=False,
        kind="nodes",
        size=6,
        total=11,
        bad={"percent": ({"sparsity": 95}, "give 0.95"), **PATCHING},
    ),
    "atp": Row(
        exact=lambda nodes: tp.AtP(nodes=nodes),
        quick=tp.AtP(nodes=6, batch_size=3),
        random=False,
        kind="nodes",
        size=6,
        total=11,
        bad={
            "percent": ({"sparsity": 95}, "give 0.95"),
            "no steps": ({"steps": 0}, "steps must be at least 1"),
            **GRADIENTS,
        },
    ),
    "hisp": Row(
        exact=lambda nodes: tp.HISP(nodes=nodes),
        quick=tp.HISP(nodes=5),
        random=False,
        kind="nodes",
        size=5,
        total=8,
        bad={"percent": ({"sparsity": 95}, "give 0.95"), **GRADIENTS},
    ),
    "saliency": Row(
        exact=None,
        quick=tp.Saliency(scope="global", density=0.1, batches=2, batch_size=3),
        random=True,
        kind="weights",
        size=None,
        replaces=False,
        bad={
            "two sizes": ({"density": 0.5, "compression": 2.0}, "density and compression are given"),
            "nothing": ({"density": 0.0}, r"density must lie in \(0, 1\] but is 0.0"),
            "percent": ({"sparsity": 90}, "For 90% removed give 0.9"),
            "larger": ({"compression": 0.5}, "at least 1, but is 0.5"),
            "no batches": ({"batches": 0}, "batches must be at least 1"),
            **BATCHES,
        },
    ),
    "skill-neurons": Row(
        exact=None,  # of the planted model that has such neurons; see test_skill_neurons.py
        quick=tp.SkillNeurons(probe="answer", neurons=20, batch_size=5),
        random=False,
        kind="neurons",
        total=48,
        replaces=False,
        classes=2,
        bad={
            "percent": ({"sparsity": 98}, "give 0.98"),
            "no position": ({"positions": -1}, "'max' or the number of one, from 0, but is -1"),
            **BATCHES,
        },
    ),
    "subnetwork-probing": Row(
        exact=lambda edges: tp.SubnetworkProbing(edges=edges, steps=30, samples=2),
        quick=tp.SubnetworkProbing(edges=20, steps=6, samples=1, validate_every=3),
        random=True,
        bad={
            "other size": ({"edges": 5, "level": "nodes"}, "keep a number of nodes but were given edges=5"),
            "paid for sites": ({"regularisation": -1.0}, "at least 0 and finite but is -1.0"),
            "no steps": ({"steps": 0}, "steps must be at least 1"),
        },
        records=6,
    ),
    "ugs": Row(
        exact=lambda edges: tp.UGS(edges=edges, steps=20, samples=2),
        quick=tp.UGS(edges=20, steps=6, samples=2),
        random=True,
        bad={"no samples": ({"samples": 0}, "samples must be at least 1")},
        records=6,
    ),
    "information-flow-routes": Row(
        exact=None,
        quick=tp.InformationFlowRoutes(edges=20, batch_size=3, selection=tp.TopConnected()),
        random=False,
        replaces=False,
        bad={"percent": ({"sparsity": 95}, "give 0.95"), **BATCHES},
    ),
}
each_method = pytest.mark.parametrize("name", METHODS)
ABLATIONS = {"resample": tp.Resample(), "zero": tp.Zero(), "mean": tp.Mean(), "own mean": "clean prompts"}


@cache
def built(name: str) -> Planted:
    return tp.planted(name)


def random_task(name: str, test: Any = None) -> tp.Task:
    """Random prompts in as many streams as the method of this name needs; a given test is that of the main one."""
    streams = {stream: random_stream(3 * place) for place, stream in enumerate(ROWS[name].streams)}
    streams["main"] = dataclasses.replace(streams["main"], test=test or streams["main"].test)
    if ROWS[name].classes:
        streams["main"] = of_classes(streams["main"], ROWS[name].classes)
    return tp.Task("random", streams, Tokenisation(prepend_bos=True))


def random_stream(first: int) -> Stream:
    return Stream(*(random_batch(8, seed=first + seed) for seed in (1, 2, 3)))


def of_classes(stream: Stream, count: int) -> Stream:
    """The same prompts with so many answers, in turn."""

    def folded(batch: Any) -> Any:
        return dataclasses.replace(batch, answers=torch.arange(len(batch))[:, None] % count)

    return Stream(folded(stream.train), folded(stream.validation), stream.test)


def grouped(dtype: torch.dtype = torch.float64) -> Any:
    """A random model with grouped-query attention, rotary positions and gated MLPs."""
    return fresh("llama", dtype)


@cache
def shared_model() -> Any:
    """One for the tests that trust the model to be left as it is; another test holds that it is."""
    return grouped()


@cache
def quick_circuit(name: str, ablation: str = "resample", seed: int = 0) -> tp.Circuit:
    method, task = ROWS[name].quick, tp.sealed(random_task(name))
    method = dataclasses.replace(method, seed=seed) if seed else method
    return method.find(shared_model(), task, ablation=ablation_called(ablation))


def ablation_called(name: str) -> Any:
    return tp.Mean(random_batch(4, seed=4).clean) if name == "own mean" else ABLATIONS[name]


def test_every_method_is_under_contract() -> None:
    assert ROWS.keys() == METHODS.keys()


@each_method
def test_a_method_is_a_frozen_dataclass_that_needs_no_settings(name: str) -> None:
    kind = METHODS[name]
    assert kind() == kind() and hash(kind()) == hash(kind())
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().seed = 1
    documented = inspect.getdoc(kind) or ""
    assert all(f"\n    {one.name}: " in documented for one in dataclasses.fields(kind))
    assert kind.__name__ in tp.__all__


# ---- finding


@pytest.mark.parametrize("planted", ["copy", "induction"])
@each_method
def test_what_was_planted_is_found_exactly_at_its_size(name: str, planted: str) -> None:
    """All true sites rank above all others, which is what an average precision of 1 says."""
    one, exact = built(planted), ROWS[name].exact
    if exact is None:
        pytest.skip(f"{name} promises to find nothing exactly")
    truth = ROWS[name].truth(one)
    method = exact(len(truth))
    found = method.find(one.model, tp.sealed(one.task))
    assert found == truth
    if hasattr(method, "score"):
        assert average_precision(method.score(one.model, tp.sealed(one.task)), truth) == 1


def average_precision(scores: tp.Scores, circuit: tp.Circuit) -> float:
    """Mean, over the true sites, of the share of true ones among those ranked no lower; of ties, the worst order."""
    true = scores.values[circuit.kept]
    shares = [float((true >= value).sum() / (scores.values >= value).sum()) for value in true]
    return sum(shares) / len(shares)


@each_method
def test_a_seed_repeats_a_circuit_and_another_differs_where_chance_has_a_part(name: str) -> None:
    """On a random model: the edges of a planted one that do nothing tie, whatever the seed."""
    first = quick_circuit(name)
    torch.manual_seed(99)  # the global random state has no part
    again = ROWS[name].quick.find(shared_model(), random_task(name), ablation=tp.Resample())
    assert again == first
    assert again.provenance == first.provenance
    if ROWS[name].random:
        assert quick_circuit(name, seed=1) != first
    else:
        assert not hasattr(ROWS[name].quick, "seed"), "a seed that changes nothing is no field"


# ---- what it sees and leaves


@each_method
def test_test_examples_are_never_touched_and_make_no_difference(name: str) -> None:
    """The other circuits here are found on sealed tasks, where a look is an error."""
    other = random_task(name, random_batch(8, seed=5))
    assert other.fingerprint != random_task(name).fingerprint
    found = ROWS[name].quick.find(shared_model(), other, ablation=tp.Resample())
    assert found == quick_circuit(name)
    again = ROWS[name].quick.find(shared_model(), tp.sealed(other).discovery, ablation=tp.Resample())
    assert again.provenance == found.provenance


@each_method
def test_the_model_is_left_untouched(name: str) -> None:
    model = grouped(torch.float32)
    mixed_settings(model)
    model(random_task(name).test.clean.ids)  # a bridge finishes its own hooks in its first run
    before = state(model)
    ROWS[name].quick.find(model, random_task(name))
    assert_unchanged(before, model)


@each_method
def test_a_failure_half_way_leaves_the_model_untouched(name: str) -> None:
    if not ROWS[name].runs:
        pytest.skip(f"{name} runs no model")
    model, runs, last = grouped(torch.float32), [], []

    def fail(value: Any, hook: Any) -> None:
        runs.append(hook.name)
        if len(runs) in last:
            raise ZeroDivisionError

    mixed_settings(model)
    model.hook_dict["blocks.1.attn.hook_z"].add_hook(fail)
    ROWS[name].quick.find(model, random_task(name))
    last.append(len(runs) + len(runs) // 2)
    before = state(model)
    with pytest.raises(ZeroDivisionError):
        ROWS[name].quick.find(model, random_task(name))
    assert_unchanged(before, model)


# ---- what it says of itself


@each_method
def test_a_saved_circuit_gives_its_method_back_which_finds_it_again(name: str, tmp_path: Path) -> None:
    found = quick_circuit(name)
    for file in ("circuit.json", "circuit.safetensors"):
        found.save(tmp_path / file)
        loaded = tp.Circuit.load(tmp_path / file)
        assert loaded == found
        assert loaded.provenance == found.provenance
        method = tp.method_from(loaded.provenance)
        assert method == ROWS[name].quick
    assert method.find(shared_model(), random_task(name), ablation=tp.Resample()) == found


@each_method
def test_provenance_is_plain_and_whole(name: str) -> None:
    found, task = quick_circuit(name), random_task(name)
    known = found.provenance
    assert json.loads(json.dumps(known)) == known
    assert known["method"]["name"] == name
    assert {*known["method"]} == {"name", *(one.name for one in dataclasses.fields(METHODS[name]))}
    assert known["task"] == task.discovery.provenance
    assert known["model"]["name"] == "llama" and known["model"]["processing"]["dtype"] == "float64"
    assert len(found.sites.kinds) > 1 if ROWS[name].kind == "mixed" else found.sites.kinds == (ROWS[name].kind,)
    edges = ROWS[name].kind == "edges"
    assert known["convention"] == (dataclasses.asdict(found.graph.convention) if edges else None)
    assert known["seed"] == getattr(METHODS[name](), "seed", None)
    assert {*known["versions"]} == {"tlprune", "torch", "transformer-lens"}


@each_method
def test_a_circuit_is_refused_on_a_model_with_other_weights(name: str) -> None:
    other = grouped()
    with torch.no_grad():
        other.embed.W_E.mul_(2)
    with pytest.raises(ValueError, match="Load the model it was found on"):
        quick_circuit(name).on(other)


# ---- ablations, models, arguments


@pytest.mark.parametrize("ablation", ABLATIONS)
@each_method
def test_every_ablation_serves_on_a_grouped_query_model_in_float64(name: str, ablation: str) -> None:
    found, train = quick_circuit(name, ablation), random_task(name).discovery.train()
    used = {"mean": tp.Mean(train.corrupt)}.get(ablation, ablation_called(ablation))
    size = ROWS[name].size
    assert len(found) == size if size else 0 < len(found) < len(found.sites)
    assert found.provenance["ablation"] == used.as_dict()
    logits = found.on(shared_model(), ablation=used)(train)
    assert logits.dtype == torch.float64 and bool(logits.isfinite().all())
    if "mean" in ablation:
        with pytest.raises(ValueError, match=r"ablation=tp\.Mean\(task\.discovery\.train\(\)\.corrupt\)"):
            found.on(shared_model())


@each_method
def test_ablations_are_used_and_not_only_recorded(name: str) -> None:
    """At least three of the four make a difference, so no two of the kinds are one."""
    circuits = [quick_circuit(name, ablation) for ablation in ABLATIONS]
    different = len({tuple(one.names) for one in circuits})
    assert different > 2 if ROWS[name].replaces else different == 1


@each_method
def test_the_metrics_file_and_the_progress_bar_change_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    options = {"metrics": path} if ROWS[name].records else {}
    found = ROWS[name].quick.find(shared_model(), random_task(name), ablation=tp.Resample(), progress=True, **options)
    assert found == quick_circuit(name)
    assert capsys.readouterr().out == ""
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    assert len(records) == ROWS[name].records
    assert all(isinstance(record["step"], int) for record in records)


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, row in ROWS.items() for case in row.bad])
def test_bad_options_are_refused_at_once(name: str, case: str) -> None:
    options, message = ROWS[name].bad[case]
    with pytest.raises(ValueError, match=message):
        METHODS[name](**options)


@each_method
def test_sizes_outside_the_model_are_refused_before_it_runs(name: str) -> None:
    one, row = tp.planted("copy"), ROWS[name]
    if row.size is None:
        pytest.skip(f"{name} is not given a size")
    one.model.hook_dict["hook_embed"].add_hook(lambda value, hook: 1 // 0)
    for size, message in ((row.total + 1, f"lie between 0 and {row.total} "), (-1, "but is -1")):
        with pytest.raises(ValueError, match=message):
            row.of(size).find(one.model, one.task)


@each_method
def test_models_of_another_kind_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="but got Linear"):
        ROWS[name].quick.find(torch.nn.Linear(2, 2), random_task(name))
