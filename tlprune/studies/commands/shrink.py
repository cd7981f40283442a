"""``tlprune core shrink``: a subnetwork as a smaller transformers model, ready for use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from tlprune.circuit import Circuit
from tlprune.masking.masked import Masked
from tlprune.models.shrinking import shrink as shrunk
from tlprune.models.shrunk_files import load_shrunk
from tlprune.models.tokenizers import tokenizer_in
from tlprune.outcome import Outcome
from tlprune.studies.collection import Run
from tlprune.studies.commands.study import Study
from tlprune.studies.commands.writing import write
from tlprune.studies.shrinkage import shrinkage

ROUNDS = 9


@dataclass(frozen=True)
class Shrink:
    """Write a subnetwork as a transformers model without the heads and MLPs that were removed, with its tokenizer.

    Attributes:
        folder: directory that tlprune core prune wrote.
        sparsity: of the subnetwork.
        seed: of the subnetwork; a method without seeds has one subnetwork for each sparsity.
        out: directory for the model, its tokenizer, shrinkage.json and shrinkage.html.
        examples: test examples to compare outputs on.
        measure: time the whole and the shrunk model, too.
        device: where to compute, such as cpu or cuda; by default a GPU if there is one.
    """

    folder: Positional[Path]
    sparsity: float = 0.5
    seed: int | None = 42
    out: Path = Path("shrunk")
    examples: int = 256
    measure: bool = False
    device: str | None = None


def shrink(settings: Shrink) -> Outcome:
    """Write the model; what to say."""
    study = Study.open(settings.folder, device=settings.device)
    circuit = _subnetwork(study, settings)
    masked = Masked(study.model, circuit, study.means)
    _write(shrunk(masked), study, settings.out)
    small = load_shrunk(settings.out, device=str(masked.backend.device), dtype=masked.backend.dtype)
    test = next(study.task.test.split(settings.examples))
    found = shrinkage(masked, small, test, rounds=ROUNDS if settings.measure else 0)
    wrote = write(settings.out, "shrinkage", found, title=f"Parameters of {settings.out}")
    lines = [str(circuit), str(found), f"wrote {type(small).__name__} and its tokenizer to {settings.out}/", wrote]
    return Outcome("\n".join(lines), found.as_dict())


def _subnetwork(study: Study, settings: Shrink) -> Circuit:
    among = study.subnetworks.at(settings.sparsity)
    run = Run(settings.sparsity, settings.seed)
    if run not in among:
        known = ", ".join(str(one.seed) for one in among)
        raise ValueError(
            f"There are subnetworks of seeds {known} but {settings.seed} was asked for. Name one of these."
        )
    return among[run]


def _write(small: Any, study: Study, out: Path) -> None:
    tokenizer = tokenizer_in(Path(study.told["model"])) or study.model.tokenizer
    try:
        small.save_pretrained(out)
        tokenizer.save_pretrained(out)
    except OSError as error:
        raise ValueError(f"Cannot write to {out}: {error.strerror}. Choose another directory with --out.") from None
