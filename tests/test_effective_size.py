"""The effective size: the rule by hand, intervals over seeds, domains and sub-cases, lines, and the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from quizzes import batch_of

import tlprune as tp
from tlprune.cli import main
from tlprune.studies.answers import Answers
from tlprune.studies.collection import Run
from tlprune.studies.predictions import Predictions


@pytest.mark.parametrize(
    ("means", "full", "percent"),
    [
        ({0.3: 0.85, 0.5: 0.83, 0.7: 0.70}, 0.85, 50),
        ({0.3: 0.10, 0.5: 0.20, 0.7: 0.30}, 0.85, 100),  # none
        ({0.3: 0.80, 0.5: 0.60, 0.7: 0.82}, 0.82, 30),  # accuracy need not fall with sparsity
        ({0.3: 0.60, 0.5: 0.82, 0.7: 0.60}, 0.82, 50),
        ({0.05: 0.90, 0.5: 0.80}, 0.83, 95),  # just at the margin is not above it, in floating point 0.80 > 0.83 - 0.03
        ({0.5: 0.801}, 0.83, 50),
        ({0.5: 0.95}, 0.83, 50),  # better than the full model
        ({0.0: 0.83, 0.7: 0.10}, 0.83, 100),
    ],
)
def test_the_largest_sparsity_above_the_margin_counts(means: dict[float, float], full: float, percent: float) -> None:
    found = tp.effective_size({sparsity: [mean] for sparsity, mean in means.items()}, full)
    assert found.percent == percent
    assert found.each == (percent,)
    assert found.interval is None
    assert [*found.means] == sorted(means, reverse=True)


def test_the_margin_can_be_chosen() -> None:
    assert tp.effective_size({0.5: [0.76]}, 0.8).percent == 100
    assert tp.effective_size({0.5: [0.76]}, 0.8, margin=0.05).percent == 50
    assert tp.effective_size({0.5: [0.8]}, 0.8, margin=0).percent == 100


def test_the_mean_over_seeds_decides_and_each_seed_is_told() -> None:
    found = tp.effective_size({0.3: [0.9, 0.9, 0.9], 0.6: [0.9, 0.9, 0.1]}, 0.9)
    assert found.percent == 70
    assert found.each == (40, 40, 70)
    assert found.mean_each == 50
    assert found.interval is not None
    assert (found.interval.low, found.interval.value, found.interval.high) == (40, 70, 70)
    share = (2 / 3) ** 3  # of resamples without the third seed
    assert 0.025 < share < 0.975, "so that both ends are in the interval"


def test_seeds_are_drawn_with_all_of_their_sparsities() -> None:
    """At each sparsity one of two seeds fails, never the same; only where one seed is drawn twice can a mean pass."""
    found = tp.effective_size({0.3: [0.9, 0.1], 0.6: [0.1, 0.9]}, 0.9)
    assert found.percent == 100
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == (40, 100)
    assert found.as_dict()["interval"] == {"value": 100, "low": 40, "high": 100}


@pytest.mark.parametrize(
    ("accuracies", "margin", "message"),
    [
        ({}, 0.03, "but got none"),
        ({0.5: []}, 0.03, "but got 0 of 0.5"),
        ({0.3: [0.5, 0.5], 0.5: [0.5]}, 0.03, "but got 2 of 0.3, 1 of 0.5"),
        ({0.5: [float("nan")]}, 0.03, "some are not"),
        ({50.0: [0.5]}, 0.03, "Give 0.5 for 50%"),
        ({0.5: [0.5]}, -0.1, "must not be negative"),
    ],
)
def test_bad_accuracies_get_one_error(accuracies: dict[float, list[float]], margin: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tp.effective_size(accuracies, 0.8, margin=margin)


def predictions_of(name: str, rates: dict[Run | None, list[float]], kinds: tuple[str, ...] = ()) -> Predictions:
    """100 examples of each kind; the first so many of a hundred are right."""
    rows = 100 * max(1, len(kinds))
    labels = torch.arange(rows) // 100 if kinds else None
    batch = dataclasses.replace(batch_of("bert classes", rows, 0), labels=labels)

    def answers(shares: list[float]) -> Answers:
        right = torch.cat([torch.arange(100) < round(100 * share) for share in shares])
        return Answers(torch.where(right[:, None], batch.answers, (batch.answers + 1) % 3))

    known = {run: answers(shares) for run, shares in rates.items()}
    return Predictions(name, batch, known.pop(None), {run: one for run, one in known.items() if run}, kinds)


KINDS = ("le_passive", "ln_swap", "ln_passive")


def checkpoint(out: float) -> list[Predictions]:
    """In domain all agree; out of domain the denser subnetwork is right on a share of what the model is right on."""
    runs = {Run(0.3, 1): 0.88, Run(0.6, 1): 0.5, Run(0.3, 2): 0.89, Run(0.6, 2): 0.6, Run(0.6, 3): 0.9}
    mnli = predictions_of("mnli", {None: [0.9], **{run: [rate] for run, rate in runs.items()}})
    hans = predictions_of("hans", {None: [1.0, 0.4, 0.2], **{run: [1.0, 0.4 * out, 0.2 * out] for run in runs}}, KINDS)
    return [mnli, hans]


def test_domains_are_means_over_their_cases() -> None:
    found = tp.effective_sizes({282: checkpoint(0.5), 141: checkpoint(1.0)}, in_domain=["mnli"], subcases=["ln_*"])
    assert [*found.sizes] == [141, 282]
    assert found.cases == {
        "in domain": ("mnli",),
        "out of domain": ("hans: ln_swap", "hans: ln_passive"),
        "both": ("mnli", "hans: ln_swap", "hans: ln_passive"),
    }
    early, late = found.sizes[141], found.sizes[282]
    assert (early["in domain"].percent, early["out of domain"].percent, late["out of domain"].percent) == (70, 40, 100)
    assert early["out of domain"].full == pytest.approx(0.3)
    assert early["both"].full == pytest.approx((0.9 + 0.4 + 0.2) / 3)
    assert early["both"].means[0.3] == pytest.approx((0.885 + 0.4 + 0.2) / 3)
    assert found.seeds[141] == (1, 2), "the third seed is at one sparsity alone"
    whole = tp.effective_sizes({141: checkpoint(1.0)}, in_domain=["mnli"])
    assert whole.cases["out of domain"] == ("hans",)
    assert whole.sizes[141]["out of domain"].full == pytest.approx(1.6 / 3)
    alone = tp.effective_sizes({141: checkpoint(1.0)[:1]}, in_domain=["mnli"])
    assert [*alone.cases] == ["in domain"]


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="need the same tasks at each checkpoint"):
        tp.effective_sizes({141: checkpoint(1.0), 282: checkpoint(1.0)[:1]}, in_domain=["mnli"])
    with pytest.raises(ValueError, match="no checkpoint"):
        tp.effective_sizes({}, in_domain=["mnli"])
    with pytest.raises(ValueError, match="Tasks are mnli, hans but in domain should be qqp"):
        tp.effective_sizes({141: checkpoint(1.0)}, in_domain=["qqp"])
    with pytest.raises(ValueError, match="No sub-case of hans is called nothing"):
        tp.effective_sizes({141: checkpoint(1.0)}, in_domain=["mnli"], subcases=["nothing"])


def test_lines_hold_the_sizes_and_accuracies() -> None:
    found = tp.effective_sizes({141: checkpoint(1.0), 282: checkpoint(0.5)}, in_domain=["mnli"], subcases=["ln_*"])
    lines = {line.name: line for line in found.plot().data}
    out = lines["effective size, out of domain"]
    assert (list(out.x), list(out.y)) == ([141, 282], [40, 100])
    assert list(lines["accuracy of the full model, out of domain"].y) == pytest.approx([30, 30])
    inside = found.sizes[141]["in domain"]
    assert inside.interval is not None
    bars = lines["effective size, in domain"].error_y
    assert bars.array[0] == inside.interval.high - inside.percent
    assert bars.arrayminus[0] == inside.percent - inside.interval.low
    assert len(lines) == 6
    assert str(found).splitlines()[2].split()[:5] == ["141", "out", "of", "domain", "0.300"]
    assert json.loads(json.dumps(found.as_dict()))["steps"][1]["domains"]["out of domain"]["percent"] == 100


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(tmp_path / name) for name in ("early", "late")]
    for folder in folders:
        words = ["core", "prune", "--model", "planted", "--task", "planted", "--out", folder]
        assert main([*words, "--sparsities", "0.5", "0.9", "--seeds", "1", "--recipe", "short", "--steps", "3"]) == 0
    assert main(["core", "size", *folders, "--steps", "141", "282"]) == 0
    assert "wrote size.json and size.html" in capsys.readouterr().out
    told = json.loads((tmp_path / "early" / "size.json").read_text())
    assert [step["step"] for step in told["steps"]] == [141, 282]
    assert [one["sparsity"] for one in told["steps"][0]["domains"]["in domain"]["means"]] == [0.9, 0.5]
    assert main(["core", "size", *folders]) == 2
    assert "needs a step of its own, but models are planted, planted" in capsys.readouterr().err
    for folder, step in zip(folders, (141, 282), strict=True):
        path = Path(folder) / "study.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model": f"runs/mnli/step-{step}"}))
    assert main(["core", "size", *folders, "--steps", "1"]) == 2
    capsys.readouterr()
    assert main(["core", "size", *folders]) == 2
    assert "step-141" in capsys.readouterr().err, "steps are told, so the model is what is missing"
