"""The pages of the API reference, one for each theme: every public name has its place, by its module."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import tlprune


@dataclass(frozen=True)
class Theme:
    """A page of the reference: the public names of some modules, and of the modules below them.

    Attributes:
        page: name of the page.
        title: its heading.
        says: one sentence on what is here.
        homes: modules below ``tlprune``; of two that fit, the longer counts.
    """

    page: str
    title: str
    says: str
    homes: tuple[str, ...]


THEMES = (
    Theme(
        "models",
        "Models",
        "Load, wrap, outline, export and shrink models, and make those with a known circuit.",
        ("models",),
    ),
    Theme(
        "tasks",
        "Tasks",
        "Prompts with twins, answers and held-out parts; ground truths.",
        ("task", "tasks", "truths", "prompts", "sealing"),
    ),
    Theme(
        "sites",
        "Sites and graphs",
        "What can be masked, and how edges are counted.",
        ("graph", "sites", "masking.sites", "conventions"),
    ),
    Theme(
        "masks",
        "Masks, gates and ablations",
        "A masked model, and what its masked parts are replaced by.",
        ("masking", "gates", "schedules"),
    ),
    Theme("training", "Training masks", "Objectives, budgets and the loop; what a step takes.", ("learning",)),
    Theme(
        "methods", "Methods", "Everything with `find(model, task)`, and what methods share.", ("methods", "finetuning")
    ),
    Theme(
        "selecting",
        "Scores and selections",
        "A number for every site, and which circuit of a size is taken.",
        ("scores", "selection"),
    ),
    Theme(
        "circuits",
        "Circuits",
        "The result: named sites with their provenance.",
        ("circuit", "inducing", "named", "random_circuits"),
    ),
    Theme("evaluation", "Evaluation", "Is it sufficient, necessary, minimal, and found again?", ("evaluation",)),
    Theme("comparing", "Comparing methods", "Methods side by side at equal sizes.", ("benchmarking",)),
    Theme(
        "drawing",
        "Drawings and views",
        "Pictures, charts, attention patterns and coloured tokens.",
        ("drawing", "views"),
    ),
    Theme("interop", "Files of other tools", "Read and write what other tools keep.", ("interop",)),
    Theme("studies", "Studies", "Many circuits over seeds, sizes and domains.", ("studies",)),
    Theme(
        "knowledge", "Knowledge-critical subnetworks", "Which weights hold some facts and nothing else.", ("knowledge",)
    ),
    Theme("skills", "Skill neurons", "Which neurons carry a skill, and whether the model uses them.", ("skills",)),
    Theme("pruning", "Pruned classifiers", "Weights and heads removed for good, in one shot.", ("pruning",)),
)


def placed(homes: Mapping[str, str], themes: Sequence[Theme] = THEMES) -> dict[str, list[str]]:
    """The public names of each page, in alphabetical order.

    Args:
        homes: the module of each public name.
        themes: the pages.

    Raises:
        ValueError: a name has no page, or a page no name.
    """
    pages: dict[str, list[str]] = {theme.page: [] for theme in themes}
    for name, home in homes.items():
        page = _page_of(home, themes)
        if page is None:
            raise ValueError(
                f"Every public name needs a page of the reference, but {name} of tlprune.{home} has none. Add "
                "its module to a theme in docs/api_pages.py."
            )
        pages[page].append(name)
    empty = [page for page, names in pages.items() if not names]
    if empty:
        raise ValueError(f"Pages of the reference must have names, but these have none: {empty}. Remove their themes.")
    return {page: sorted(names, key=str.lower) for page, names in pages.items()}


def write(folder: Path) -> None:
    """Write a page for each theme and the list of them into ``folder``; files that stay the same are not touched."""
    folder.mkdir(exist_ok=True)
    pages = placed(tlprune._HOMES)
    met = _by_page(met_on_the_way(getattr(tlprune, name) for names in pages.values() for name in names))
    texts = {f"{theme.page}.rst": _page(theme, pages[theme.page], met[theme.page]) for theme in THEMES}
    texts["index.rst"] = _index(pages)
    for name, text in texts.items():
        if not (folder / name).is_file() or (folder / name).read_text() != text:
            (folder / name).write_text(text)


def met_on_the_way(public: Iterable[Any]) -> list[type]:
    """The classes of tlprune without a public name that annotations of these objects, or of such classes, name."""
    found: dict[type, None] = {}
    waiting = list(public)
    known = {id(value) for value in waiting}
    while waiting:
        for kind in _annotated(waiting.pop()):
            if id(kind) not in known:
                known.add(id(kind))
                found[kind] = None
                waiting.append(kind)
    return sorted(found, key=lambda kind: kind.__qualname__.lower())


def _annotated(value: Any) -> Iterator[type]:
    """The classes of tlprune in the annotations of a function, or of a class and its public members."""
    parts = [value]
    if inspect.isclass(value):
        own = [part for name, part in vars(value).items() if not name.startswith("_")]
        parts += [getattr(part, "fget", getattr(part, "func", part)) for part in own]  # of properties, the function
    elif not inspect.isroutine(value):
        return
    for part in parts:
        try:
            hints = get_type_hints(part)
        except (NameError, TypeError):  # a name for type checkers alone; no annotations
            continue
        for hint in hints.values():
            yield from _classes(hint)


def _classes(hint: Any) -> Iterator[type]:
    if inspect.isclass(hint) and hint.__module__.startswith("tlprune.") and not hint.__name__.startswith("_"):
        yield hint
    arguments = hint if isinstance(hint, list | tuple) else get_args(hint)
    for argument in arguments:
        yield from _classes(argument)


def _by_page(kinds: Iterable[type]) -> dict[str, list[type]]:
    """Those that belong to a theme; what is behind the themes, as backends are, has no page."""
    pages: dict[str, list[type]] = {theme.page: [] for theme in THEMES}
    for kind in kinds:
        page = _page_of(kind.__module__.removeprefix("tlprune."), THEMES)
        if page is not None:
            pages[page].append(kind)
    return pages


def _page_of(home: str, themes: Iterable[Theme]) -> str | None:
    roots = [(root, theme.page) for theme in themes for root in theme.homes]
    fitting = [(len(root), page) for root, page in roots if f"{home}.".startswith(f"{root}.")]
    return max(fitting)[1] if fitting else None


def _page(theme: Theme, names: list[str], met: list[type]) -> str:
    parts = [_heading(theme.title), theme.says.replace("`", "``"), ".. currentmodule:: tlprune"]
    parts += [_entry(f"tlprune.{name}", getattr(tlprune, name)) for name in names]
    if met:
        parts += [
            _heading("What these take and give", "-"),
            "Classes without a public name that signatures name.",
        ]
        parts += [f".. autoclass:: {kind.__module__}.{kind.__qualname__}" for kind in met]
    return "\n\n".join(parts) + "\n"


def _entry(name: str, value: Any) -> str:
    if inspect.ismodule(value):
        imported = "\n   :imported-members:" if hasattr(value, "__all__") else ""
        return f".. automodule:: {name}\n   :members:{imported}"
    kind = "class" if inspect.isclass(value) else "function" if callable(value) else "data"
    return f".. auto{kind}:: {name}"


def _index(pages: Mapping[str, list[str]]) -> str:
    tree = "\n".join(f"   {page}" for page in pages)
    links = {page: ", ".join(f":py:obj:`~tlprune.{name}`" for name in names) for page, names in pages.items()}
    lines = [f"- :doc:`{page}`: {names}" for page, names in links.items()]
    says = "Everything that ``import tlprune as tp`` offers as ``tp.NAME``, by theme."
    return "\n\n".join([_heading("API reference"), says, f".. toctree::\n   :hidden:\n\n{tree}", *lines]) + "\n"


def _heading(title: str, line: str = "=") -> str:
    return f"{title}\n{line * len(title)}"
