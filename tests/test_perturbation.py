"""Neurons perturbed: curves and maps of tasks on a model of two planted skills, against runs by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from styles import fresh, model_of, random_batch
from torch import Tensor
from two_skills import SKILLS, WIDTH, skill_scores, skill_task, two_skills

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.backends.activations import Wanted
from tlprune.backends.passes import counted
from tlprune.learning.bootstrap import interval
from tlprune.skills.choosing import neurons_of, places, random_places, without
from tlprune.statistic import Statistic
from tlprune.task import MAIN, Batch, Stream, Task, Tokenisation

TWO = 2 / WIDTH  # as many neurons of a layer as a skill has


@pytest.fixture(scope="module")
def model() -> Any:
    return two_skills()


def share_of_first(task: Task) -> float:
    """The accuracy without the skill: the first answer always."""
    answers = task.test.answers[:, 0]
    return float((answers == answers.min()).double().mean())


class Shifted(tp.Prompt):
    """Stands for a prompt: while it is attached the model unembeds with another bias."""

    def __init__(self, token: int, size: float) -> None:
        super().__init__(torch.zeros(1, 1))
        vars(self).update(token=token, size=size)

    @contextmanager
    def attached(self, model: Any) -> Iterator[Any]:
        bias = backend_of(model).parameters()["unembed.b_U"]
        with torch.no_grad():
            bias[self.token] += self.size
        try:
            yield model
        finally:
            with torch.no_grad():
                bias[self.token] -= self.size


@torch.no_grad()
def by_hand(model: Any, batch: Batch, change: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Logits at the answers where the neurons of each layer are changed behind the activation function."""
    hooks = [
        (f"blocks.{layer}.mlp.hook_post", lambda value, hook, layer=layer: change(layer, value))
        for layer in range(model.cfg.n_layers)
    ]
    logits = model.run_with_hooks(batch.clean.ids, fwd_hooks=hooks)
    return logits[torch.arange(len(batch)), batch.positions[:, 0]]


def accuracy(logits: Tensor, batch: Batch) -> float:
    return float((logits.argmax(-1) == batch.answers[:, 0]).double().mean())


def random_task(**options: Any) -> Task:
    """A task of random prompts for the random models of other tests."""
    batches = [random_batch(9, seed=seed) for seed in (1, 2, 3)]
    return Task("random", {MAIN: Stream(*batches)}, Tokenisation(prepend_bos=False), **options)


def random_scores(model: Any) -> tp.Scores:
    sites = tp.neurons(model)
    return tp.Scores(sites, torch.rand(len(sites), generator=torch.Generator().manual_seed(7)))


# ---- which neurons


def test_every_layer_gives_as_many_neurons_the_best_or_random_ones(model: Any) -> None:
    scores = skill_scores(model, "one")
    group = neurons_of(scores.sites)
    orders = [places(scores.values.view(2, WIDTH)), *(random_places(group, f"0/0/{draw}") for draw in range(3))]
    counts = [0, 1, 5, WIDTH]
    perturbed = ~without(orders, counts).view(4, len(counts), 2, WIDTH)
    assert torch.equal(perturbed.sum(-1), torch.tensor(counts)[None, :, None].expand(4, 4, 2))
    assert bool((perturbed[:, :-1] <= perturbed[:, 1:]).all()), "more neurons contain fewer"
    some = perturbed[:, 2]
    assert len({tuple(one.flatten().tolist()) for one in some}) == 4
    assert not torch.equal(some[1, 0], some[1, 1]), "layers draw apart"


def test_the_best_neurons_are_those_of_the_highest_score_in_each_layer(model: Any) -> None:
    scores = skill_scores(model, "other")
    found = tp.top_neurons(scores, 5.9 / WIDTH)
    for layer, values in enumerate(scores.values.view(2, WIDTH)):
        inside = found.kept.view(2, WIDTH)[layer]
        assert int(inside.sum()) == 5
        assert float(values[inside].min()) > float(values[~inside].max())
    assert {*SKILLS["other"]} <= {*found.names}
    alone = tp.top_neurons(scores, TWO, layers=[0])
    assert alone.names == SKILLS["other"]
    assert len(alone.sites) == WIDTH
    assert len(tp.top_neurons(scores, 0.0)) == 0


# ---- curves


def test_without_its_skill_a_task_falls_to_chance_and_without_random_neurons_it_does_not(model: Any) -> None:
    task = skill_task("one")
    curve = tp.perturbation(model, task, skill_scores(model, "one"), fractions=[0, TWO], ablation="zero")
    assert curve.at(0).skill.value == curve.at(0).random.value == 1
    assert curve.at(TWO).neurons == 2
    assert curve.at(TWO).skill.value == pytest.approx(share_of_first(task)) == pytest.approx(curve.chance)
    assert curve.at(TWO).random.value > 0.9
    assert curve.at(TWO).difference.sign == -1


def test_nothing_perturbed_is_the_model_and_all_at_zero_the_embeddings_alone() -> None:
    model, task = model_of("gpt2"), random_task()
    curve = tp.perturbation(model, task, random_scores(model), fractions=[0, 1], ablation="zero", random_trials=2)
    logits = [by_hand(model, task.test, lambda layer, value: value), by_hand(model, task.test, lambda _, v: 0 * v)]
    for fraction, expected in zip((0, 1), logits, strict=True):
        answers, foils = (expected.gather(1, tokens) for tokens in (task.test.answers, task.test.foils))
        point = curve.at(fraction, "logit_difference")
        assert point.skill.value == pytest.approx(float((answers - foils).mean()), abs=1e-6)
        assert curve.at(fraction).skill.value == pytest.approx(accuracy(expected, task.test))
        assert point.difference.value == point.difference.low == point.difference.high == 0


@pytest.mark.parametrize("ablation", ["gaussian", "zero", "mean"])
def test_each_run_is_the_forward_by_hand(ablation: Any) -> None:
    """The same draw on the same neurons; zero; or the mean over all positions of the training prompts."""
    model, task = model_of("llama"), random_task()
    scores, count = random_scores(model), 12
    curve = tp.perturbation(
        model, task, scores, fractions=[count / WIDTH], ablation=ablation, layers=[1, 2], random_trials=2, seed=4
    )  # fmt: skip
    wanted = Wanted(streams=False, neurons=(0, 1, 2))
    noise = tp.GaussianNoise(0.1, seed=4).replaced(backend_of(model), task.test.clean, None, wanted).neurons
    means = mean_neurons(model, task.discovery.train())
    group = neurons_of(tp.neurons(model, "m[12]"))
    orders = [places(scores.values.view(3, WIDTH)[1:]), *(random_places(group, f"4/0/{draw}") for draw in range(2))]
    found = []
    for order in orders:

        def change(layer: int, value: Tensor, order: Tensor = order) -> Tensor:
            if layer == 0:
                return value
            other = {"gaussian": value + noise[layer], "zero": 0 * value, "mean": means[layer].expand_as(value)}
            return torch.where(order[layer - 1] < count, other[ablation], value)

        logits = by_hand(model, task.test, change)
        found.append(float((logits.gather(1, task.test.answers) - logits.gather(1, task.test.foils)).mean()))
    (point,) = curve.of("logit_difference")
    assert [*point.skill_runs, *point.random_runs[0]] == pytest.approx(found, abs=1e-5)
    assert point.skill.value == pytest.approx(found[0], abs=1e-5)
    assert point.random.value == pytest.approx(sum(found[1:]) / 2, abs=1e-5)


@torch.no_grad()
def mean_neurons(model: Any, batch: Batch) -> list[Tensor]:
    _, cache = model.run_with_cache(batch.clean.ids)
    return [cache[f"blocks.{layer}.mlp.hook_post"].mean((0, 1)) for layer in range(model.cfg.n_layers)]


def test_intervals_are_those_of_the_bootstrap_over_examples_and_differences_are_paired() -> None:
    model, task = model_of("gpt2"), random_task()
    curve = tp.perturbation(
        model, task, random_scores(model), fractions=[0.5], ablation="zero", random_trials=1, seed=3
    )
    (point,) = curve.of("kl")
    group = neurons_of(tp.neurons(model))
    orders = [places(random_scores(model).values.view(3, WIDTH)), random_places(group, "3/0/0")]
    plain = by_hand(model, task.test, lambda _, value: value).log_softmax(-1)
    columns = []
    for order in orders:
        logits = by_hand(model, task.test, lambda layer, v, order=order: torch.where(order[layer] < WIDTH // 2, 0, v))
        columns.append((plain.exp() * (plain - logits.log_softmax(-1))).sum(-1))
    for own, expected in zip((point.skill, point.random), columns, strict=True):
        assert list(vars(own).values()) == pytest.approx(
            [*vars(interval(lambda x: x, expected, seed=3)).values()], abs=1e-5
        )
    paired = interval(lambda one, other: one - other, *columns, seed=3)
    assert [*vars(point.difference).values()] == pytest.approx([*vars(paired).values()], abs=1e-5)


def test_each_prompt_is_a_trial_with_draws_of_its_own(model: Any) -> None:
    """The second stand-in makes the other answer win, so its trial is the share of that answer."""
    task, scores = skill_task("one"), skill_scores(model, "one")
    prompts = [Shifted(12, 0.0), Shifted(12, 3.0)]
    before = model(task.test.clean.ids)
    curve = tp.perturbation(model, task, scores, prompts=prompts, fractions=[0, TWO], ablation="zero", random_trials=3)
    assert (curve.trials, curve.random_trials) == (2, 3)
    assert curve.at(0).skill_runs == pytest.approx((1, 1 - share_of_first(task)))
    assert curve.at(TWO).skill_runs == pytest.approx((share_of_first(task), 1 - share_of_first(task)))
    assert curve.at(TWO).skill.value == pytest.approx(0.5)
    assert [len(runs) for runs in curve.at(TWO).random_runs] == [3, 3]
    assert torch.equal(model(task.test.clean.ids), before)
    single = tp.perturbation(model, task, scores, prompts=prompts[:1], fractions=[TWO], random_trials=1)
    twice = tp.perturbation(model, task, scores, prompts=prompts[:1] * 2, fractions=[TWO], random_trials=1)
    assert twice.at(TWO, "kl").skill_runs[0] == single.at(TWO, "kl").skill_runs[0]
    assert twice.at(TWO, "kl").skill_runs[1] != single.at(TWO, "kl").skill_runs[0], "noise is drawn anew"
    still = [Shifted(12, 0.0)] * 2
    half = tp.perturbation(model, task, scores, prompts=still, fractions=[0.5], ablation="zero", random_trials=1)
    assert half.at(0.5, "kl").random_runs[0] != half.at(0.5, "kl").random_runs[1], "and so are random neurons"


def test_means_are_those_under_the_prompt() -> None:
    model, task = fresh("gpt2"), random_task()
    scores = random_scores(model)
    embedding = backend_of(model).parameters()["embed.W_E"]

    class Doubled(Shifted):
        @contextmanager
        def attached(self, model: Any) -> Iterator[Any]:
            with torch.no_grad():
                embedding.mul_(self.size)
            yield model
            with torch.no_grad():
                embedding.div_(self.size)

    found = tp.perturbation(
        model, task, scores, prompts=[Doubled(0, 2.0)], fractions=[1], ablation="mean", random_trials=1
    )  # fmt: skip
    with Doubled(0, 2.0).attached(model):
        means = mean_neurons(model, task.discovery.train())
        logits = by_hand(model, task.test, lambda layer, value: means[layer].expand_as(value))
    expected = float((logits.gather(1, task.test.answers) - logits.gather(1, task.test.foils)).mean())
    assert found.at(1, "logit_difference").skill.value == pytest.approx(expected, abs=1e-5)


def test_layers_outside_the_range_are_left_alone(model: Any) -> None:
    """The skill is in layer 0."""
    task, scores = skill_task("one"), skill_scores(model, "one")
    curve = tp.perturbation(model, task, scores, fractions=[1], ablation="zero", layers=range(1, 2), random_trials=1)
    assert (curve.layers, curve.at(1).skill.value) == ((1,), 1)
    whole = tp.perturbation(model, task, scores, fractions=[1], ablation="zero", layers=[0], random_trials=1)
    assert whole.at(1).skill.value == pytest.approx(share_of_first(task))


def test_sizes_of_batches_change_nothing(model: Any) -> None:
    task, scores = skill_task("one"), skill_scores(model, "one")
    found = [
        tp.perturbation(model, task, scores, fractions=[TWO, 0.5], random_trials=2, batch_size=size).points["kl"]
        for size in (3, 64)
    ]
    for one, other in zip(*found, strict=True):
        assert one.skill.value == pytest.approx(other.skill.value, rel=1e-6)
        assert one.random_runs[0] == pytest.approx(other.random_runs[0], rel=1e-6)


def test_what_runs_share_is_computed_once_and_equal_sets_run_once(model: Any) -> None:
    """Six fractions give 0, 0, 1, 1, 2 and 2 neurons: one unperturbed run and two for each of three orders."""
    task, scores = skill_task("one"), skill_scores(model, "one")
    fractions = [0, 0.5 / WIDTH, 1 / WIDTH, 1.5 / WIDTH, TWO, 2.5 / WIDTH]
    options: dict[str, Any] = {"fractions": fractions, "random_trials": 2, "ablation": "zero"}
    tp.perturbation(model, task, scores, **options)  # with the self-test of the first call
    with counted(model) as passes:
        tp.perturbation(model, task, scores, **options)
    reference = len(task.test)
    assert passes.forward == reference + 7 * len(task.test)


def test_the_tasks_own_figures_are_measured_and_its_own_accuracy_is_shown(model: Any) -> None:
    """One per example, and one of all examples together."""

    def margin(logits: Tensor, batch: Batch, reference: Tensor) -> Tensor:
        return (logits[:, 0].gather(1, batch.answers) - logits[:, 0].gather(1, batch.foils))[:, 0]

    def word_accuracy(logits: Tensor, batch: Batch, reference: Tensor) -> Tensor:
        return (margin(logits, batch, reference) > 0).float()

    def squared_mean(mean: Tensor) -> Tensor:
        return mean.square()

    together = Statistic(lambda *given: margin(*given)[:, None], squared_mean)
    metrics: dict[str, Any] = {"margin": margin, "word_accuracy": word_accuracy, "together": together}
    task = skill_task("one", metrics=metrics)
    curve = tp.perturbation(model, task, skill_scores(model, "one"), fractions=[0, TWO], ablation="zero")
    assert (curve.figure, curve.at(0).skill.value) == ("word_accuracy", 1)
    first = share_of_first(task)
    margins = [1.5 * first + 0.5 * (1 - first), 0.5 * first - 0.5 * (1 - first)]
    for fraction, expected in zip((0, TWO), margins, strict=True):
        assert curve.at(fraction, "margin").skill.value == pytest.approx(expected, abs=1e-6)
        assert curve.at(fraction, "together").skill.value == pytest.approx(expected**2, abs=1e-6)
    assert tp.perturbation(model, task, skill_scores(model, "one"), fractions=[0], figure="kl").at(0).skill.value < 1e-9


def test_a_curve_as_data_and_as_a_figure(model: Any) -> None:
    task = skill_task("one")
    options: dict[str, Any] = {"fractions": [0, TWO], "ablation": "zero", "random_trials": 2}
    curve = tp.perturbation(model, task, skill_scores(model, "one"), **options)
    data = json.loads(json.dumps(curve.as_dict(), allow_nan=False))
    assert data["points"]["accuracy"][1]["skill"]["value"] == curve.at(TWO).skill.value
    rows = [row for row in curve.rows if row["figure"] == "accuracy" and row["neurons"] == 2]
    assert [(row["trial"], row["draw"]) for row in rows] == [(0, None), (0, 0), (0, 1)]
    assert [row["value"] for row in rows] == [*curve.at(TWO).skill_runs, *curve.at(TWO).random_runs[0]]
    assert "4.17%" in str(curve)
    assert "1 trial with 2 draws" in str(curve)
    figure = curve.plot()
    told = f"<sup>{curve.examples} examples; bands: 95% over examples, worst to best of 2 runs</sup>"
    assert figure.layout.title.text.endswith(told)
    lines = {line.name: line for line in figure.data if line.name}
    assert [*lines["skill neurons"].y] == [point.skill.value for point in curve.of()]
    assert [*lines["random neurons"].x] == pytest.approx([0, 100 * TWO])
    assert [*lines["most frequent answer"].y] == [curve.chance] * 2
    high, low = (line for line in figure.data if line.legendgroup == "random" and line.line.width == 0)
    runs = curve.at(TWO).random_runs[0]
    assert (high.y[1], low.y[1]) == (max(runs), min(runs))
    high, low = (line for line in figure.data if line.legendgroup == "skill" and line.line.width == 0)
    assert (high.y[1], low.y[1]) == (curve.at(TWO).skill.high, curve.at(TWO).skill.low)
    assert {line.name for line in curve.plot("kl").data if line.name} == {"skill neurons", "random neurons"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fractions": [0.1, 1.5]}, "lies between 0 and 1 but is 1.5"),
        ({"fractions": []}, "at least one fraction"),
        ({"random_trials": 0}, "at least one draw"),
        ({"layers": [0, 2]}, "layers 0, 2 were asked for"),
        ({"layers": []}, "layers none were asked for"),
        ({"figure": "nothing"}, "'nothing' was asked for"),
    ],
)
def test_what_cannot_be_perturbed_is_refused(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tp.perturbation(model, skill_task("one"), skill_scores(model, "one"), **{"fractions": [0], **options})


def test_scores_of_other_sites_and_points_that_are_not_there_are_refused(model: Any) -> None:
    task = skill_task("one")
    for sites in (tp.heads(model), tp.neurons(model, spans=("end",))):
        with pytest.raises(ValueError, match="needs scores of neurons"):
            tp.perturbation(model, task, tp.Scores(sites, torch.zeros(len(sites))))
    wider = random_scores(model_of("gpt2"))
    with pytest.raises(ValueError, match="in layers up to 2"):
        tp.perturbation(model, task, wider, fractions=[0])
    curve = tp.perturbation(model, task, skill_scores(model, "one"), fractions=[0], random_trials=1)
    with pytest.raises(ValueError, match=r"at fractions 0 but 0\.5"):
        curve.at(0.5)
    with pytest.raises(ValueError, match="'nothing' was asked for"):
        curve.plot("nothing")


# ---- tasks by tasks


def test_each_task_needs_its_own_neurons_and_not_the_others(model: Any) -> None:
    tasks = {name: skill_task(name) for name in SKILLS}
    scores = {name: skill_scores(model, name) for name in SKILLS}
    found = tp.skill_specificity(model, tasks, scores, fraction=TWO, ablation="zero", random_trials=4)
    assert found.columns == ("one", "other", "random")
    for name, other in (("one", "other"), ("other", "one")):
        row = found[name]
        assert row.plain.value == row[other].value.value == 1
        assert row[name].value.value == pytest.approx(share_of_first(tasks[name]))
        assert row[name].change.value == pytest.approx(share_of_first(tasks[name]) - 1)
        assert (row[name].change.sign, row[other].change.sign) == (-1, 0)
        curve = tp.perturbation(model, tasks[name], scores[name], fractions=[TWO], ablation="zero", random_trials=4)
        assert row["random"].runs == curve.at(TWO).random_runs[0]
        assert row["random"].value.value == pytest.approx(curve.at(TWO).random.value)


def test_tasks_by_tasks_as_data_and_as_a_figure(model: Any) -> None:
    tasks = {name: skill_task(name) for name in SKILLS}
    scores = {name: skill_scores(model, name) for name in SKILLS}
    said: list[str] = []
    prompts = {"one": [Shifted(12, 3.0), Shifted(12, 0.0)]}
    found = tp.skill_specificity(
        model, tasks, scores, prompts=prompts, fraction=TWO, ablation="zero", random_trials=1, tell=said.append
    )  # fmt: skip
    assert (found["one"].trials, found["other"].trials, len(said)) == (2, 1, 2)
    assert found["one"].plain.value == pytest.approx((1 + 1 - share_of_first(tasks["one"])) / 2)
    data = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert data["tasks"]["other"]["cells"]["one"]["value"]["value"] == 1
    assert len(found.rows) == 6
    assert found.rows[4] | {"value": 0, "low": 0, "high": 0} == {
        "task": "other", "figure": "accuracy", "neurons_of": "other", "value": 0, "low": 0, "high": 0,
        **{f"change_{end}": value for end, value in vars(found["other"]["other"].change).items()},
    }  # fmt: skip
    assert "neurons of other" in str(found)
    (cells,) = found.plot().data
    assert [*cells.x] == ["one", "other", "random"]
    assert cells.z[1][1] == found["other"]["other"].change.value
    assert cells.text[1][0] == "1.000 (+0.000)"


def test_tasks_by_tasks_refuse_what_does_not_go_together(model: Any) -> None:
    task, scores = {"one": skill_task("one")}, {"one": skill_scores(model, "one")}
    with pytest.raises(ValueError, match="'random' is that of random neurons"):
        tp.skill_specificity(model, task, {"random": scores["one"]})
    with pytest.raises(ValueError, match="some are of other"):
        tp.skill_specificity(model, task, scores, prompts={"other": []})
    fewer = tp.Scores(tp.neurons(model, "m1"), torch.zeros(WIDTH))
    with pytest.raises(ValueError, match="by the same neurons"):
        tp.skill_specificity(model, task, scores | {"fewer": fewer})
    with pytest.raises(ValueError, match="the scores are of none"):
        tp.skill_specificity(model, task, {})
    both = scores | {"fewer": fewer}
    assert tp.skill_specificity(model, task, both, layers=[1], random_trials=1).layers == (1,)
