"""The settings with which Edge Pruning's paper and its code prune each of their tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tlprune.choices import choice
from tlprune.circuit import Circuit
from tlprune.learning.objectives import KL
from tlprune.masking.ablation import Ablation, Resample, Zero
from tlprune.methods.edge_pruning import EdgePruning
from tlprune.task import Discovery, Task


@dataclass(frozen=True)
class PaperRecipe:
    """What :class:`~tlprune.EdgePruning` is told for one of the paper's tasks.

    Attributes:
        settings: the method at the recipe's own target.
        ablation: what replaced ablated edges.
        targets: the edge targets that the code sweeps; those above 1 are pressure that never rests.
        node_sparsity: the target of writers where the node loss is on; ``settings`` say whether it was.
        compared: over which tokens the KL is taken: the ``"vocabulary"``, or the ``"years"`` of greater-than.
    """

    settings: EdgePruning
    ablation: Ablation
    targets: tuple[float, ...]
    node_sparsity: float
    compared: Literal["vocabulary", "years"] = "vocabulary"

    def method(self, task: Task | Discovery, *, sparsity: float | None = None, **changes: Any) -> EdgePruning:
        """The method for a task.

        Args:
            task: whose tokens the KL may be over.
            sparsity: another edge target.
            changes: other fields of the method, such as ``seed=1``, or ``node_sparsity=recipe.node_sparsity`` for the
                node loss.

        Raises:
            ValueError: the task does not say which tokens its years are; or as the method raises.
        """
        target = self.settings.sparsity if sparsity is None else sparsity
        objective = KL(tokens=_years(task)) if self.compared == "years" else self.settings.objective
        return replace(self.settings, **{"sparsity": target, "objective": objective, **changes})

    def find(self, model: Any, task: Task | Discovery, *, sparsity: float | None = None, **files: Any) -> Circuit:
        """The circuit of a task under the recipe's ablation; ``files`` as of :meth:`tlprune.EdgePruning.find`."""
        return self.method(task, sparsity=sparsity).find(model, task, ablation=self.ablation, **files)


def _years(task: Task | Discovery) -> tuple[int, ...]:
    options = task.options if isinstance(task, Task) else task.provenance["options"]
    if "number_tokens" not in options:
        raise ValueError(
            f"The recipe of greater-than compares years but {task.name!r} does not say which tokens these are. Take "
            "tp.tasks.greater_than, or another recipe."
        )
    return tuple(options["number_tokens"].values())


class Recipes(Mapping[str, PaperRecipe]):
    """The recipes of Edge Pruning's paper by task: ``tp.recipes["ioi"].find(model, task)``.

    Rates are those of masks and of multipliers, warm-ups those of the rates and of the targets; weight decay 0.01,
    gradients clipped at 1 and gates that start at 10 are common to all (``EdgePruning(recipe="paper")``).

    ==============================  =========  =====  ============  =====  ===========  ===========  ===========
    task                            rates      steps  warm-ups      batch  edge target  node target  ablation
    ==============================  =========  =====  ============  =====  ===========  ===========  ===========
    ioi, ioi-t1                     .8, .8     3,000  200, 2,500    32     .94 ... 1.1  .72, off     interchange
    greater-than, KL over years     .8, .8     3,000  200, 2,500    32     .95 ... 1.1  .68, off     interchange
    gendered-pronoun                .8, .8     3,000  200, 2,500    32     .93 ... 1.4  .69, off     interchange
    reverse                         .03, .001  6,000  1,500, 5,900  16     1.02         .1, off      zero
    xproportion                     1, .0001   720    96, 640       16     .92          .4, on       zero
    boolean-few-shot, -instruction  .8, .4     6,000  200, 5,500    32     1.2          .7, off      interchange
    ==============================  =========  =====  ============  =====  ===========  ===========  ===========

    Where several targets were swept, ``settings`` have .98, and ``targets`` all. As in the code, the circuit has the
    size that training reaches. Embeddings are one node here and two in the code's GPT-2; of Boolean expressions they
    are always kept, as there. The batch of Boolean expressions is one example on each of 32 devices. Node gates
    without a node loss are not trained in the code, and are left out here.

    Source: Bhaskar et al., "Finding Transformer Circuits with Edge Pruning" (NeurIPS 2024), appendix, and the scripts
    of princeton-nlp/Edge-Pruning.

    Example:
        >>> reverse = Recipes()["reverse"]
        >>> reverse.settings.sparsity, reverse.settings.rate, reverse.ablation
        (1.02, 0.03, Zero())
        >>> sorted(Recipes())[:3]
        ['boolean-few-shot', 'boolean-instruction', 'gendered-pronoun']
    """

    def __getitem__(self, task: str) -> PaperRecipe:
        return choice("recipe", task, _KNOWN)

    def __iter__(self) -> Iterator[str]:
        return iter(_KNOWN)

    def __len__(self) -> int:
        return len(_KNOWN)

    def __contains__(self, task: object) -> bool:
        return task in _KNOWN


_REACHED = EdgePruning(
    recipe="paper", size="reached", sparsity=0.98, steps=3000, rate=0.8, multiplier_rate=0.8, warmup=200, rise=2500
)
_TOP = (0.95, 0.955, 0.96, 0.965, 0.97, 0.975, 0.98, 0.985, 0.99, 0.995, 1.0)
_IOI = PaperRecipe(_REACHED, Resample(), (0.94, 0.945, *_TOP, 1.01, 1.02, 1.05, 1.1), 0.72)
_BOOLEAN = PaperRecipe(
    replace(
        _REACHED, sparsity=1.2, steps=6000, rate=0.8, multiplier_rate=0.4, warmup=200, rise=5500, keep_embeddings=True
    ),
    Resample(),
    (1.2,),
    0.7,
)
_REVERSE = replace(
    _REACHED, sparsity=1.02, steps=6000, rate=0.03, multiplier_rate=0.001, warmup=1500, rise=5900, batch_size=16
)
_PROPORTION = replace(
    _REACHED, sparsity=0.92, steps=720, rate=1.0, multiplier_rate=1e-4, warmup=96, rise=640, batch_size=16,
    node_sparsity=0.4,
)  # fmt: skip
_KNOWN = {
    "ioi": _IOI,
    "ioi-t1": _IOI,
    "greater-than": PaperRecipe(_REACHED, Resample(), (*_TOP, 1.01, 1.02, 1.05, 1.1), 0.68, "years"),
    "gendered-pronoun": PaperRecipe(_REACHED, Resample(), (0.93, 0.94, 0.945, *_TOP, 1.05, 1.1, 1.15, 1.2, 1.4), 0.69),
    "reverse": PaperRecipe(_REVERSE, Zero(), (1.02,), 0.1),
    "xproportion": PaperRecipe(_PROPORTION, Zero(), (0.92,), 0.4),
    "boolean-few-shot": _BOOLEAN,
    "boolean-instruction": _BOOLEAN,
}
recipes = Recipes()
