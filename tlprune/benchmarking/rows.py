"""Rows of a comparison in a folder: written as they finish, kept when a run is stopped, given as CSV and Parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.files import read_tensors, write_tensors, write_whole

ROWS, CSV, PARQUET, EXAMPLES, CIRCUITS = "rows.jsonl", "rows.csv", "rows.parquet", "examples", "circuits"
MEASURED, FAILED = "measured", "failed"
# What every row says, in the order of the files; other keys follow.
COLUMNS = (
    *("model", "task", "ablation", "discovery_ablation", "method", "seed", "mode", "size", "target"),
    *("nominal", "effective", "total", "convention", "status", "error"),
    *("faithfulness", "faithfulness_low", "faithfulness_high", "kl", "kl_low", "kl_high"),
    *("accuracy", "agreement", "logit_difference", "complement_kl", "complement_faithfulness"),
    *("iou", "iou_less_chance", "precision", "recall", "forward_equivalents", "seconds", "cpu_seconds", "peak_bytes"),
    *("cost_covers", "cell"),
)
Row = Mapping[str, Any]


class Store:
    """A folder of rows. A *cell* is one search; its rows are there all or not at all.

    Args:
        folder: made if it does not exist; rows that are there stay.

    Raises:
        ValueError: the folder cannot be written, or a line of its rows is not whole JSON (the last one, which a stop
            may have cut, is dropped).
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            for name in (EXAMPLES, CIRCUITS):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"Cannot write to {self.folder}: {error.strerror}. Choose another folder.") from None
        self.rows: list[dict[str, Any]] = list(self._read())
        self._rewrite()

    def _read(self) -> Iterator[dict[str, Any]]:
        path = self.folder / ROWS
        lines = path.read_text().splitlines() if path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                yield from json.loads(line)
            except (ValueError, TypeError):
                if number == len(lines):
                    return
                raise ValueError(
                    f"{path} holds a line of rows for each search but line {number} is not one. Restore the file, or "
                    "choose another folder."
                ) from None

    def _rewrite(self) -> None:
        """All rows, without a line that was cut."""
        cells = dict.fromkeys(row["cell"] for row in self.rows)
        lines = [json.dumps(self.of(cell)) for cell in cells]
        write_whole(self.folder / ROWS, "".join(f"{line}\n" for line in lines))

    def __contains__(self, cell: str) -> bool:
        """Whether a search was measured; one that failed is tried again."""
        return any(row["status"] == MEASURED for row in self.of(cell))

    def of(self, cell: str) -> list[dict[str, Any]]:
        """The rows of one search."""
        return [row for row in self.rows if row["cell"] == cell]

    def add(
        self, cell: str, rows: Iterable[Row], *, circuits: Iterable[Circuit] = (), examples: Mapping[str, Tensor]
    ) -> None:
        """Write the rows of one search, its circuits, and its figures for every example, ``(row, example)`` each."""
        found = [{**row, "cell": cell} for row in rows]
        if self.of(cell):  # it failed before
            self.rows = [row for row in self.rows if row["cell"] != cell]
            self._rewrite()
        for place, circuit in enumerate(circuits):
            circuit.save(self.folder / CIRCUITS / f"{cell}-{place}.safetensors")
        if examples:
            write_tensors(self.folder / EXAMPLES / f"{cell}.safetensors", examples, {"cell": cell})
        with (self.folder / ROWS).open("a") as file:
            file.write(json.dumps(found) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows += found

    def examples(self, cell: str) -> dict[str, Tensor]:
        """Figures of every example for the rows of one search, in their order."""
        return read_tensors(self.folder / EXAMPLES / f"{cell}.safetensors", "file of figures")[0]

    def write_tables(self) -> None:
        """All rows as CSV and as Parquet."""
        import pyarrow as pa
        from pyarrow import csv, parquet

        names = [*COLUMNS, *sorted({name for row in self.rows for name in row} - {*COLUMNS})]
        table = pa.table({name: [row.get(name) for row in self.rows] for name in names})
        csv.write_csv(table, self.folder / CSV)
        parquet.write_table(table, self.folder / PARQUET)
