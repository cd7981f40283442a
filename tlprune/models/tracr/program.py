"""Compiled programs as models whose circuit is known."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tlprune.choices import choice
from tlprune.circuit import Circuit
from tlprune.models.tracr.circuits import Behaviour, Embeddings, structural_edges
from tlprune.models.tracr.compiled import PREFIX, Compiled, Value
from tlprune.models.tracr.compiler import KNOWN, compiled_program, known_program
from tlprune.models.tracr.tasks import complete_task
from tlprune.task import Task

WEIGHTS = Path(__file__).parent / "weights"
SHIPPED = ("reverse", "xproportion")
TOLERANCE = 1e-3  # of decoded numbers; what edges change of the shipped ones is above 0.01


@dataclass(frozen=True, eq=False)
class Tracr:
    """A compiled program: its model, all of its inputs, and the edges by which it works.

    Attributes:
        model: a ``HookedTransformer``, or on TransformerLens 4 a ``TransformerBridge``, without norms, bidirectional
            unless compiled to be causal.
        task: every input of one length, each answered at every position; see :func:`~tlprune.tracr`.
        program: the weights, what ids stand for, and what the program means.
    """

    model: Any
    task: Task
    program: Compiled

    def __repr__(self) -> str:
        return f"Tracr({self.program.name!r}, {len(self.program.sequences):,} inputs)"

    @property
    def explanation(self) -> str:
        """What the program computes, and how."""
        return self.program.explanation

    @cached_property
    def structural(self) -> Circuit:
        """The edges whose reader's weights meet what their writer writes, with merged embeddings."""
        return self.structural_with("merged")

    @cached_property
    def behavioural(self) -> Circuit:
        """The edges that matter one at a time under zero ablation, with merged embeddings."""
        return self.behavioural_with()

    @property
    def circuit(self) -> Circuit:
        """:attr:`behavioural`, under the name that other models of known circuit have it."""
        return self.behavioural

    def structural_with(self, embeddings: Embeddings) -> Circuit:
        """The structural circuit in a convention: edges with ``W_writer @ W_reader`` not 0, on a path to the logits.

        Any other edge has no effect, whatever is ablated.
        """
        found = structural_edges(self.model, embeddings=embeddings)
        return found.like(found.kept, self._provenance("structural"))

    def behavioural_with(self, replacing: str = "zero", embeddings: Embeddings = "merged") -> Circuit:
        """The edges each of which, ablated alone, changes what is decoded of some input.

        Args:
            replacing: what an ablated edge carries: ``"zero"``, nothing; ``"interchange"``, what it carries on another
                input, any of them.
            embeddings: whether token and position embedding are one node, two, or always kept and not counted.

        Raises:
            ValueError: there is no such ablation.
        """
        found = self.behaviour.edges_that_matter(self.structural_with(embeddings), replacing)
        return found.like(found.kept, self._provenance("behavioural", replacing))

    def least(self, replacing: str = "zero") -> Circuit:
        """A smallest sufficient part of the structural circuit: it decodes every input right, and loses that with any
        of its edges.

        Where two edges stand for one another there are several such parts, and :attr:`behavioural` has neither edge.
        """
        found = self.behaviour.least(self.structural, replacing)
        return found.like(found.kept, self._provenance("least", replacing))

    def solves(self, circuit: Circuit, replacing: str = "zero") -> bool:
        """Whether a circuit alone decodes every input as the whole model does."""
        return self.behaviour.solves(circuit, replacing)

    def is_least(self, circuit: Circuit, replacing: str = "zero") -> bool:
        """Whether a circuit :meth:`solves` the task, and no longer does without any one of its edges."""
        return self.behaviour.is_least(circuit, replacing)

    def decode(self, logits: Float[Tensor, "example place output"]) -> list[list[Value]]:
        """What the program's outputs stand for: the likeliest value of each position, or the number.

        Args:
            logits: at the positions behind the first token, such as those of ``task.test.positions``.
        """
        outputs = self.program.outputs
        if outputs is None:
            return logits[..., 0].tolist()
        return [[outputs[index] for index in row] for row in logits.argmax(-1).tolist()]

    def __call__(self, sequences: Sequence[Sequence[Value]]) -> list[list[Value]]:
        """What the model makes of some inputs: encoded, run, decoded.

        Example:
            >>> tracr("reverse")([[1, 2, 3], [3, 3, 1]])
            [[3, 2, 1], [1, 3, 3]]
        """
        return self.decode(self.model(self.program.encode(sequences))[:, 1:].detach())

    @cached_property
    def behaviour(self) -> Behaviour:
        """What circuits do on every input."""
        numbers = self.program.outputs is None

        def decode(logits: Tensor) -> Tensor:
            return logits[..., 0] if numbers else logits.argmax(-1).to(logits)

        return Behaviour(self.model, self.task.test, decode, tolerance=TOLERANCE)

    def _provenance(self, kind: str, replacing: str | None = None) -> dict[str, Any]:
        found = {"source": "compiled weights", "name": f"{PREFIX}{self.program.name}", "kind": kind}
        names = {"zero": "zero", "interchange": "resample"}
        return found if replacing is None else found | {"ablation": {"name": names[replacing]}}


def tracr(
    program: Any = "reverse",
    vocabulary: Collection[Value] = (),
    *,
    length: int = 0,
    longest: int | None = None,
    name: str = "own",
    causal: bool = False,
) -> Tracr:
    """A program in RASP as a transformer, with the circuits that it runs on.

    The weights of ``reverse`` and ``xproportion`` are in the package. ``sort``, ``hist``, ``shuffle-dyck`` and programs
    of one's own are compiled, which needs ``pip install 'tlprune[tracr]'``. The model is Tracr's, with the same
    outputs: one-hot embeddings, no norm, attention to all positions, a first token ``BOS`` and logits that are 1 for
    the right value and 0 for others, or one number.

    The task is complete: every input of one length over the vocabulary, answered at every position. So the circuits
    are computed, on all there is, and no example is left to argue about:

    - *structural*: the reader's weights meet what the writer writes, ``W_writer @ W_reader != 0``. Other edges have no
      effect whatever is ablated;
    - *behavioural*: without this edge alone some input is decoded into something else. It depends on what an ablated
      edge carries: nothing (zero ablation, in which the literature states these circuits), or what it carries on
      another input; there the edges that compute a prompt's length, the same for all, do not matter.

    Source: Lindner et al., "Tracr: Compiled Transformers as a Laboratory for Interpretability" (2023, arXiv
    2301.05062). Conmy et al. 2023 and Bhaskar et al. 2024 take the two tasks as ground truth.

    Args:
        program: ``"reverse"``, ``"xproportion"`` (the fraction of ``x`` so far), ``"sort"``, ``"hist"``,
            ``"shuffle-dyck"``; or an expression of ``tracr.rasp.rasp``.
        vocabulary: of an expression: the values that its inputs are made of.
        length: of its inputs. The task has ``len(vocabulary) ** length`` examples.
        longest: the longest input that the model takes; by default ``length``.
        name: to call an expression by.
        causal: compile an expression so that positions attend to those before them alone.

    Raises:
        ValueError: there is no such program; an expression without vocabulary or length; Tracr is not installed, or
            cannot compile it.

    Example:
        >>> known = tracr("xproportion")
        >>> [round(number, 2) for number in known(["xyxw"])[0]]
        [1.0, 0.5, 0.67, 0.5]
        >>> len(known.structural), len(known.behavioural), known.structural.graph.n_edges
        (5, 5, 23)
    """
    if isinstance(program, str):
        return _of(named(program))
    most = longest or length
    if not vocabulary or not 1 <= length <= most:
        raise ValueError(
            "A program needs to know what its inputs are made of, and a length of at least 1 and at most the longest, "
            f"but got {len(vocabulary)} values, length {length} and longest {longest}. Call "
            "tracr(program, {1, 2, 3}, length=3)."
        )
    return _of(compiled_program(program, vocabulary, length=length, longest=most, name=name, causal=causal))


def named(name: str) -> Compiled:
    """A program that goes by a name: read from the package, or compiled."""
    choice("program", name, KNOWN)
    return Compiled.read(WEIGHTS / name) if name in SHIPPED else known_program(name)


def _of(program: Compiled) -> Tracr:
    return Tracr(program.model(), complete_task(program), program)


def tracr_task(model: Any, *, seed: int = 0) -> Task:
    """The task of a compiled model, told by its ``cfg.model_name``; of programs that have a name here.

    Args:
        model: the model of ``tracr(name)``.
        seed: of the twins; the task of :func:`~tlprune.tracr` has seed 0.

    Raises:
        ValueError: the model is none of these.

    Example:
        >>> tracr_task(tracr("reverse").model)
        Task('reverse', main: 27 train, main: 27 validation, main: 27 test)
    """
    return complete_task(named(_name_of(model)), seed=seed)


def tracr_circuit(model: Any) -> Circuit:
    """The behavioural circuit, under zero ablation, of the model of ``tracr(name)``.

    Raises:
        ValueError: the model is none of these.
    """
    program = named(_name_of(model))
    return Tracr(model, complete_task(program), program).behavioural


def _name_of(model: Any) -> str:
    name = str(getattr(getattr(model, "cfg", None), "model_name", ""))
    if not name.startswith(PREFIX) or name.removeprefix(PREFIX) not in KNOWN:
        raise ValueError(
            f"The task or truth of a compiled program needs its model ({', '.join(PREFIX + known for known in KNOWN)}) "
            f"but this one is {name or type(model).__name__!r}. Build one with tp.tracr(name).model; a program of your "
            "own has its task beside it, tp.tracr(program, ...).task."
        )
    return name.removeprefix(PREFIX)
