"""Sites by their names, and circuits in which named sites are forced to be kept or removed."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from jaxtyping import Bool
from torch import Tensor

from tlprune.circuit import Circuit
from tlprune.sites import Sites

Names = str | Iterable[str]


def chosen(sites: Sites, names: Names) -> Bool[Tensor, "site"]:
    """Which sites are called so.

    Args:
        sites: all there are.
        names: names or patterns, such as ``"a3.*"``; one, several with ``|`` between them, or a list.

    Raises:
        ValueError: one of them matches no site.

    Example:
        >>> from tlprune.graph import Architecture, Graph
        >>> from tlprune.sites import Nodes
        >>> sites = Sites((Nodes("nodes", Graph(Architecture(2, 2, 2)).writers[1:]),))
        >>> found = chosen(sites, ["a0.*|m0", "a1.h1"])
        >>> [sites.name(index) for index in found.nonzero().flatten().tolist()]
        ['a0.h0', 'a0.h1', 'm0', 'a1.h1']
    """
    found = torch.zeros(len(sites), dtype=torch.bool)
    for name in [names] if isinstance(names, str) else names:
        for part in name.split("|"):
            found[_places(sites, part)] = True
    return found


def _places(sites: Sites, pattern: str) -> list[int]:
    try:
        return [sites.index(pattern)]
    except ValueError:
        found = [index for index in range(len(sites)) if fnmatchcase(sites.name(index), pattern)]
        if not found:
            raise
        return found


def forced(circuit: Circuit, *, include: Names = (), exclude: Names = ()) -> Circuit:
    """A circuit with some sites kept and others removed, whatever it had.

    Args:
        circuit: left as it is.
        include: names or patterns, such as ``"a3.*"``, of what the result keeps; for the sites that another circuit
            has and this one lacks ``(other - circuit).names``.
        exclude: of what it does not keep.

    Returns:
        The circuit; its provenance tells the sites that were forced and where the rest comes from.

    Raises:
        ValueError: nothing is forced, a name matches no site, or a site is to be both.

    Source: Bhaskar, Friedman, Chen, "The Heuristic Core" (ACL 2024), released code.

    Example:
        >>> import tlprune as tp
        >>> circuit = tp.Circuit.from_nodes(tp.planted("copy").model, ["input", "a0.h0", "m0"])
        >>> forced(circuit, include="m*", exclude=["a0.h0", "a0.h1"]).names
        ['input', 'm0', 'm1']
    """
    keep, remove = chosen(circuit.sites, include), chosen(circuit.sites, exclude)
    if not bool((keep | remove).any()):
        raise ValueError("Forcing needs sites to include or to exclude but was given none. Name some: include=['m0'].")
    told = {"include": _names(circuit, keep), "exclude": _names(circuit, remove)}
    check_apart(circuit.sites, keep, remove)
    origin = {key: circuit.provenance[key] for key in ("model", "task", "ablation") if key in circuit.provenance}
    provenance = {**origin, "operation": "forced", **told, "of": [dict(circuit.provenance)]}
    return circuit.like((circuit.kept.cpu() | keep) & ~remove, provenance)


def check_apart(sites: Sites, keep: Bool[Tensor, "site"], remove: Bool[Tensor, "site"]) -> None:
    """Raise a ValueError if a site is to be kept and to be removed."""
    both = (keep & remove).nonzero().flatten().tolist()
    if both:
        names = ", ".join(sites.name(index) for index in both[:3])
        raise ValueError(
            f"A site is either included or excluded but {len(both):,} are named for both, such as {names}. Name each "
            "once."
        )


def _names(circuit: Circuit, which: Bool[Tensor, "site"]) -> list[str]:
    return circuit.like(which).names
