"""The table says what running each set of edges says."""

import json

import pytest
import torch

import tlprune as tp
from tlprune.models.planted import Planted


@pytest.fixture(scope="module")
def known() -> tp.Evaluation:
    planted = tp.planted("induction")
    return tp.evaluate(planted.model, planted.circuit, planted.task.test)


def test_rows_of_a_true_circuit(known: tp.Evaluation) -> None:
    assert [row.name for row in known.rows] == ["full model", "circuit", "complement", "random", "empty"]
    means = {row.name: row.performance.means() for row in known.rows}
    assert means["circuit"]["kl"] == pytest.approx(0, abs=1e-6)
    assert means["circuit"]["agreement"] == 1
    assert means["complement"]["agreement"] == 0
    assert means["empty"]["logit_difference"] == pytest.approx(-means["full model"]["logit_difference"], rel=0.1)
    assert known["random"].effective == known["random"].kept == known["circuit"].kept


def test_figures_against_a_run_by_hand() -> None:
    planted = tp.planted("adder")
    batch = planted.task.test
    half = tp.connected_random(planted.circuit.graph, 60, seed=1)
    performance = tp.evaluate(planted.model, half, batch)["circuit"].performance
    logits = tp.Masked(planted.model, half)(batch)[:, 0].detach()
    full = planted.model(batch.clean.ids)[:, -1].detach()
    rows = torch.arange(len(batch))
    kl = torch.nn.functional.kl_div(logits.log_softmax(-1), full.log_softmax(-1), reduction="none", log_target=True)
    torch.testing.assert_close(performance.kl, kl.sum(-1), atol=1e-6, rtol=1e-4)
    difference = logits[rows, batch.answers[:, 0]] - logits[rows, batch.foils[:, 0]]
    torch.testing.assert_close(performance.logit_difference, difference)
    assert torch.equal(performance.correct, (logits.argmax(-1) == batch.answers[:, 0]).float())
    assert torch.equal(performance.agrees, (logits.argmax(-1) == full.argmax(-1)).float())


def test_rows_can_be_a_part_of_a_split() -> None:
    planted = tp.planted("and")
    part = planted.task.test.rows(torch.tensor([40, 3, 17]))
    everything = tp.evaluate(planted.model, planted.circuit, planted.task.test)["empty"].performance.kl
    some = tp.evaluate(planted.model, planted.circuit, part)["empty"].performance.kl
    torch.testing.assert_close(some, everything[[40, 3, 17]])


def test_another_model_is_refused() -> None:
    planted = tp.planted("and")
    circuit = tp.EdgePruning(edges=5, steps=2).find(planted.model, planted.task)
    with pytest.raises(ValueError, match="was found on model 'planted-and'"):
        tp.evaluate(tp.planted("and", seed=1).model, circuit, planted.task.test)
    with pytest.raises(ValueError, match="Build both from one model"):
        tp.evaluate(tp.load("testbed"), planted.circuit, planted.task.test)


def one_bit(planted: Planted) -> tp.Circuit:
    """Of the adder's two heads, each of which brings half of the logit difference, only one."""
    head = planted.circuit.edges[-1].partition("->")[0]
    return tp.Circuit.from_edges(planted.circuit.graph, [edge for edge in planted.circuit.edges if head in edge])


def test_faithfulness_is_one_of_everything_and_zero_of_nothing() -> None:
    planted = tp.planted("adder")
    half = one_bit(planted)
    found = tp.evaluate(planted.model, half, planted.task.test)
    for name, value in (("full model", 1), ("empty", 0)):
        faithful = found[name].faithfulness
        assert (faithful.value, faithful.low, faithful.high) == (value, value, value)
    assert found["full model"].performance.means()["kl"] == pytest.approx(0, abs=1e-6)
    assert found["full model"].performance.means()["agreement"] == 1
    m = {row.name: float(row.performance.logit_difference.double().mean()) for row in found.rows}
    expected = (m["circuit"] - m["empty"]) / (m["full model"] - m["empty"])
    assert expected == pytest.approx(0.5, abs=1e-3)
    assert found["circuit"].faithfulness.value == pytest.approx(expected, rel=1e-9)
    assert found["circuit"].faithfulness.low < expected < found["circuit"].faithfulness.high


def test_the_complement_of_everything_is_nothing() -> None:
    planted = tp.planted("copy")
    everything = tp.Circuit.from_edges(planted.circuit.graph, planted.circuit.graph.edges(torch.ones(110).bool()))
    found = tp.evaluate(planted.model, everything, planted.task.test)
    assert (found["complement"].kept, found["empty"].kept) == (0, 0)
    torch.testing.assert_close(found["complement"].performance.kl, found["empty"].performance.kl, atol=0, rtol=0)
    assert found["complement"].faithfulness.value == 0
    assert found["circuit"].faithfulness.value == 1


def test_faithfulness_is_unknown_where_full_model_and_empty_circuit_do_not_differ() -> None:
    planted = tp.planted("copy")
    batch = planted.task.test
    twins = tp.Batch(**{**vars(batch), "corrupt": batch.clean})
    found = tp.evaluate(planted.model, planted.circuit, twins)
    assert found.as_dict()["rows"][1]["faithfulness"] is None
    assert [row.faithfulness for row in found.rows] == [None] * 5
    assert "nan" not in str(found) and "faithfulness is undefined" in str(found)
    scores = tp.Scores(planted.circuit.sites, planted.circuit.kept.float())
    curve = tp.faithfulness_curve(planted.model, scores, twins, counts=[0, 5])
    assert "nan" not in str(curve) and [row.faithfulness for row in curve.rows] == [None] * 2
    json.dumps(found.as_dict(), allow_nan=False)


def test_both_ablations_are_stated() -> None:
    planted = tp.planted("and")
    same = tp.evaluate(planted.model, planted.circuit, planted.task.test)
    assert same.as_dict()["ablation"] == same.as_dict()["discovery_ablation"] == {"name": "resample"}
    assert str(same).endswith("; resample ablation")
    zero = tp.evaluate(planted.model, planted.circuit, planted.task.test, ablation=tp.Zero())
    assert zero.as_dict()["ablation"] == {"name": "zero"}
    assert zero.as_dict()["discovery_ablation"] == {"name": "resample"}
    assert str(zero).endswith("; zero ablation (found under resample ablation)")
    by_hand = tp.Circuit(tp.Sites((planted.circuit.graph,)), planted.circuit.kept)
    unknown = tp.evaluate(planted.model, by_hand, planted.task.test)
    assert unknown.as_dict()["discovery_ablation"] is None
    assert str(unknown).endswith("; resample ablation")


def test_a_mean_over_other_prompts_is_another_ablation() -> None:
    planted = tp.planted("and")
    train = planted.task.discovery.train().corrupt
    first, second = (tp.Mean(train.rows(torch.arange(count))) for count in (8, 16))
    provenance = {"ablation": first.as_dict()}
    circuit = tp.Circuit(tp.Sites((planted.circuit.graph,)), planted.circuit.kept, provenance)
    assert "found under mean" in str(tp.evaluate(planted.model, circuit, planted.task.test, ablation=second))
    assert "found under" not in str(tp.evaluate(planted.model, circuit, planted.task.test, ablation=first))


def test_a_task_brings_its_metrics_and_its_test_examples() -> None:
    planted = tp.planted("copy")
    task = tp.Task(
        "copy",
        planted.task.streams,
        planted.task.tokenisation,
        metrics={"largest": lambda logits, batch, reference: logits[:, 0].amax(-1)},
    )
    found, plain = (tp.evaluate(planted.model, planted.circuit, examples) for examples in (task, task.test))
    assert "largest" not in plain["circuit"].means()
    expected = tp.Masked(planted.model, planted.circuit)(task.test)[:, 0].amax(-1).detach()
    torch.testing.assert_close(found["circuit"].performance.extra["largest"], expected)
    header, full, *_ = str(found).splitlines()
    assert header.split()[-1] == "largest"
    assert full.split()[-1] == f"{found['full model'].means()['largest']:.3f}"
    torch.testing.assert_close(found["empty"].performance.kl, plain["empty"].performance.kl, atol=0, rtol=0)


def test_the_table_shows_the_interval_of_the_circuit_below_it() -> None:
    planted = tp.planted("adder")
    found = tp.evaluate(planted.model, one_bit(planted), planted.task.test)
    lines = str(found).splitlines()
    place = next(place for place, line in enumerate(lines) if line.startswith("circuit"))
    assert lines[place].split()[-1] == f"{found['circuit'].faithfulness.value:.3f}"
    names = ("accuracy", "agreement", "logit_difference", "kl", "faithfulness")
    for line, label, end in ((lines[place + 1], "95% from", "low"), (lines[place + 2], "95% to", "high")):
        ends = [getattr(found["circuit"].intervals()[name], end) for name in names]
        assert line.strip().startswith(label)
        assert [float(cell) for cell in line.split()[2:]] == pytest.approx(ends, abs=5.1e-3)
    row = found.as_dict()["rows"][1]
    kl = found["circuit"].intervals()["kl"]
    assert row["intervals"]["kl"] == [kl.low, kl.high]
    assert row["kl"] == pytest.approx(kl.value, rel=1e-6)


def test_circuits_of_any_sites_are_evaluated() -> None:
    """A circuit of nodes is the circuit of all edges that leave them."""
    planted = tp.planted("copy")
    nodes = tp.Circuit.from_nodes(planted.model, planted.circuit.nodes)
    found = tp.evaluate(planted.model, nodes, planted.task)
    assert found["circuit"].performance.means()["accuracy"] == 1
    assert found["empty"].performance.means()["accuracy"] == 0
    assert (found["random"].kept, found["complement"].kept) == (len(nodes), len(nodes.sites) - len(nodes))
    assert str(found).splitlines()[-1].startswith(f"{len(planted.task.test)} test examples; {nodes.sites} in all")
    worth = tp.minimality(planted.model, nodes, planted.task)
    assert set(worth.sites) == set(nodes.names)
    curve = tp.faithfulness_curve(
        planted.model, tp.Scores(nodes.sites, nodes.kept.float()), planted.task, counts=[len(nodes)]
    )
    assert curve.rows[0].faithfulness.value == pytest.approx(1, abs=0.1)
    neurons = tp.neurons(planted.model) + tp.weights(planted.model)
    everything = tp.Circuit(neurons, torch.ones(len(neurons), dtype=torch.bool))
    assert tp.evaluate(planted.model, everything, planted.task, ablation=tp.Zero())["circuit"].faithfulness.value == 1
