"""What is said about the package in several places is the same, and a built distribution is checked for its files."""

from __future__ import annotations

import importlib
import io
import re
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import tlprune
from tlprune.versions import versions

ROOT = Path(__file__).parents[1]


def test_the_version_is_written_once_and_cited() -> None:
    assert versions()["tlprune"] == tlprune.__version__
    assert not re.search(r"^version *=", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["version"], cited["license"], cited["type"]) == (tlprune.__version__, "MIT", "software")
    assert f"## {tlprune.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_the_package_is_typed() -> None:
    assert (Path(tlprune.__file__).parent / "py.typed").is_file()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("check_distribution")


def pack(folder: Path, script: ModuleType, *, without: str = "", beside: str = "") -> None:
    """A wheel and an sdist of empty files."""
    own = [str(path.relative_to(ROOT)) for path in script.PACKAGE.rglob("*") if path.is_file()]
    own = [name for name in own if "__pycache__" not in name]
    about = [f"tlprune-0.dist-info/{name}" for name in ("METADATA", "entry_points.txt", "licenses/LICENSE")]
    with zipfile.ZipFile(folder / "tlprune-0-py3-none-any.whl", "w") as wheel:
        for name in {*own, *about, *([beside] if beside else [])} - {without}:
            wheel.writestr(name, "")
    with tarfile.open(folder / "tlprune-0.tar.gz", "w:gz") as sdist:
        for name in {*own, *script.IN_SDIST} - {without}:
            sdist.addfile(tarfile.TarInfo(f"tlprune-0/{name}"), io.BytesIO())


def test_a_whole_distribution_passes(tmp_path: Path, script: ModuleType) -> None:
    pack(tmp_path, script)
    assert len(script.check(tmp_path)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"without": "tlprune/py.typed"}, r"whl lacks tlprune/py\.typed"),
        ({"without": "tlprune/models/testbed/model.safetensors"}, r"whl lacks .*model\.safetensors"),
        ({"without": "tlprune-0.dist-info/licenses/LICENSE"}, "whl lacks LICENSE"),
        ({"without": "tests/conftest.py"}, r"gz lacks tests/conftest\.py"),
        ({"beside": "tests/test_cli.py"}, r"whl has what is not of the package: tests/test_cli\.py"),
    ],
)
def test_a_distribution_without_its_files_is_refused(
    change: dict[str, str], message: str, tmp_path: Path, script: ModuleType
) -> None:
    pack(tmp_path, script, **change)
    with pytest.raises(ValueError, match=message):
        script.check(tmp_path)
