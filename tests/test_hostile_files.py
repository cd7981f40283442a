"""Files of strangers: whatever they hold, loading is a circuit or a ValueError of one line, in little memory."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from test_circuit import PROVENANCE, random_circuit

from tlprune.between_spans import AttentionEdges
from tlprune.circuit import Circuit
from tlprune.flow import Flow
from tlprune.graph import Architecture, Graph
from tlprune.scores import Scores
from tlprune.sites import Matrix, Neurons, Nodes, Sites, Weights
from tlprune.spans import Spanned

GRAPH = Graph(Architecture(2, 2, 1))
FLOW = Flow(("s", "rest"), (("s", "rest"),), ("rest",))
SITES = {
    "edges": Sites((GRAPH,)),
    "edges by span": Sites((Spanned(GRAPH, ("s",), FLOW), AttentionEdges(("a0.h0<k>",), ("s",), (("s", "rest"),)))),
    "neurons": Sites((Neurons((0, 1), 4),)),
    "nodes": Sites((Nodes("heads", ("a0.h0", "a0.h1")), Nodes("mlps", ("m0",)))),
    "weights": Sites((Weights((Matrix("blocks.0.mlp.W_in", (3, 4), (0,)),)),)),
}


def circuit_of(sites: Sites) -> Circuit:
    kept = torch.arange(len(sites)) % 3 == 0
    return Circuit(sites, kept, {**PROVENANCE, "model": {"name": "x"}, "task": {"name": "y"}})


def outcome(path: Path, kind: Any = Circuit) -> str:
    """``"loaded"``, or the message of a ValueError; any other error is the test's failure."""
    try:
        kind.load(path)
    except ValueError as error:
        text = str(error)
        assert "\n" not in text
        assert len(text) < 1_000
        return text
    return "loaded"


# ---- plain data of another form

ODD = (
    None,
    True,
    -1,
    0,
    2**31,
    2**70,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "a\nb" * 500,
    [],
    {},
    [[]],
    [{}],
    {"a": 1},
)


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(data, (dict, list)):
        for key in data if isinstance(data, dict) else range(min(len(data), 2)):
            yield from places(data[key], (*path, key))


def replaced(data: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    changed = copy.deepcopy(data)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


def without(data: Any, place: tuple[Any, ...]) -> Any:
    changed = copy.deepcopy(data)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    return changed


@pytest.mark.parametrize("name", SITES)
def test_anything_in_any_place_is_a_circuit_or_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    circuit_of(SITES[name]).save(path)
    data, refused = json.loads(path.read_text()), 0
    here = [place for place in places(data) if place[:1] != ("provenance",) or len(place) <= 2]
    for place in here:
        for value in ODD:
            path.write_text(json.dumps(replaced(data, place, value)))
            refused += outcome(path) != "loaded"
        if place:
            path.write_text(json.dumps(without(data, place)))
            refused += outcome(path) != "loaded"
    assert refused > 0.6 * len(here) * len(ODD)


@pytest.mark.parametrize("name", SITES)
def test_anything_beside_bits_is_a_circuit_or_one_line(name: str, tmp_path: Path) -> None:
    path, plain = tmp_path / "circuit.safetensors", tmp_path / "circuit.json"
    circuit = circuit_of(SITES[name])
    circuit.save(plain)
    data = {key: value for key, value in json.loads(plain.read_text()).items() if key != "kept"}
    kept = torch.from_numpy(np.packbits(circuit.kept.numpy()))
    refused = 0
    for place in [*places(data)][::2]:
        for value in ODD[::2]:
            path.write_bytes(save({"kept": kept}, {"tlprune": json.dumps(replaced(data, place, value))}))
            refused += outcome(path) != "loaded"
    assert refused > 30
    for strange in (kept.float(), kept.bfloat16(), kept[:-1], kept[None], torch.cat([kept, kept]), kept[:0]):
        path.write_bytes(save({"kept": strange.contiguous()}, {"tlprune": json.dumps(data)}))
        assert "sites need" in outcome(path)
    path.write_bytes(save({"other": kept}, {"tlprune": json.dumps(data)}))
    assert "not a whole circuit" in outcome(path)


# ---- sizes that a file promises and does not have

PROMISES = {
    "neurons": {"kind": "neurons", "layers": [0], "width": 2**39},
    "neurons beyond numbers": {"kind": "neurons", "layers": [0], "width": 2**80},
    "weights": {"kind": "weights", "unit": "weight", "matrices": [{"name": "W", "shape": [2**39] * 8, "inputs": [0]}]},
    "edges": {**GRAPH.as_dict(), "architecture": {**GRAPH.as_dict()["architecture"], "n_layers": 10**9}},
    "heads": {**GRAPH.as_dict(), "architecture": {**GRAPH.as_dict()["architecture"], "n_heads": 10**6}},
    "spans": {"kind": "edges", "spans": [f"s{n}" for n in range(20_000)], "group": GRAPH.as_dict()},
    "spans of neurons": {
        "kind": "neurons",
        "spans": [f"s{n}" for n in range(9_000)],
        "group": {"kind": "neurons", "layers": [*range(1000)], "width": 2**40},
    },
}


@pytest.mark.parametrize("name", PROMISES)
def test_a_promise_of_great_size_takes_no_memory(name: str, tmp_path: Path) -> None:
    kind = PROMISES[name]["kind"]
    data = {"format": "tlprune-circuit", "version": 2, "sites": [PROMISES[name]], "n_kept": 0, "total": 0}
    data |= {"provenance": {}, "kept": {kind: []}}
    (tmp_path / "circuit.json").write_text(json.dumps(data))
    assert "not a whole circuit" in outcome(tmp_path / "circuit.json")
    bits = save({"kept": torch.zeros(1, dtype=torch.uint8)}, {"tlprune": json.dumps(data)})
    (tmp_path / "circuit.safetensors").write_bytes(bits)
    assert "not a whole circuit" in outcome(tmp_path / "circuit.safetensors")
    told = {**data, "format": "tlprune-scores", "version": 1, "scores": {}}
    (tmp_path / "scores.json").write_text(json.dumps(told))
    assert outcome(tmp_path / "scores.json", Scores) != "loaded"


def test_spans_within_spans_are_none(tmp_path: Path) -> None:
    inner: Any = GRAPH.as_dict()
    for _ in range(200):
        inner = {"kind": "edges", "spans": ["s"], "group": inner}
    data = {"format": "tlprune-circuit", "version": 2, "sites": [inner], "provenance": {}, "kept": {}}
    (tmp_path / "circuit.json").write_text(json.dumps(data))
    assert "by span already" in outcome(tmp_path / "circuit.json")


# ---- bytes

BYTES = {
    "nothing": b"",
    "no text": b"\xff\xfe\x00\x01",
    "a pickle": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "lists without end": b"[" * 1_000_000,
    "mappings without end": b'{"a":' * 1_000_000,
    "a long number": b'{"format": "tlprune-circuit", "version": ' + b"9" * 100_000 + b"}",
    "a long version": b'{"format": "tlprune-circuit", "version": "' + b"9\\n" * 100_000 + b'"}',
    "a number": b"3",
    "not a number": b"NaN",
    "a zero byte": b"{}\x00",
}


@pytest.mark.parametrize("ending", ["json", "safetensors"])
@pytest.mark.parametrize("name", BYTES)
def test_other_bytes_are_one_line(name: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"circuit.{ending}"
    path.write_bytes(BYTES[name])
    assert "circuit" in outcome(path)
    assert outcome(path) != "loaded"


HEADERS = {
    "a header longer than the file": struct.pack("<Q", 2**40) + b"{}",
    "a header of the largest length": b"\xff" * 8 + b"{}",
    "a tensor outside of the file": (8, {"kept": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}),
    "offsets that run backwards": (8, {"kept": {"dtype": "U8", "shape": [8], "data_offsets": [8, 0]}}),
    "a shape that is not the bytes": (8, {"kept": {"dtype": "F64", "shape": [8], "data_offsets": [0, 8]}}),
    "overlapping tensors": (8, {name: {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]} for name in ("kept", "x")}),
    "no metadata": (8, {"kept": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}),
    "metadata that are no JSON": (8, {"__metadata__": {"tlprune": "{"}}),
    "metadata that are a list": (0, {"__metadata__": {"tlprune": "[]"}}),
    "metadata without end": (0, {"__metadata__": {"tlprune": "[" * 500_000}}),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_lying_header_is_one_line(name: str, tmp_path: Path) -> None:
    made = HEADERS[name]
    if isinstance(made, tuple):
        header = json.dumps(made[1]).encode()
        made = struct.pack("<Q", len(header)) + header + bytes(made[0])
    (tmp_path / "circuit.safetensors").write_bytes(made)
    assert outcome(tmp_path / "circuit.safetensors").endswith(
        "is not a circuit: give a file that tlprune saved, whole."
    )


@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_damaged_files_are_circuits_or_one_line(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"circuit.{ending}"
    circuit_of(SITES["edges by span"]).save(path)
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 1, 4])):
            damaged[chance.randrange(len(whole))] = chance.randrange(256)
        path.write_bytes(bytes(damaged[: chance.choice([len(whole), chance.randrange(len(whole))])]))
        outcome(path)


def test_a_file_of_too_many_bytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "circuit.json"
    random_circuit().save(path)
    monkeypatch.setattr("tlprune.files.MOST_BYTES", path.stat().st_size)
    assert outcome(path) == "loaded"
    path.write_text(path.read_text() + " ")
    assert "more than" in outcome(path)
