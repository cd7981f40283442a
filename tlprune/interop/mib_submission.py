"""Folders for MIB's leaderboard: written, and checked by the rules that MIB states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tlprune.circuit import Circuit
from tlprune.graph import Architecture
from tlprune.interop.mib import MibFile, from_mib, on_graph, to_mib
from tlprune.interop.mib_content import KEYS, read
from tlprune.interop.mib_models import MODELS, PAIRS, Shape
from tlprune.scores import Scores

# Shares of the edges, and no more, that circuits have; of none and of all there is nothing to submit.
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
IMPORTANCES = "importances"
FEWEST = 2  # models, and tasks, of a whole submission


@dataclass(frozen=True)
class Entry:
    """The folder of one task and model in a submission.

    Attributes:
        name: such as ``"ioi_gpt2"``.
        holds: ``"edge scores"``, ``"node scores"`` or ``"circuits"``.
        total: edges of the model.
        counts: edges of each circuit, from the smallest on; empty for scores.
    """

    name: str
    holds: Literal["edge scores", "node scores", "circuits"]
    total: int
    counts: tuple[int, ...] = ()

    def __str__(self) -> str:
        sizes = f" of {', '.join(f'{count:,}' for count in self.counts)} edges" if self.counts else ""
        return f"{self.name}: {self.holds}{sizes}; the model has {self.total:,} edges"


def mib_submission(
    found: Scores | Sequence[Circuit], folder: str | Path, *, name: str, model: Any = None, ending: str = ".json"
) -> Entry:
    """Write the folder of one task and model, which MIB's leaderboard takes.

    Scores become ``importances.json``; MIB takes circuits of all sizes from it. Circuits become nine files, one of at
    most 0.1, 0.2, 0.5, 1, 2, 5, 10, 20 and 50% of MIB's edges each; MIB names no names for these, so they are called by
    their limits, ``edges_0.001.json``. A whole submission has folders of at least two models and two tasks, which
    :func:`check_mib_submission` checks.

    Args:
        found: scores of edges or nodes, or nine circuits of edges in any order.
        folder: of the whole submission.
        name: task and model: ``"ioi_gpt2"``, ``"arc-easy_llama3"``.
        model: the model, where MIB's own name does not tell its shape (InterpBench).
        ending: ``".json"`` or ``".pt"``.

    Returns:
        What was written.

    Raises:
        ValueError: the leaderboard has no such pair, the folder is there already, there are not nine circuits, one has
            too many edges, or they are of another model.
    """
    shape, place = _shape(name, model), Path(folder) / name
    _check_ending(ending)
    if place.exists():
        raise ValueError(f"{place} is there already. Remove it, or choose another folder.")
    files: dict[str, Scores | Circuit] = {IMPORTANCES: found} if isinstance(found, Scores) else _by_size(found, shape)
    place.mkdir(parents=True)
    try:
        for stem, content in files.items():
            to_mib(content, place / f"{stem}{ending}", model=shape)
        return _entry(place)
    except ValueError:
        for path in place.iterdir():
            path.unlink()
        place.rmdir()
        raise


def check_mib_submission(folder: str | Path) -> list[Entry]:
    """What a submission holds, if it is one by MIB's rules.

    There is one folder for each task and model, called by both (``ioi_gpt2``). It holds one file with a score for each
    edge or node, or nine with circuits, the smallest of at most 0.1% of the edges, the next of 0.2, 0.5, 1, 2, 5, 10,
    20 and 50%. All are ``.json`` or ``.pt`` of the model's own graph. There are at least two models and two tasks.

    Args:
        folder: of the whole submission; files beside the folders are not looked at.

    Raises:
        ValueError: naming the folder or file that breaks a rule.

    Source: the READMEs of hannamw/MIB-circuit-track and aaronmueller/MIB.
    """
    places = sorted(path for path in _listed(Path(folder)) if path.is_dir() and not path.name.startswith("."))
    entries = [_entry(place) for place in places]
    tasks, models = ({entry.name.split("_")[part] for entry in entries} for part in (0, 1))
    if min(len(tasks), len(models)) < FEWEST:
        raise ValueError(
            f"A submission needs at least {FEWEST} tasks and {FEWEST} models but {folder} has "
            f"{', '.join(sorted(tasks)) or 'no task'} and {', '.join(sorted(models)) or 'no model'}. Add others."
        )
    return entries


def _listed(folder: Path) -> Iterable[Path]:
    if not folder.is_dir():
        raise ValueError(f"A submission is a folder but {folder} is none. Give one that exists.")
    return folder.iterdir()


def _shape(name: str, model: Any) -> Shape:
    _check_pair(name)
    return Shape.of(name.partition("_")[2] if model is None else model)


def _check_pair(name: str) -> None:
    if name not in PAIRS:
        raise ValueError(f"MIB's leaderboard has {', '.join(PAIRS)} but not {name!r}. Call the folder by one of these.")


def _check_ending(ending: str) -> None:
    if ending not in KEYS:
        raise ValueError(f"MIB takes .json and .pt files but {ending!r} was asked for. Choose one of these.")


# ---- sizes


def limits(total: int) -> list[int]:
    """The most edges of each circuit, of so many in all.

    Example:
        >>> limits(32_491)
        [32, 64, 162, 324, 649, 1624, 3249, 6498, 16245]
    """
    return [int(size * total) for size in SIZES]


def _by_size(circuits: Sequence[Circuit], shape: Shape) -> dict[str, Scores | Circuit]:
    """Each circuit under its limit: the smallest under the lowest, which fits if any order does."""
    converted = sorted((on_graph(circuit, shape.graph) for circuit in circuits), key=len)
    _check_sizes([len(circuit) for circuit in converted], len(shape.graph), "these circuits")
    return {f"edges_{size:g}": circuit for size, circuit in zip(SIZES, converted, strict=True)}


def _check_sizes(counts: Sequence[int], total: int, what: str) -> None:
    if len(counts) != len(SIZES):
        raise ValueError(
            f"MIB takes {len(SIZES)} circuits of growing size, or one file of scores, but there are {len(counts)} in "
            f"{what}. Give one of at most {', '.join(f'{limit:,}' for limit in limits(total))} edges each."
        )
    for count, limit, size in zip(sorted(counts), limits(total), SIZES, strict=True):
        if count > limit:
            raise ValueError(
                f"MIB needs a circuit of at most {limit:,} of {total:,} edges ({size:.1%}) but {what} have one of "
                f"{count:,} in its place. Give a smaller one; k and v count once for each query head."
            )


# ---- reading a folder


def _entry(place: Path) -> Entry:
    _check_pair(place.name)
    paths = sorted(path for path in place.iterdir() if not path.name.startswith("."))
    odd = [path.name for path in paths if path.suffix not in KEYS]
    if odd:
        raise ValueError(f"{place} needs .json or .pt files alone but has {odd[0]!r}. Remove it.")
    files = [_file(path, place.name) for path in paths]
    if len(files) == 1:
        return _scores(files[0], place)
    counts = sorted(len(file.circuit) for file in files)
    total = len(files[0].circuit.sites) if files else 0
    _check_sizes(counts, total, str(place))
    return Entry(place.name, "circuits", total, tuple(counts))


def _file(path: Path, name: str) -> MibFile:
    model = name.partition("_")[2]
    return from_mib(path, MODELS[model] if model in MODELS else _stated_shape(path))


def _stated_shape(path: Path) -> Shape:
    """The shape that the file itself tells, of a model that is not known here."""
    cfg = read(path)["cfg"]
    heads = cfg["n_heads"]
    return Shape(Architecture(cfg["n_layers"], heads, heads, parallel=cfg["parallel_attn_mlp"]), cfg["d_model"])


def _scores(file: MibFile, place: Path) -> Entry:
    total = len(file.circuit.sites)
    if _ordering(file.scores):
        return Entry(place.name, "edge scores", total)
    if _ordering(file.node_scores):
        return Entry(place.name, "node scores", total)
    raise ValueError(
        f"{place} has one file, which needs scores that order edges or nodes, but it has none, or all are equal. Give "
        "scores, or nine circuits."
    )


def _ordering(scores: Scores | None) -> bool:
    return scores is not None and len(scores.values.unique()) > 1
