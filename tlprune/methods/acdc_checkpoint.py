"""The decisions of an ACDC search in a file, from which a search that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tlprune.files import check_format, read_tensors, write_tensors
from tlprune.learning.settings import differences
from tlprune.methods.acdc_search import Counts, Point, Search

FORMAT, VERSION = "search", 1


def save(path: Path, search: Search, settings: Mapping[str, Any]) -> None:
    """Write where a search stands; the file that was there stays until the new one is whole.

    Raises:
        ValueError: the file cannot be written.
    """
    waiting = [{**asdict(point), "kept": None} for point in search.waiting]
    data = {"format": f"tlprune-{FORMAT}", "version": VERSION, "settings": dict(settings), "waiting": waiting}
    data |= {"done": [*search.done], "counts": asdict(search.counts)}
    kept = {f"waiting.{place}": point.kept for place, point in enumerate(search.waiting)}
    kept |= {f"done.{place}": found for place, found in enumerate(search.done.values())}
    try:
        write_tensors(path, {name: circuit.clone() for name, circuit in kept.items()}, data)  # some are one tensor
    except OSError as error:
        raise ValueError(
            f"A checkpoint needs a folder that can be written, but {path} cannot be: {error.strerror}. Make the "
            "folder, free some space, or give another path."
        ) from error


def restore(path: Path, search: Search, settings: Mapping[str, Any]) -> None:
    """Put a search where :func:`save` left one.

    Raises:
        ValueError: the file is no whole checkpoint, or is of a search with other settings, model or task.
    """
    kept, data = read_tensors(path, FORMAT)
    check_format(data, path, FORMAT, VERSION)
    if found := differences(data["settings"], json.loads(json.dumps(settings))):
        raise ValueError(
            f"A search can go on from its own checkpoint only, but {path} was written with another "
            f"{'; '.join(found)}. Use the same settings, or another path to start anew."
        )
    search.waiting = [
        Point(tuple(told["thresholds"]), kept[f"waiting.{place}"].to(torch.bool), told["undecided"], told["metric"])
        for place, told in enumerate(data["waiting"])
    ]
    search.done = {threshold: kept[f"done.{place}"] for place, threshold in enumerate(data["done"])}
    search.counts = Counts(**data["counts"])
