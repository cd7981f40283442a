"""Every kind of model keeps its promises to masks, and docs/support.md says of each just what it keeps."""

from pathlib import Path

import contract
import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "support.md").read_text()
ROWS = {str(row): row for row in contract.rows()}


def documented() -> dict[tuple[str, str], str]:
    """The cells of the page by row and column."""
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:1] == "|"]
    head, _, *body = lines
    return {(f"{line[0]}: {line[1]}", column): own for line in body for column, own in zip(head, line, strict=True)}


CELLS = documented()


@pytest.mark.parametrize("column", contract.COLUMNS)
@pytest.mark.parametrize("name", ROWS)
def test_a_model_keeps_what_the_table_says(name: str, column: str) -> None:
    assert contract.cell(ROWS[name], column) == CELLS[name, column]


def test_the_table_has_no_other_rows() -> None:
    named = {name for name, _ in CELLS}
    assert set(ROWS) <= named
    assert {name.split(":")[0] for name in named} == {"HookedTransformer", "HookedEncoder", "TransformerBridge"}
