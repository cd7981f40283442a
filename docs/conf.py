"""Settings of the documentation: python -m sphinx -n -W --keep-going docs docs/_build."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import api_pages  # noqa: E402 - beside this file

import tlprune  # noqa: E402

warnings.filterwarnings("ignore", message="HookedTransformer is deprecated")
api_pages.write(HERE / "api")

project = "tlprune"
author = "The tlprune authors"
copyright = f"2026, {author}"
release = version = tlprune.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
highlight_language = "none"  # indented blocks are command lines; Python and YAML say so
html_theme = "furo"
html_title = f"tlprune {version}"

myst_heading_anchors = 3

autodoc_default_options = {"members": True, "inherited-members": "Module, ValueError, RuntimeError, Mapping"}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has them; jaxtyping's shapes are no markup

nitpicky = True
nitpick_ignore_regex = [
    # Other projects' and Python's own: their inventories are on the network, which a build does not need.
    ("py:.*", r"(torch|jaxtyping|collections|pathlib|transformer_lens|transformers|numpy|datasets)\..*"),
    ("py:class", r"Tensor|Path|Mapping|Sequence"),
    # The shapes in jaxtyping's annotations are strings.
    ("py:class", r"'.*"),
    # Names of a choice between strings; signatures that say the choice in full do not have them.
    ("py:class", r"Direction|Points|Kind|By"),
    # Behind the API: annotations of classes that are public only to be read name what only methods' authors meet.
    ("py:class", r"tlprune\.(backends|flow|spans|statistic|masking\.cache|masking\.drawn_weights)(\..*)?"),
]


def keep_whole(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """An empty comment in front, or napoleon takes the words in front of a colon for the type of a property."""
    if what in ("property", "attribute", "data"):
        lines[:0] = ["..", ""]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", keep_whole, priority=1)
