"""A circuit: the sites that a method kept, with everything needed to read, check and reuse it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from tlprune.effective import effective_sites
from tlprune.files import brief, read_saved, write_tensors, write_whole
from tlprune.flow import Flow
from tlprune.graph import Graph
from tlprune.site_data import LONGEST_NAME, shown
from tlprune.sites import Nodes, Sites
from tlprune.spans import Spanned, every_span

FORMAT, VERSION = "circuit", 2
MOST_NAMES = 1_000_000
MOST_LISTED = 2**30  # sites, kept or not, of a file of names: a byte each


@dataclass(frozen=True, eq=False)
class Circuit:
    """A set of sites of one model: edges, heads, MLPs, layers, neurons or weights.

    ``&``, ``|`` and ``-`` give the sites in both, in either, and in the first alone.

    Attributes:
        sites: the places that could be kept.
        kept: which of them are in the circuit, ``(site,)``.
        provenance: method and its fields, task and model fingerprints, ablation, seed, versions; plain data.

    Example:
        >>> from tlprune.graph import Architecture
        >>> graph = Graph(Architecture(n_layers=1, n_heads=2, n_kv_heads=2))
        >>> circuit = Circuit.from_edges(graph, ["input->a0.h1<v>", "a0.h1->logits", "input->m0"])
        >>> len(circuit), circuit.n_effective, "a0.h1->logits" in circuit, circuit.heads
        (3, 2, True, ['a0.h1'])
        >>> (circuit - Circuit.from_edges(graph, ["input->m0"])).edges
        ['input->a0.h1<v>', 'a0.h1->logits']
    """

    sites: Sites
    kept: Bool[Tensor, "site"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kept.shape != (len(self.sites),):
            raise ValueError(
                f"A circuit of {self.sites!r} needs one value for each of {len(self.sites):,} sites but got shape "
                f"{tuple(self.kept.shape)}. Build both from the same model."
            )

    # ---- making one

    @staticmethod
    def from_edges(model: Any, edges: Iterable[str], *, provenance: Mapping[str, Any] | None = None) -> Circuit:
        """A circuit of edges stated by hand.

        Args:
            model: a TransformerLens model, or a :class:`~tlprune.graph.Graph` for another convention.
            edges: edge names such as ``"a9.h9->logits"``.
            provenance: where the edges come from.

        Raises:
            ValueError: a name is malformed or not an edge of the graph.
        """
        graph = model if isinstance(model, Graph) else Graph.of(model)
        return Circuit.from_names(Sites((graph,)), edges, provenance=provenance)

    @staticmethod
    def from_nodes(model: Any, nodes: Iterable[str], *, provenance: Mapping[str, Any] | None = None) -> Circuit:
        """A circuit of writers stated by hand: heads, MLPs and embeddings.

        Args:
            model: a TransformerLens model, or a :class:`~tlprune.graph.Graph` for another convention.
            nodes: node names such as ``"a9.h9"``, ``"m0"`` and ``"input"``.
            provenance: where they come from.

        Example:
            >>> from tlprune.graph import Architecture
            >>> Circuit.from_nodes(Graph(Architecture(2, 2, 2)), ["input", "a1.h0"])
            Circuit(2 of 7 nodes)
        """
        graph = model if isinstance(model, Graph) else Graph.of(model)
        return Circuit.from_names(Sites((Nodes("nodes", graph.writers),)), nodes, provenance=provenance)

    @staticmethod
    def from_names(sites: Sites, names: Iterable[str], *, provenance: Mapping[str, Any] | None = None) -> Circuit:
        """The named ones of any sites."""
        kept = torch.zeros(len(sites), dtype=torch.bool)
        for name in names:
            kept[sites.index(name)] = True
        return Circuit(sites, kept, provenance or {})

    def like(self, kept: Bool[Tensor, "site"], provenance: Mapping[str, Any] | None = None) -> Circuit:
        """Another circuit of the same sites."""
        return Circuit(self.sites, kept, provenance or {})

    # ---- reading it

    @property
    def graph(self) -> Graph:
        """The graph of its edges.

        Raises:
            ValueError: the circuit is not one of edges.
        """
        return self.sites.graph

    def __len__(self) -> int:
        return int(self.kept.sum())

    def __contains__(self, name: str) -> bool:
        return bool(self.kept[self.sites.index(name)])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Circuit) and self.sites == other.sites and torch.equal(self.kept, other.kept)

    def __hash__(self) -> int:
        return hash((self.sites, self.kept.numpy().tobytes()))

    def __repr__(self) -> str:
        counts = " + ".join(self._counted(kind) for kind in self.sites.kinds)
        if "edges" not in self.sites.kinds:
            return f"Circuit({counts})"
        return f"Circuit({counts}, {self.n_effective:,} effective; {self.graph.convention})"

    def _counted(self, kind: str) -> str:
        """Counts of one kind, of sites at their spans and of distinct ones."""
        counts = f"{self.count(kind):,} of {len(self.sites.group(kind)):,} {kind}"
        if not isinstance(self.sites.group(kind), Spanned):
            return counts
        bare = self.without_spans()
        return f"{counts} by span ({bare.count(kind):,} of {len(bare.sites.group(kind)):,} distinct)"

    @property
    def _parts(self) -> list[tuple[str, slice]]:
        return list(self.sites.parts.items())

    def count(self, kind: str) -> int:
        """How many sites of one kind are kept."""
        return int(self.kept[self.sites.part(kind)].sum())

    def names_of(self, kind: str) -> list[str]:
        """Names of the kept sites of one kind, in the order of the model."""
        group, part = self.sites.group(kind), self.kept[self.sites.part(kind)]
        return [group.name(index) for index in part.nonzero().flatten().tolist()]

    @cached_property
    def names(self) -> list[str]:
        """Names of all kept sites, kind after kind."""
        return [name for kind in self.sites.kinds for name in self.names_of(kind)]

    @cached_property
    def edges(self) -> list[str]:
        """Names of its edges in graph order; empty for a circuit without edges."""
        return self.names_of("edges") if "edges" in self.sites.kinds else []

    @cached_property
    def nodes(self) -> list[str]:
        """Writers in the circuit: those with a kept outgoing edge, or kept themselves, without duplicates."""
        written = [edge.partition("->")[0] for edge in self.edges]
        own = [name for kind in ("nodes", "heads", "mlps") if kind in self.sites.kinds for name in self.names_of(kind)]
        return list(dict.fromkeys(name.partition("@")[0] for name in written + own))

    @property
    def heads(self) -> list[str]:
        """Attention heads among :attr:`nodes`, such as ``"a9.h6"``, layer by layer."""
        found = [name for name in self.nodes if ".h" in name]
        return sorted(found, key=lambda name: tuple(int(part) for part in name[1:].split(".h")))

    @cached_property
    def effective(self) -> Circuit:
        """The sites that can matter: edges on some path from an embedding to the logits, through kept nodes only."""
        return Circuit(self.sites, effective_sites(self.sites, self.kept), self.provenance)

    @property
    def n_effective(self) -> int:
        return len(self.effective)

    # ---- with spans and without

    def without_spans(self) -> Circuit:
        """The same places whatever the span: a site is kept where any span keeps it.

        So its length is the number of distinct sites, and it is the smallest circuit without spans that has all of this
        one. Without spans it is the circuit itself.

        Example:
            >>> from tlprune.graph import Architecture
            >>> sites = Sites((Graph(Architecture(1, 2, 2)),)).with_spans(["s", "t"])
            >>> circuit = Circuit.from_names(sites, ["input->m0@s", "input->m0@t", "m0->logits@t"])
            >>> circuit
            Circuit(3 of 39 edges by span (2 of 13 distinct), 2 effective; embeddings merged, kv shared)
            >>> circuit.without_spans()
            Circuit(2 of 13 edges, 2 effective; embeddings merged, kv shared)
        """
        if not self.sites.spans:
            return self
        rows = [self.kept[part].view(-1, len(self.sites.bare(kind))) for kind, part in self._parts]
        kept = torch.cat([own.any(0) for own in rows])
        return Circuit(self.sites.without_spans(), kept, self._of("without spans"))

    def with_spans(self, spans: Iterable[str], *, flow: Flow | None = None) -> Circuit:
        """The same circuit by span: a site is kept at every span, so that it computes the same.

        Args:
            spans: names of a task's spans.
            flow: how these follow each other, such as ``tp.edges(model, spans=task).flow``.

        Raises:
            ValueError: it differs by span already, or is of weights, which all positions share.
        """
        sites = self.sites.with_spans(spans, flow=flow)
        rows = [self.kept[part].repeat(len(every_span(sites.spans))) for _, part in self._parts]
        return Circuit(sites, torch.cat(rows), self._of("with spans"))

    # ---- algebra

    @property
    def complement(self) -> Circuit:
        """The sites that are not in this circuit."""
        return self.like(~self.kept, self._of("complement"))

    def __and__(self, other: Circuit) -> Circuit:
        self._check_same(other)
        return self.like(self.kept & other.kept, self._of("intersection", other))

    def __or__(self, other: Circuit) -> Circuit:
        self._check_same(other)
        return self.like(self.kept | other.kept, self._of("union", other))

    def __sub__(self, other: Circuit) -> Circuit:
        self._check_same(other)
        return self.like(self.kept & ~other.kept, self._of("difference", other))

    def iou(self, other: Circuit) -> float:
        """Intersection over union with another circuit of the same sites; 1 for two empty circuits.

        Raises:
            ValueError: the sites differ, in architecture, convention or selection, or the models do.
        """
        self._check_same(other)
        union = int((self.kept | other.kept).sum())
        return int((self.kept & other.kept).sum()) / union if union else 1.0

    def _of(self, operation: str, *others: Circuit) -> dict[str, Any]:
        """Provenance of a circuit made of this one, which still names the model and the ablation that all share."""
        origins = [self.provenance, *(other.provenance for other in others)]
        shared = {
            key: self.provenance[key]
            for key in ("model", "ablation")
            if all(origin.get(key) == self.provenance.get(key) is not None for origin in origins)
        }
        return {**shared, "operation": operation, "of": [dict(origin) for origin in origins]}

    def _check_same(self, other: Circuit) -> None:
        own, its = (circuit.provenance.get("model", {}).get("weights") for circuit in (self, other))
        if self.sites != other.sites:
            raise ValueError(
                f"Circuits need the same sites to be compared but have {self.sites} and {other.sites}. "
                "Find both with the same model, selection and convention."
            )
        if own and its and own != its:
            raise ValueError(
                f"Circuits need one model to be compared but were found on weights {own} and {its}. Find both with "
                "the same model, or compare circuit.kept yourself."
            )

    # ---- using and keeping it

    def on(self, model: Any, *, ablation: Any = None) -> Any:
        """The circuit as a callable: ``circuit.on(model)(clean, corrupt)`` gives its logits.

        Args:
            model: the model that it is of.
            ablation: what replaces all else; by default what the circuit was found under, where its provenance tells
                that in full, and :class:`~tlprune.Resample` for a circuit stated by hand.

        Returns:
            A :class:`~tlprune.Masked`.

        Raises:
            ValueError: the circuit was found on another model, or under an ablation that needs its reference data.
        """
        from tlprune.masking.masked import masked_circuit

        return masked_circuit(model, self, ablation)

    def save(self, path: str | Path) -> None:
        """Write the circuit; an existing file is replaced only once the new one is whole.

        ``.json`` lists the names of the kept sites, to be read by people; ``.safetensors`` packs eight sites into a
        byte, for masks over weights.
        """
        path = Path(path)
        data = {"format": f"tlprune-{FORMAT}", "version": VERSION, "sites": self.sites.as_dict()}
        data |= {"n_kept": len(self), "n_effective": self.n_effective, "total": len(self.sites)}
        data |= {"n_distinct": len(self.without_spans())} if self.sites.spans else {}
        data |= {"provenance": dict(self.provenance)}
        if path.suffix == ".safetensors":
            return write_tensors(path, {"kept": _packed(self.kept)}, data)
        if len(self) > MOST_NAMES:
            raise ValueError(
                f"A JSON circuit lists names and {len(self):,} are too many. Save it as {path.stem}.safetensors."
            )
        kept = {kind: self.names_of(kind) for kind in self.sites.kinds}
        return write_whole(path, json.dumps({**data, "kept": kept}, indent=1) + "\n")

    @staticmethod
    def load(path: str | Path) -> Circuit:
        """Read a circuit that :meth:`save` wrote.

        Raises:
            ValueError: the file is missing, not a circuit, of another version, or its counts do not agree.
        """
        path = Path(path)
        tensors, data = read_saved(path, FORMAT, VERSION)
        try:
            circuit = _from_data(data, tensors)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise ValueError(
                f"{path} is not a whole circuit ({brief(error)}). Save it again with circuit.save()."
            ) from error
        if len(circuit) != data.get("n_kept") or len(circuit.sites) != data.get("total"):
            raise ValueError(
                f"{path} promises {shown(data.get('n_kept'))} of {shown(data.get('total'))} sites but holds "
                f"{len(circuit)} of {len(circuit.sites)}. The file was cut or edited: save it again."
            )
        return circuit

    # ---- sharing it

    def push_to_hub(
        self,
        repo_id: str,
        *,
        figures: Any = None,
        base_model: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> str:
        """Upload the circuit to the Hugging Face hub, with a card that says what it is; the address of the commit.

        The repository is made if there is none. It gets ``circuit.json``, or ``circuit.safetensors`` where names would
        be too many, and ``README.md``.

        Args:
            repo_id: such as ``"me/ioi-in-gpt2"``.
            figures: for the card: what :func:`~tlprune.evaluate` gave, or a mapping of names to numbers.
            base_model: the model's own name on the hub, by which the hub links the two.
            private: whether a new repository can be seen by its owner alone.
            revision: the branch to commit to.
            token: of an account; by default that of ``hf auth login``.

        Raises:
            ValueError: the hub refuses, or is out of reach.
        """
        from tlprune.hub import push

        told = {"figures": figures, "base_model": base_model}
        return push(self, repo_id, private=private, revision=revision, token=token, **told)

    @staticmethod
    def from_hub(repo_id: str, *, revision: str | None = None, token: str | None = None) -> Circuit:
        """A circuit that :meth:`push_to_hub` uploaded; only its file of names or bits is read, never code.

        Args:
            repo_id: such as ``"me/ioi-in-gpt2"``.
            revision: a branch, a tag, or the hash of a commit, which never changes.
            token: of an account, for a private repository.

        Raises:
            ValueError: there is no such repository or no circuit in it, the file is too large, or not whole.
        """
        from tlprune.hub import pull

        return pull(repo_id, revision=revision, token=token)


def _from_data(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Circuit:
    """A circuit of plain data, which may be anybody's: nothing is taken for what it says before it was looked at."""
    sites, provenance = Sites.from_dict(data["sites"]), data["provenance"]
    _check_provenance(provenance)
    if tensors:
        return Circuit(sites, _unpacked(tensors["kept"], len(sites)), provenance)
    if len(sites) > MOST_LISTED:
        raise ValueError(f"names are read of at most {MOST_LISTED:,} sites, not of {len(sites):,}: use .safetensors")
    kept = torch.zeros(len(sites), dtype=torch.bool)
    for kind, names in data["kept"].items():
        group, start = sites.group(kind), sites.part(kind).start
        for name in names:
            if not isinstance(name, str) or len(name) > LONGEST_NAME:
                raise ValueError(f"{shown(name)} is no name of a site")
            kept[start + group.index(name)] = True
    return Circuit(sites, kept, provenance)


def _check_provenance(provenance: Any) -> None:
    """Its parts that circuits are compared and run by have fields."""
    known = ("model", "task", "ablation", "command", "versions")
    parts = [provenance, *(provenance[name] for name in known if name in provenance)]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"provenance and its {', '.join(known)} must have fields")


def _packed(kept: Bool[Tensor, "site"]) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.packbits(kept.cpu().numpy()))


def _unpacked(packed: Tensor, count: int) -> Bool[Tensor, "site"]:
    import numpy as np

    if packed.dtype != torch.uint8 or packed.shape != (-(-count // 8),):
        raise ValueError(
            f"{count:,} sites need {-(-count // 8):,} bytes but there are {packed.numel():,} {packed.dtype}"
        )
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count)).bool()


def edges_text(kept: int, total: int) -> str:
    """How counts are written everywhere: ``170 of 1,701 edges``."""
    return f"{kept:,} of {total:,} edges"
