"""On a TransformerLens without HookedTransformer the package imports, and says in one sentence what it needs."""

import subprocess
import sys

import pytest
from hooked import HAS_HOOKED_TRANSFORMER

import tlprune as tp

pytestmark = pytest.mark.skipif(HAS_HOOKED_TRANSFORMER, reason="this TransformerLens has HookedTransformer")


@pytest.mark.parametrize("name", ["testbed", "planted", "gpt2"])
def test_load_says_what_to_install(name: str) -> None:
    with pytest.raises(ValueError, match=r"needs HookedTransformer.*Install transformer-lens 3\.9"):
        tp.load(name)


def test_command_line_says_it_in_one_line() -> None:
    command = [sys.executable, "-c", "import sys; from tlprune.cli import main; sys.exit(main(['discover']))"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert [line for line in run.stderr.splitlines() if line] == [run.stderr.strip()]
    assert "HookedTransformer" in run.stderr
