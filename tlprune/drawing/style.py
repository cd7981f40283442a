"""Colours and strokes of a drawing, for light and for dark surroundings."""

from __future__ import annotations

FONT = "Inter, 'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"

COLOURS = {
    "q": ("#0072b2", "#56b4e9"),
    "k": ("#e08e00", "#f2b134"),
    "v": ("#009e73", "#2fcf9f"),
    "mlp": ("#c05f98", "#e39ac4"),
    "logits": ("#c9480a", "#ff8a4c"),
    "several": ("#5b6b80", "#9fb0c6"),
    "idle": ("#9aa3ae", "#6f7985"),
    "first": ("#0072b2", "#56b4e9"),
    "both": ("#39424e", "#d3dae3"),
    "second": ("#d55e00", "#ff9a55"),
}
"""Light and dark colour of a link by the part that it enters, or by whose it is of two circuits; after Okabe and Ito,
safe for colour-blind readers."""

PAINTS: dict[str, dict[str, tuple[str, str]]] = {
    "ground": {"fill": ("#ffffff", "#14171c")},
    "band": {"fill": ("#f5f7f9", "#1b1f26")},
    "grid": {"stroke": ("#e0e5ea", "#2c333d")},
    "ink": {"fill": ("#1c2530", "#e6eaf0")},
    "soft": {"fill": ("#66717f", "#98a3b1")},
    "head": {"fill": ("#ffffff", "#232932"), "stroke": ("#46566a", "#8494a8")},
    "keyvalue": {"fill": ("#ffffff", "#232932"), "stroke": ("#8b98a8", "#66758a")},
    "box-mlp": {"fill": ("#f8edf4", "#33232e"), "stroke": ("#9c4a7b", "#c987ad")},
    "end": {"fill": ("#2b3645", "#dfe5ec"), "stroke": ("#2b3645", "#dfe5ec")},
    "inverse": {"fill": ("#ffffff", "#14171c")},
    "faint": {"fill": ("#ffffff", "#14171c"), "stroke": ("#9aa3ae", "#6f7985")},
    "tie": {"stroke": ("#8b98a8", "#66758a")},
}
PAINTS |= {f"part-{part}": {"stroke": colours} for part, colours in COLOURS.items()}
PAINTS |= {f"only-{owner}": {**PAINTS["head"], "stroke": COLOURS[owner]} for owner in ("first", "second")}
PAINTS |= {f"mark-{part}": {"fill": colours} for part, colours in COLOURS.items()}


def paint(name: str) -> str:
    """The class and the light colours of a paint, as SVG attributes.

    Light colours are attributes and not rules, so that programs without style sheets show them too.

    Example:
        >>> paint("tie")
        'class="tie" stroke="#8b98a8"'
    """
    colours = " ".join(f'{attribute}="{light}"' for attribute, (light, _) in PAINTS[name].items())
    return f'class="{name}" {colours}'


def dark_rules() -> str:
    """Style rules that give every paint its dark colours on dark screens; print stays light.

    A figure whose ``data-theme`` is ``light`` or ``dark`` is so whatever the screen.
    """
    by_screen, by_choice = (_rules(f".circuit{which}") for which in (":not([data-theme=light])", "[data-theme=dark]"))
    return f"@media screen and (prefers-color-scheme:dark){{{by_screen}}}@media screen{{{by_choice}}}"


def _rules(figure: str) -> str:
    return "".join(
        f"{figure} .{name}{{{';'.join(f'{attribute}:{dark}' for attribute, (_, dark) in colours.items())}}}"
        for name, colours in PAINTS.items()
    )
