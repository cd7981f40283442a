"""Sites as plain data, looked at before anything is built of them: a file may be anybody's.

Whatever passes has the types that sites are made of and so few parts that building them takes no more memory than the
file: numbers in a file can promise any size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

MOST_NODES = 1_000_000
LARGEST = 2**40  # sites of one group; the mask itself is bounded by what the file holds
LONGEST_NAME = 1_000

Check = Callable[[Any, str], None]


def check_sites(data: Any) -> None:
    """Raise a ValueError unless these data can be sites.

    Example:
        >>> check_sites([{"kind": "neurons", "layers": [0, 1], "width": -3}])
        Traceback (most recent call last):
            ...
        ValueError: width must be a whole number from 1 to 1,099,511,627,776 but is -3
    """
    _listed(data, "sites", lambda group, _: _group(group), most=100)


def _group(data: Any, within_spans: bool = False) -> None:
    _mapping(data, "a group of sites")
    kind = data.get("kind")
    if kind == "attention_edges":
        _fields(data, readers=_names, spans=_spans, pairs=_pairs)
    elif "spans" in data:
        if within_spans:
            raise ValueError("sites by span are of a group that is by span already")
        _fields(data, spans=_spans)
        _group(data.get("group"), within_spans=True)
        if "flow" in data:
            _mapping(data["flow"], "flow")
            _fields(data["flow"], moves=_pairs, read=_names)
    elif kind == "edges":
        _edges(data)
    elif kind == "neurons":
        _fields(data, layers=_distinct_numbers, width=_number(1, LARGEST))
    elif kind == "weights":
        _fields(data, unit=_name, matrices=lambda value, name: _listed(value, name, lambda one, _: _matrix(one)))
    elif kind in ("nodes", "heads", "mlps", "layers"):
        _fields(data, names=_names)
    else:
        raise ValueError(f"unknown kind of sites {shown(kind)}")


def _edges(data: Mapping[str, Any]) -> None:
    _fields(data, architecture=_mapping, convention=_mapping)
    shape = data["architecture"]
    known = {
        "n_layers": _number(0, MOST_NODES),
        "n_heads": _number(1, MOST_NODES),
        "n_kv_heads": _number(1, MOST_NODES),
    }
    _fields(shape, **known)
    for name, value in shape.items():
        if name not in known and not isinstance(value, bool):
            raise ValueError(f"{shown(name)} must be true or false but is {shown(value)}")
    if shape["n_layers"] * (3 * shape["n_heads"] + 2) > MOST_NODES or shape["n_heads"] % shape["n_kv_heads"]:
        raise ValueError(
            f"no model has {shape['n_layers']} layers of {shape['n_heads']} heads, {shape['n_kv_heads']} of keys"
        )
    for name, value in data["convention"].items():
        _name(value, name)


def _matrix(data: Any) -> None:
    _mapping(data, "a matrix")
    _fields(data, name=_name, shape=lambda value, name: _listed(value, name, _number(1, LARGEST), most=8))
    axes = _number(0, len(data["shape"]) - 1)
    _fields(data, inputs=lambda value, name: _listed(value, name, axes, most=8))


def _fields(data: Mapping[str, Any], **checks: Check) -> None:
    for name, check in checks.items():
        if name not in data:
            raise ValueError(f"{name} is missing")
        check(data[name], name)


def _mapping(value: Any, name: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must have fields but is {shown(value)}")


def _listed(value: Any, name: str, check: Check, *, most: int = MOST_NODES) -> None:
    if not isinstance(value, (list, tuple)) or len(value) > most:
        raise ValueError(f"{name} must be a list of at most {most:,} but is {shown(value)}")
    for one in value:
        check(one, name)


def _names(value: Any, name: str) -> None:
    _listed(value, name, _name)


def _spans(value: Any, name: str) -> None:
    _listed(value, name, _name, most=10_000)


def _pairs(value: Any, name: str) -> None:
    def check(pair: Any, name: str) -> None:
        _listed(pair, name, _name, most=2)
        if len(pair) != 2:
            raise ValueError(f"{name} must be pairs but one is {shown(pair)}")

    _listed(value, name, check)


def _name(value: Any, name: str) -> None:
    if not isinstance(value, str) or len(value) > LONGEST_NAME:
        raise ValueError(f"{name} must be a name but is {shown(value)}")


def _number(least: int, most: int) -> Check:
    def check(value: Any, name: str) -> None:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{name} must be a whole number from {least:,} to {most:,} but is {shown(value)}")

    return check


def _distinct_numbers(value: Any, name: str) -> None:
    _listed(value, name, _number(0, MOST_NODES))
    if len({*value}) < len(value):
        raise ValueError(f"{name} must be different but are {shown(value)}")


def shown(value: Any) -> str:
    """A value in few words, whatever it is.

    Example:
        >>> shown("x" * 100), shown([1, [2]])
        ("'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...", 'a list of 2')
    """
    if isinstance(value, (list, tuple, dict)):
        return f"a {'list' if not isinstance(value, dict) else 'mapping'} of {len(value):,}"
    text = repr(value[:60] if isinstance(value, str) else value) if not _is_long(value) else "a number too long to show"
    return text if len(text) <= 43 else f"{text[:40]}..."


def _is_long(value: Any) -> bool:
    return isinstance(value, int) and value.bit_length() > 256
