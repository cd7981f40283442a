"""What a model forgets without a subnetwork, and what it keeps: perplexities, ranks and probabilities of answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.evaluation.table import aligned, number
from tlprune.knowledge.answering import TOPS, Answered, answered
from tlprune.knowledge.case_figures import CaseFigures, case_figures
from tlprune.knowledge.cases import Case, Split, batch_of, cases_of, examples_of
from tlprune.knowledge.plots import ratio_bars
from tlprune.learning.bootstrap import RESAMPLES, Interval
from tlprune.learning.reading import MOST_LOGITS
from tlprune.masking.ablation import Zero
from tlprune.masking.checks import check_model
from tlprune.masking.masked import Masked, masked_circuit
from tlprune.task import MAIN, Task

FOUND = "found"
Kind = Literal["full", "remaining", "expressed"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Subject(NamedTuple):
    """A run of a mask.

    Attributes:
        circuit: name of the circuit; ``""`` for the full model.
        kind: ``"full"``: all weights; ``"remaining"``: without the circuit's; ``"expressed"``: with these alone.
    """

    circuit: str
    kind: Kind

    def __str__(self) -> str:
        return {"full": "full", "remaining": f"without {self.circuit}", "expressed": f"{self.circuit} alone"}[self.kind]


FULL = Subject("", "full")


@dataclass(frozen=True)
class KnowledgeFigures:
    """Runs of the same model in the same cases; printing it gives a table, and one of the target by template.

    Attributes:
        sizes: of each circuit: how many sites it has.
        total: sites in all.
        found: figures by run and case.
        held_out: the split that is held out.
    """

    sizes: Mapping[str, int]
    total: int
    found: Mapping[Subject, Mapping[Case, CaseFigures]]
    held_out: str

    def at(
        self,
        stream: str = MAIN,
        split: str | None = None,
        *,
        template: str | None = None,
        circuit: str = FOUND,
        kind: Kind = "remaining",
    ) -> CaseFigures:
        """Figures of one run in one case.

        Args:
            stream: ``"main"``, ``"control"`` or ``"text"``.
            split: ``"train"``, or what is held out, which it is by default.
            template: one of the case's; all by default.
            circuit: name of the circuit.
            kind: ``"remaining"``, ``"expressed"`` or, whatever the circuit, ``"full"``.

        Raises:
            ValueError: there is no such run or case.
        """
        subject = FULL if kind == "full" else Subject(circuit, kind)
        case = Case(stream, split or self.held_out, template)
        if subject not in self.found or case not in self.found[subject]:
            raise ValueError(
                f"There are figures of {'; '.join(map(str, self.found))}, in the cases "
                f"{'; '.join(map(str, self.found[FULL]))}, but {subject} in {case} was asked for. Name some of these."
            )
        return self.found[subject][case]

    @property
    def templates(self) -> tuple[Case, ...]:
        """The cases of single templates."""
        return tuple(case for case in self.found[FULL] if case.template is not None)

    def sparsity(self, circuit: str = FOUND) -> float:
        """Fraction of the sites that are not in a circuit."""
        return 1 - self.sizes[circuit] / self.total

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        circuits = {name: {"kept": size, "sparsity": self.sparsity(name)} for name, size in self.sizes.items()}
        rows = [
            {
                **subject._asdict(),
                "stream": case.stream,
                "split": case.split,
                "template": case.template,
                **one.as_dict(),
            }
            for subject, cases in self.found.items()
            for case, one in cases.items()
        ]
        return {"circuits": circuits, "total": self.total, "held_out": self.held_out, "rows": rows}

    def __str__(self) -> str:
        header = ["", "perplexity", "ratio", "95% of it", "change (nats)", "rank", *(f"top {top}" for top in TOPS)]
        whole = [case for case in self.found[FULL] if case.template is None]
        rows = [row for case in whole for row in self._rows(case)]
        sizes = [
            f"{name}: {size:,} of {self.total:,} sites, {100 * self.sparsity(name):.2f}% sparse"
            for name, size in self.sizes.items()
        ]
        brackets = "means over answers, of single ones [from, to]; intervals by the bootstrap over facts or blocks"
        return "\n".join([*sizes, *aligned(header, rows), brackets, "", *self._template_lines()])

    def _rows(self, case: Case) -> Iterator[list[str]]:
        one = self.found[FULL][case]
        yield [f"{case} ({one.units:,} {'blocks' if case.stream == 'text' else 'facts'})", *[""] * (5 + len(TOPS))]
        for subject, cases in self.found.items():
            yield [f"  {subject}", *_cells(cases[case])]

    def _template_lines(self) -> list[str]:
        others = [subject for subject in self.found if subject != FULL]
        rows = [
            [str(case), str(self.found[FULL][case].units), *(_times(self.found[one][case].ratio) for one in others)]
            for case in self.templates
            if case.stream == MAIN
        ]
        return aligned(["perplexity over the full model's", "facts", *map(str, others)], rows) if rows else []

    def plot(self) -> Any:
        """Bars of plotly: perplexity over the full model's of each run, by case, with intervals.

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        cases = [case for case in self.found[FULL] if case.template is None]
        return ratio_bars(self._ratios(cases), title="Perplexity over the full model's")

    def plot_templates(self, stream: str = MAIN) -> Any:
        """The same by template, of one stream.

        Raises:
            ModuleNotFoundError: plotly is not installed.
        """
        cases = [case for case in self.templates if case.stream == stream]
        return ratio_bars(self._ratios(cases), title="Perplexity over the full model's, by template")

    def _ratios(self, cases: Sequence[Case]) -> dict[str, dict[str, Interval]]:
        return {
            str(subject): {str(case): found[case].ratio for case in cases}
            for subject, found in self.found.items()
            if subject != FULL
        }


def knowledge_figures(
    model: Any,
    circuits: Circuit | Mapping[str, Circuit],
    task: Task,
    *,
    kinds: Sequence[str] = ("remaining", "expressed"),
    held_out: Split = "test",
    most: int = MOST_LOGITS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> KnowledgeFigures:
    """Measure knowledge-critical subnetworks, without sampling, beside the full model.

    The model is run with all weights, without those of a circuit (remaining: has it forgotten the target and nothing
    else?) and with those alone (expressed). Perplexity is ``exp(sum nats / answers)`` over all answers of a case,
    whatever the batches. Intervals are 95%, by the bootstrap over facts with all their sentences, or over blocks of
    text; ratios are paired.

    Source: Bayazit et al., "Discovering Knowledge-Critical Subnetworks in Pretrained Language Models" (EMNLP 2024),
    section 4; of ranks, its appendix.

    Args:
        model: the model that the circuits are of.
        circuits: what is removed, or several of the same sites by name, such as baselines; one is called ``"found"``.
        task: with streams ``"main"``, ``"control"`` and ``"text"``, such as of :func:`tlprune.tasks.knowledge`.
        kinds: which runs of each circuit.
        held_out: ``"test"``, or ``"validation"`` while settings are chosen.
        most: logits that may be alive at once.
        resamples: draws of the bootstrap.
        seed: of these.

    Raises:
        ValueError: the task lacks a stream, the circuits have different sites or are of another model, or there is no
            such run.

    Example:
        >>> import tlprune as tp
        >>> model = tp.load("world", device="cpu")
        >>> task = tp.tasks.world(model, text_blocks=1)
        >>> sites = tp.weights(model, "blocks.3.attn.W_O")
        >>> nothing = tp.Circuit(sites, torch.zeros(len(sites), dtype=torch.bool))
        >>> figures = tp.knowledge_figures(model, nothing, task, kinds=["remaining"], resamples=100)
        >>> figures.at("text").ratio.value, figures.at("control").top[1].value, figures.sparsity()
        (1.0, 1.0, 1.0)
    """
    named = {FOUND: circuits} if isinstance(circuits, Circuit) else dict(circuits)
    masked, cases = _masked(model, named), cases_of(task, held_out)
    subjects = {FULL: torch.ones_like(next(iter(named.values())).kept)}
    subjects |= {Subject(name, kind): _kept(one, kind) for name, one in named.items() for kind in _known(kinds)}
    said = {subject: _said(masked, kept, task, cases, most) for subject, kept in subjects.items()}
    found = {
        subject: {
            case: case_figures(own[case], said[FULL][case], batch_of(task, case).groups, resamples=resamples, seed=seed)
            for case in cases
        }
        for subject, own in said.items()
    }
    return KnowledgeFigures({name: len(one) for name, one in named.items()}, len(masked.sites), found, held_out)


def _masked(model: Any, circuits: Mapping[str, Circuit]) -> Masked:
    if not circuits:
        raise ValueError("Figures of knowledge need a circuit but got none. Give one, or several by name.")
    first, *others = circuits.values()
    masked = masked_circuit(model, first, Zero())
    for other in others:
        if other.sites != first.sites:
            raise ValueError(
                f"Circuits need the same sites to be compared but have {first.sites} and {other.sites}. Take all over "
                "the same matrices and unit."
            )
        check_model(masked.backend, other, masked.ablation)
    return masked


def _known(kinds: Sequence[str]) -> list[Kind]:
    """Runs beside that of the full model."""
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"Runs are {', '.join(KINDS)} but {kind!r} was asked for. Name some of these.")
    return [kind for kind in KINDS if kind in kinds and kind != "full"]


def _kept(circuit: Circuit, kind: Kind) -> Bool[Tensor, "site"]:
    return circuit.kept if kind == "expressed" else ~circuit.kept


def _said(masked: Masked, kept: Tensor, task: Task, cases: Sequence[Case], most: int) -> dict[Case, Answered]:
    """A run's answers in each case; those of a template are some of the split's, so each split is run once."""
    whole = {case: answered(masked, kept, batch_of(task, case), most=most) for case in cases if case.template is None}
    return {case: whole[Case(case.stream, case.split)].of(examples_of(task, case)) for case in cases}


def _cells(one: CaseFigures) -> list[str]:
    shares = [number(one.top[top].value, 3) for top in TOPS]
    change = f"{_plain(one.change.mean.value)} [{_plain(one.change.least)}, {_plain(one.change.most)}]"
    rank = f"{_plain(one.rank.mean.value)} [{one.rank.least:,.0f}, {one.rank.most:,.0f}]"
    between = f"{_plain(one.ratio.low)} to {_plain(one.ratio.high)}"
    return [_plain(one.perplexity.value), _times(one.ratio), between, change, rank, *shares]


def _times(ratio: Interval) -> str:
    return f"x {_plain(ratio.value)}"


def _plain(value: float) -> str:
    """Three decimals where they tell something."""
    return number(value, 3 if abs(value) < 100 else 1)
