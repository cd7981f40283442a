"""The documents cannot rot: their Python blocks run and keep their promises, and their figures are the library's."""

from __future__ import annotations

import ast
import importlib
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

import tlprune

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "docs/concepts.md",
    "docs/how-to-choose.md",
    "docs/recipes.md",
    "docs/migrating.md",
    "docs/adding-a-method.md",
)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d+\.\d+|-?\d+")
FIGURES = ("edges", "gates", "ablations")


def run(path: Path, text: str) -> dict[str, Any]:
    """Run a document's blocks in one namespace; a line ``6 * 7  # 42`` promises the value, or what is printed.

    Training takes few steps here, whatever the document says. Errors name the document's own lines.
    """
    space: dict[str, Any] = {}
    lines = text.splitlines()
    for found in BLOCK.finditer(text):
        source = "\n" * (text.count("\n", 0, found.start()) + 1) + re.sub(r"\bsteps=\d+", "steps=4", found[1])
        for statement in ast.parse(source, str(path)).body:
            if not isinstance(statement, ast.Expr):
                exec(compile(ast.Module([statement], []), str(path), "exec"), space)
                continue
            with redirect_stdout(StringIO()) as printed:
                value = eval(compile(ast.Expression(statement.value), str(path), "eval"), space)
            promised = lines[(statement.end_lineno or 0) - 1].partition("  # ")[2]
            given = printed.getvalue().strip() if value is None else repr(value)
            assert promised in ("", given), f"{path}, line {statement.end_lineno}: {given}"
    return space


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_python_block_runs_and_gives_what_it_promises(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    assert run(ROOT / name, (ROOT / name).read_text())


def test_a_broken_promise_is_found() -> None:
    with pytest.raises(AssertionError, match="line 3: 2"):
        run(Path("note.md"), "A note.\n```python\n1 + 1  # 3\n```\n")
    with pytest.raises(AssertionError, match="line 2: seen"):
        run(Path("note.md"), "```python\nprint('seen')  # unseen\n```\n")
    with pytest.raises(NameError):
        run(Path("note.md"), "```python\nprint(unheard_of)\n```\n")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files(name: str) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / name).read_text())
    assert targets
    for target in targets:
        assert ((ROOT / name).parent / target).is_file(), target


@pytest.fixture(scope="module")
def api_pages() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        return importlib.import_module("api_pages")


def test_every_public_name_is_in_the_reference_once(api_pages: Any, tmp_path: Path) -> None:
    api_pages.write(tmp_path)
    pages = {path.stem: path.read_text() for path in tmp_path.glob("*.rst")}
    entries = re.findall(r"^\.\. auto\w+:: tlprune\.(\w+)$", "\n".join(pages.values()), re.MULTILINE)
    assert sorted(entries) == sorted(tlprune.__all__)
    listed = re.findall(r"~tlprune\.(\w+)`", pages.pop("index"))
    assert sorted(listed) == sorted(entries)
    assert set(pages) == {theme.page for theme in api_pages.THEMES}
    assert ".. autoclass:: tlprune.models.planted.Planted\n" in pages["models"]  # what tp.planted gives


def test_a_public_name_without_a_page_and_a_page_without_names_are_errors(api_pages: Any) -> None:
    theme = api_pages.Theme("models", "Models", "", ("models",))
    deeper = api_pages.Theme("tracr", "Programs", "", ("models.tracr",))
    homes = {"load": "models.load", "tracr": "models.tracr.program"}
    assert api_pages.placed(homes, [theme, deeper]) == {"models": ["load"], "tracr": ["tracr"]}
    with pytest.raises(ValueError, match=r"lost of tlprune\.modelsother has none"):
        api_pages.placed({**homes, "lost": "modelsother"}, [theme])
    with pytest.raises(ValueError, match=r"none: \['tracr'\]"):
        api_pages.placed({"load": "models.load"}, [theme, deeper])


def test_every_page_is_in_a_table_of_contents() -> None:
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```$", (ROOT / "docs/index.md").read_text(), re.MULTILINE | re.DOTALL)
    listed = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert sorted(listed) == sorted(pages | {"api/index"})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Each figure drawn anew, twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        script = importlib.import_module("draw_figures")
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    for folder in folders:
        script.main(folder)
    return {name: [(folder / f"{name}.svg").read_text() for folder in folders] for name in FIGURES}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_small_repeat_and_show_the_library_as_it_is(name: str, drawn: dict[str, list[str]]) -> None:
    first, second = drawn[name]
    kept = (ROOT / "docs" / "figures" / f"{name}.svg").read_text()
    assert first == second
    assert len(kept) < 60_000
    # Another machine may round a coordinate otherwise.
    assert NUMBER.sub("0", kept) == NUMBER.sub("0", first), "run python scripts/draw_figures.py"
    there, here = ([float(number) for number in NUMBER.findall(text)] for text in (kept, first))
    assert here == pytest.approx(there, abs=0.5), "run python scripts/draw_figures.py"
