"""The table says what running each set of edges says."""

import pytest
import torch

import tlprune as tp


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
    assert known["random"].effective == known["random"].edges == known["circuit"].edges


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
