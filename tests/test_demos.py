"""The notebooks run from top to bottom, on small models in the format of the large ones."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

DEMOS = Path(__file__).parent.parent / "demos"


def code_cells(notebook: str) -> list[str]:
    """The code of a notebook, cell by cell, without the lines that only a notebook understands."""
    cells = json.loads((DEMOS / notebook).read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return ["\n".join(line for line in cell.splitlines() if not line.startswith("%")) for cell in code]


def run(cells: list[str], given: dict[str, Any]) -> dict[str, Any]:
    """Run the cells one after the other; what is given takes the place of the parameters, which must be there."""
    names: dict[str, Any] = {}
    for cell in cells:
        exec(compile(cell, "<cell>", "exec"), names)
        names |= {name: value for name, value in given.items() if name in names}
    assert given.keys() <= names.keys()
    return names


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the notebook displays; IPython itself is not needed."""
    seen: list[str] = []
    display = types.ModuleType("IPython.display")
    display.HTML = display.Markdown = str  # type: ignore[attr-defined]
    display.display = seen.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return seen


@pytest.fixture(scope="module")
def small_gpt2(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of GPT-2's format, graph and tokenizer with random weights."""
    import transformers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gpt2")
    config = transformers.GPT2Config(n_layer=12, n_head=12, n_embd=24, n_positions=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    for file in (data_dir / "tokenizers" / "gpt2").iterdir():
        if file.name != "config.json":
            shutil.copyfile(file, folder / file.name)
    return folder


@pytest.mark.filterwarnings("ignore:HookedTransformer.from_pretrained is deprecated:DeprecationWarning")
def test_the_acdc_grid_runs_on_a_model_in_the_format_of_gpt2(
    small_gpt2: Path, tmp_path: Path, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        "MODEL": str(small_gpt2),
        "TASKS": ("ioi", "docstring"),
        "METHODS": ("random", "eap", "edge-pruning:steps=1"),
        "SIZES": ("1%", "true"),
        "ABLATIONS": ("zero",),
        "SEEDS": (0,),
        "OUT": str(tmp_path),
    }
    names = run(code_cells("acdc_grid.ipynb"), given)
    report, plots = shown
    assert "## ioi in" in report and "32,491 edges" in report
    assert "## docstring in attn-only-4l: not run" in report  # it would have to be downloaded
    assert "roc auc" in report and "0.869 (0.880)" not in report  # ACDC was not among the methods
    assert "Plotly" in plots
    assert {row["method"] for row in names["rows"]} > {"random", "eap", "edge-pruning:steps=1"}
    assert (tmp_path / "best.html").exists()
    assert names["best"]["size"] == "true"
    assert "docstring in attn-only-4l: not run" in capsys.readouterr().out


def test_first_steps_run_on_the_shipped_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run(code_cells("first_steps.ipynb"), {"STEPS": 20})
    assert len(names["circuit"]) == 60 and names["circuit"].n_effective > 40  # of few steps
    assert names["loaded"] == names["circuit"] and names["logits"].shape[:2] == (len(names["task"].test), 1)
    assert all(0 < agreement <= 1 for agreement in names["agreement"].values())
    assert "complement" in capsys.readouterr().out
    assert {"mine.html", "both.html", "mine.json"} <= {path.name for path in tmp_path.iterdir()}
