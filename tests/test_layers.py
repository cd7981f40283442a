"""The package's layers: imports go one way, hooks are named in one place, and importing it costs nothing."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import tlprune

PACKAGE = Path(tlprune.__file__).parent
LAYERS = {
    "sites": 0, "effective": 0, "files": 0, "scores": 0, "pieces": 0, "statistic": 0, "selection": 0, "choices": 0,
    "conventions": 0, "grouping": 0, "incidence": 0, "inducing": 0, "named": 0, "connecting": 0, "spans": 0,
    "flow": 0, "outcome": 0, "placing": 0, "between_spans": 0, "processes": 0, "site_data": 0, "hub": 0, "card": 0,
    "graph": 0, "circuit": 0, "task": 0, "gates": 0, "schedules": 0, "random_circuits": 0, "sealing": 0, "versions": 0,
    "backends": 1, "masking": 2, "learning": 3, "tasks": 4, "models": 4, "truths": 4, "methods": 5, "finetuning": 5,
    "prompts": 4, "skills": 7, "pruning": 7, "views": 6,
    "evaluation": 6, "interop": 6, "draw": 6, "drawing": 6, "benchmarking": 7, "studies": 7, "knowledge": 7, "cli": 8,
    "commands": 8, "run_folder": 8, "__main__": 8,
}  # fmt: skip
# A circuit can be called: Circuit.on reaches up to what runs it.
DOORS = {"circuit": {"masking"}}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
NAMES = [str(path.relative_to(PACKAGE)) for path in MODULES]
each_module = pytest.mark.parametrize("path", MODULES, ids=NAMES)
# The plain reference sets the hooks of the model itself: it must not share code with what it checks. Files of ACDC and
# auto-circuit call edges by hooks.
MAY_NAME_HOOKS = ("backends/", "masking/plain.py", "interop/acdc.py", "interop/auto_circuit.py")


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The parts of this package that a module imports, wherever in the module it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [
                f"{node.module}.{alias.name}" if node.module == "tlprune" else str(node.module) for alias in node.names
            ]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("tlprune.")}
    return found


def whole_imports(path: Path) -> bool:
    """Whether a module imports the package itself, which would hide what it uses of it."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return any(isinstance(node, ast.Import) and any(a.name == "tlprune" for a in node.names) for node in nodes)


@each_module
def test_every_module_has_a_layer_and_imports_none_above_it(path: Path) -> None:
    own = part_of(path)
    for other in imported(path) - {"__version__"} - DOORS.get(own, set()):
        assert LAYERS[other] <= LAYERS[own], f"{own} imports {other}"
    assert not whole_imports(path)


@each_module
def test_drawing_and_the_pure_layer_import_only_the_pure_layer(path: Path) -> None:
    if part_of(path) in ("draw", "drawing") or LAYERS[part_of(path)] == 0:
        others = imported(path) - {"draw", "drawing", "__version__"} - DOORS.get(part_of(path), set())
        assert all(LAYERS[other] == 0 for other in others), others


@each_module
def test_hooks_are_named_in_the_backends_alone(path: Path) -> None:
    name = str(path.relative_to(PACKAGE))
    if not name.startswith(MAY_NAME_HOOKS):
        assert [text for text in code_strings(path) if "hook_" in text] == []


def code_strings(path: Path) -> list[str]:
    """Strings that the code uses: neither docstrings nor the messages of errors."""
    tree = ast.parse(path.read_text())
    prose = {id(part) for node in ast.walk(tree) if isinstance(node, (ast.Expr, ast.Raise)) for part in ast.walk(node)}
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [node.value for node in strings if id(node) not in prose]


def test_the_walk_finds_what_it_looks_for() -> None:
    """The checks above would pass in silence if they saw nothing."""
    assert {"gates", "masking", "learning"} <= imported(PACKAGE / "methods" / "multi_granular.py")
    assert any("hook_z" in text for text in code_strings(PACKAGE / "backends" / "hooked_transformer.py"))
    assert len(MODULES) > 30


@each_module
def test_every_module_says_what_it_is_for(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if tree.body:
        assert ast.get_docstring(tree)
    assert path.stem not in ("utils", "helpers", "manager", "common", "misc", "base")


@pytest.mark.parametrize("name", tlprune.__all__)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(tlprune, name)
    own = value.__doc__
    assert own
    assert not own.startswith(f"{name}("), "a dataclass's made-up docstring"
    assert name in dir(tlprune)
    assert inspect.ismodule(value) or value.__module__.startswith("tlprune.")


def test_names_for_type_checkers_are_the_public_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert {alias.asname for node in block.body for alias in node.names} == set(tlprune.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        tlprune.nothing  # noqa: B018


def test_importing_the_package_is_quick_and_silent_and_loads_no_torch() -> None:
    """The time is that of the import alone, within the process, so that a busy machine's start-up does not count."""
    code = (
        "import sys, time; start = time.process_time(); import tlprune; seconds = time.process_time() - start; "
        "heavy = {'torch', 'transformer_lens', 'transformers', 'datasets', 'plotly', 'tyro', 'numpy'}; "
        "heavy &= set(sys.modules); "
        "sys.exit(f'{seconds} {heavy}' if heavy or seconds > 0.5 else 0)"
    )
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
        check=False,
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
