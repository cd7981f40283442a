"""One-shot saliency pruning: every weight of the linear layers is scored once, and the best are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from tlprune.backends import backend_of
from tlprune.circuit import Circuit
from tlprune.masking.ablation import Ablation, Zero
from tlprune.masking.installing import refuse_installed
from tlprune.masking.sites import prunable
from tlprune.methods.ablations import ablation_for
from tlprune.methods.compression import density_for
from tlprune.methods.criteria import Criterion, GradCAM
from tlprune.methods.effects import check_batch_size
from tlprune.methods.provenance import provenance_of
from tlprune.methods.saliency_pass import passed_over
from tlprune.methods.scoring import Scoring, check_numbers
from tlprune.scores import Scores
from tlprune.selection import PerOutput, PerTensor, Selection, Top
from tlprune.sites import Sites, Weights
from tlprune.task import Discovery, Task

Scope = Literal["layer", "global", "output"]
SELECTIONS: dict[Scope, Selection] = {"layer": PerTensor(), "global": Top(), "output": PerOutput()}
DENSITY = 0.5  # what is kept unless a setting says otherwise


@dataclass(frozen=True, kw_only=True)
class Saliency(Scoring):
    """Score every weight of the linear layers by a criterion, in one pass over training batches, and keep the best.

    The sites are those of :func:`~tlprune.prunable`: weights and biases of every linear layer but the classifier. The
    loss is that of the task's labels, cross entropy or, of a regression, the mean squared error. Padding counts
    neither in mean activations nor in norms of inputs. A removed weight is 0, so nothing of an ablation is used; it is
    only written down.

    One pass gives scores for every density and scope: :meth:`cut` takes circuits of them, and
    :func:`~tlprune.saliency_scores` scores by several criteria at once.

    Attributes:
        criterion: what a weight is worth.
        scope: which weights compete: ``"layer"``: each tensor's own, so that all tensors keep the same share;
            ``"global"``: all in one pool; ``"output"``: those of one output of a matrix, as Wanda's source has it.
        density: share of the prunable weights to keep, in (0, 1]; half of them, if none of the three is given.
        sparsity: or the share to remove, in [0, 1).
        compression: or all parameters of the model over those that remain, as in ShrinkBench, at least 1.
        batches: training batches that are looked at, if there are so many; ``None``: as many as the source, 1,000, or
            100 under noise.
        batch_size: examples per batch.
        seed: of the order of examples, of noise and of random scores.
        classifier: name of the layer that is left alone, as of :func:`~tlprune.prunable`.

    Raises:
        ValueError: a setting is out of range or two give the size; or in :meth:`score`, the task has no labels, or the
            model no such classifier; or in :meth:`cut`, the compression is beyond what prunable weights allow.
        RuntimeError: the model has masks installed.

    Source: Blalock, Gonzalez Ortiz, Frankle, Guttag, "What is the State of Neural Network Pruning?" (MLSys 2020), whose
    ShrinkBench it follows, and the strategies of DeepCuts on it.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> method = tp.Saliency(criterion=tp.SNIP(), scope="global", density=0.25, batches=2)
        >>> circuit = method.find(planted.model, planted.task)
        >>> len(circuit) == round(0.25 * len(circuit.sites))
        True
    """

    criterion: Criterion = field(default=GradCAM(shift=10.0))
    scope: Scope = "layer"
    density: float | None = None
    sparsity: float | None = None
    compression: float | None = None
    batches: int | None = None
    batch_size: int = 16
    seed: int = 0
    classifier: str | None = None

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        if self.scope not in get_args(Scope):
            raise ValueError(
                f"scope must be one of {', '.join(map(repr, get_args(Scope)))} but is {self.scope!r}. "
                "Choose one of these."
            )
        if self.batches is not None and self.batches < 1:
            raise ValueError(f"batches must be at least 1 but is {self.batches}. Leave it out for those of the source.")
        if not isinstance(self.criterion, Criterion):
            raise ValueError(
                f"A criterion is such as tp.GradCAM() but got {self.criterion!r}. Of an original name take the whole "
                "method: tp.saliency_strategy('LayerGradCAMShift')."
            )
        self._check_size()

    def _check_size(self) -> None:
        given = [name for name in ("density", "sparsity", "compression") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"One of density, sparsity and compression says how many weights are kept but {' and '.join(given)} "
                "are given. Leave one."
            )
        if self.density is not None and not 0 < self.density <= 1:
            raise ValueError(f"density must lie in (0, 1] but is {self.density}. For a tenth of the weights give 0.1.")
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must lie in [0, 1) but is {self.sparsity}. For 90% removed give 0.9.")
        if self.compression is not None and not self.compression >= 1:
            raise ValueError(
                f"compression is all parameters over those that remain, at least 1, but is {self.compression}. For "
                "half of them give 2."
            )

    def sites(self, model: Any) -> Sites:
        return prunable(model, classifier=self.classifier)

    def count(self, sites: Sites) -> int:
        """How many weights a density or sparsity keeps; a compression needs the model, see :meth:`kept_of`."""
        share = self.density if self.density is not None else DENSITY if self.sparsity is None else 1 - self.sparsity
        return round(share * len(sites))

    def kept_of(self, model: Any, sites: Sites) -> int:
        """How many of a model's prunable weights are kept.

        Raises:
            ValueError: no number of them gives the compression.
        """
        if self.compression is None:
            return self.count(sites)
        return round(density_for(model, sites, self.compression) * len(sites))

    @property
    def selection(self) -> Selection:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What lets the weights of the scope compete."""
        return SELECTIONS[self.scope]

    @property
    def most(self) -> int:
        """Batches that are looked at, if there are so many."""
        return self.criterion.most if self.batches is None else self.batches

    def score(
        self, model: Any, task: Task | Discovery, *, ablation: Ablation | None = None, progress: bool = False
    ) -> Scores:
        """A score for every prunable weight, never negative.

        Args:
            model: a TransformerLens model; left as it was.
            task: labelled examples, of which only training ones are used; corrupted prompts are not.
            ablation: what is written down as replacing ablated activations; removed weights are 0.
            progress: whether to show a progress bar.
        """
        return saliency_scores(model, task, [self], ablation=ablation, progress=progress)[0]

    def cut(self, model: Any, scores: Scores) -> Circuit:
        """The circuit of this scope and size that scores give; they may be of a method with another scope or size.

        Args:
            model: that was scored.
            scores: of its prunable weights.
        """
        return self.selection.select(scores, self.kept_of(model, scores.sites))

    def find(
        self, model: Any, task: Task | Discovery, *, ablation: Ablation | None = None, progress: bool = False
    ) -> Circuit:
        """The circuit of the best weights; the arguments are those of :meth:`score`."""
        self.kept_of(model, self.sites(model))
        return self.cut(model, self.score(model, task, ablation=ablation, progress=progress))

    def values(
        self, model: Any, discovery: Discovery, sites: Sites, ablation: Ablation, *, progress: bool
    ) -> Float[Tensor, "site"]:
        return self.score(model, discovery, ablation=ablation, progress=progress).values


def saliency_scores(
    model: Any,
    task: Task | Discovery,
    methods: Sequence[Saliency],
    *,
    ablation: Ablation | None = None,
    progress: bool = False,
) -> list[Scores]:
    """Scores by several methods from one pass over the examples, each the same as alone.

    Methods of plain gradients or activations share one forward and backward run per batch, those of the same noise its
    runs, and methods that differ in scope or size alone share everything. Beside the gradients there is one total for
    each criterion.

    Args:
        model: a TransformerLens model; left as it was.
        task: labelled examples, of which only training ones are used.
        methods: with one ``batch_size``, ``seed`` and ``classifier``.
        ablation: what is written down as replacing ablated activations.
        progress: whether to show a progress bar.

    Raises:
        ValueError: there is no method, the methods' passes differ, the task has no labels, or the model no such
            classifier.
        FloatingPointError: a score is not a number.
        RuntimeError: the model has masks installed.

    Example:
        >>> import tlprune as tp
        >>> planted = tp.planted("copy")
        >>> methods = [tp.Saliency(criterion=one, batches=2) for one in (tp.Wanda(), tp.GradCAM())]
        >>> wanda, cam = tp.saliency_scores(planted.model, planted.task, methods)
        >>> bool((cam.values == methods[1].score(planted.model, planted.task).values).all())
        True
    """
    first = _checked(methods)
    discovery, sites = task.discovery if isinstance(task, Task) else task, first.sites(model)
    used = ablation_for(discovery, Zero() if ablation is None else ablation)
    provenances = [provenance_of(one, model, discovery=discovery, sites=sites, ablation=used) for one in methods]
    refuse_installed(model)
    wanted = list(dict.fromkeys((one.criterion, one.most) for one in methods))
    weights = sites.group("weights")
    assert isinstance(weights, Weights)
    found = passed_over(
        backend_of(model),
        weights,
        discovery.train(),
        wanted,
        batch_size=first.batch_size,
        seed=first.seed,
        progress=progress,
    )
    values = dict(zip(wanted, found, strict=True))
    for one in found:
        check_numbers(one)
    pairs = zip(methods, provenances, strict=True)
    return [Scores(sites, values[one.criterion, one.most], provenance) for one, provenance in pairs]


def _checked(methods: Sequence[Saliency]) -> Saliency:
    """The first of methods that can share a pass."""
    if len({(one.batch_size, one.seed, one.classifier) for one in methods}) != 1:
        raise ValueError(
            f"One pass needs methods with the same batch_size, seed and classifier but got {len(methods)} that differ "
            "in these, or none. Score those apart: method.score(model, task)."
        )
    return methods[0]
