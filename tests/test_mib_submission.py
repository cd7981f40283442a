"""Folders for MIB's leaderboard: what is written passes the check, and the check finds each broken rule."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import check_one_line

import tlprune as tp
from tlprune.cli import main
from tlprune.graph import Architecture, Convention, Graph
from tlprune.interop import mib_models
from tlprune.interop.mib_models import MODELS, Shape
from tlprune.interop.mib_submission import SIZES, limits
from tlprune.scores import Scores
from tlprune.sites import Nodes, Sites

SMALL = {"gpt2": Shape(Architecture(6, 4, 4), 16), "llama3": Shape(Architecture(6, 4, 2), 16)}
NAMES = ("ioi_gpt2", "arc-easy_llama3")


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """MIB's models of another size, so that files are small."""
    for name, shape in SMALL.items():
        monkeypatch.setitem(mib_models.MODELS, name, shape)


def scores_of(name: str, convention: Convention | None = None) -> Scores:
    graph = Graph(SMALL[name.partition("_")[2]].architecture, convention)
    return Scores(Sites((graph,)), torch.randn(len(graph), generator=torch.Generator().manual_seed(0)))


def circuits_of(name: str) -> list[tp.Circuit]:
    """One at each limit, in no order."""
    scores = tp.convert(scores_of(name), SMALL[name.partition("_")[2]].graph.convention)
    return [scores.top(limit) for limit in limits(len(scores.values))][::-1]


def test_the_models_have_the_published_number_of_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    gpt2 = MODELS["gpt2"].graph
    assert len(gpt2) == 32_491
    assert limits(len(gpt2)) == [
        int(share * 32_491) for share in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    ]
    for name, shape in MODELS.items():
        heads, layers = shape.architecture.n_heads, shape.architecture.n_layers
        writers = [1 + layer * (heads + 1) for layer in range(layers)]
        assert len(shape.graph) == sum(3 * heads * w + w + heads for w in writers) + 1 + layers * (heads + 1), name


@pytest.mark.parametrize("ending", [".json", ".pt"])
def test_a_submission_of_scores_and_circuits_passes(tmp_path: Path, ending: Any) -> None:
    written = [
        tp.mib_submission(scores_of(NAMES[0]), tmp_path, name=NAMES[0], ending=ending),
        tp.mib_submission(circuits_of(NAMES[1]), tmp_path, name=NAMES[1], ending=ending),
    ]
    assert sorted(path.name for path in (tmp_path / NAMES[0]).iterdir()) == [f"importances{ending}"]
    files = sorted((tmp_path / NAMES[1]).iterdir())
    assert [path.name for path in files] == [f"edges_{size:g}{ending}" for size in SIZES]
    (tmp_path / "README.md").write_text("Mine.")
    assert tp.check_mib_submission(tmp_path) == sorted(written, key=lambda entry: entry.name)
    assert written[1].counts == tuple(limits(len(SMALL["llama3"].graph)))
    assert [entry.holds for entry in written] == ["edge scores", "circuits"]
    found = tp.from_mib(files[0], SMALL["llama3"]).circuit
    assert found == circuits_of(NAMES[1])[-1]


def test_shared_keys_and_values_are_counted_for_each_query_head(tmp_path: Path) -> None:
    """A circuit that keeps to the limit as it is counted here may not do so as MIB counts it."""
    graph = Graph(SMALL["llama3"].architecture)
    into = [name for name in graph.edges() if "<v>" in name]
    circuits = circuits_of(NAMES[1])
    smallest = limits(len(SMALL["llama3"].graph))[0]
    circuits[-1] = tp.Circuit.from_edges(graph, into[:smallest])
    with pytest.raises(ValueError, match=rf"at most {smallest} of .* have one of {2 * smallest} .*each query head"):
        tp.mib_submission(circuits, tmp_path, name=NAMES[1])
    assert not (tmp_path / NAMES[1]).exists()


def test_scores_of_nodes(tmp_path: Path) -> None:
    writers = SMALL["gpt2"].graph.writers
    scores = Scores(Sites((Nodes("nodes", writers),)), torch.arange(len(writers)).float())
    assert tp.mib_submission(scores, tmp_path, name=NAMES[0]).holds == "node scores"


def test_models_of_another_size_are_told_by_the_model(tmp_path: Path) -> None:
    model: Any = tp.planted("copy").model
    scores = Scores(tp.edges(model), torch.arange(len(tp.edges(model))).float())
    entry = tp.mib_submission(scores, tmp_path, name="ioi_interpbench", model=model)
    assert (entry.name, entry.total) == ("ioi_interpbench", len(scores.values))
    with pytest.raises(ValueError, match="known shape"):
        tp.mib_submission(scores, tmp_path / "again", name="ioi_interpbench")


def test_what_cannot_be_submitted(tmp_path: Path) -> None:
    scores, circuits = scores_of(NAMES[0]), circuits_of(NAMES[0])
    with pytest.raises(ValueError, match=r"has ioi_gpt2, .* but not 'ioi_bert'"):
        tp.mib_submission(scores, tmp_path, name="ioi_bert")
    with pytest.raises(ValueError, match=r"9 circuits of growing size, .* but there are 8"):
        tp.mib_submission(circuits[:-1], tmp_path, name=NAMES[0])
    one_more = scores.top(limits(len(scores.values))[-1] + 1)
    bigger = [one_more, *circuits[1:]]
    with pytest.raises(ValueError, match=r"\(50.0%\)"):
        tp.mib_submission(bigger, tmp_path, name=NAMES[0])
    with pytest.raises(ValueError, match="are of a model of"):
        tp.mib_submission(scores, tmp_path, name=NAMES[1])
    with pytest.raises(ValueError, match="are equal"):
        tp.mib_submission(Scores(scores.sites, torch.ones(len(scores.values))), tmp_path, name=NAMES[0])
    with pytest.raises(ValueError, match=r"'\.bin' was asked for"):
        tp.mib_submission(scores, tmp_path, name=NAMES[0], ending=".bin")
    assert list(tmp_path.iterdir()) == []
    tp.mib_submission(scores, tmp_path, name=NAMES[0])
    with pytest.raises(ValueError, match="is there already"):
        tp.mib_submission(scores, tmp_path, name=NAMES[0])


def grown(path: Path) -> None:
    data = json.loads(path.read_text())
    for value in data["edges"].values():
        value["in_graph"] = True
    path.write_text(json.dumps(data))


BROKEN = {
    "one task": (lambda top: shutil.rmtree(top / NAMES[0]), r"2 tasks and 2 models but .* has arc-easy and llama3"),
    "no task": (lambda top: [shutil.rmtree(top / name) for name in NAMES], "has no task and no model"),
    "another name": (lambda top: (top / NAMES[0]).rename(top / "ioi_gpt-2"), "not 'ioi_gpt-2'"),
    "another model": (lambda top: (top / NAMES[0]).rename(top / "ioi_llama3x"), "not 'ioi_llama3x'"),
    "a circuit too few": (lambda top: (top / NAMES[1] / "edges_0.1.json").unlink(), "there are 8 in"),
    "too many edges": (lambda top: grown(top / NAMES[1] / "edges_0.2.json"), r"at most 221 of 1,108 edges \(20.0%\)"),
    "two files of scores": (
        lambda top: shutil.copy(top / NAMES[0] / "importances.json", top / NAMES[0] / "more.json"), "there are 2 in"
    ),
    "another file": (lambda top: (top / NAMES[0] / "notes.txt").write_text("x"), "has 'notes.txt'"),
    "an empty folder": (lambda top: (top / NAMES[0] / "importances.json").unlink(), "there are 0 in"),
    "a damaged file": (lambda top: (top / NAMES[0] / "importances.json").write_text("{"), "json is not a file of MIB"),
    "a circuit for scores": (
        lambda top: tp.to_mib(
            tp.Circuit.from_edges(SMALL["gpt2"].graph, []), top / NAMES[0] / "importances.json", model=SMALL["gpt2"]
        ),
        "all are equal",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_the_check_finds_each_broken_rule(tmp_path: Path, kind: str) -> None:
    tp.mib_submission(scores_of(NAMES[0]), tmp_path, name=NAMES[0])
    tp.mib_submission(circuits_of(NAMES[1]), tmp_path, name=NAMES[1])
    tp.check_mib_submission(tmp_path)
    spoil, message = BROKEN[kind]
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        tp.check_mib_submission(tmp_path)


def test_a_submission_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder but"):
        tp.check_mib_submission(tmp_path / "gone")


# ---- the command


def test_the_command_writes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores_of(NAMES[0]).save(tmp_path / "scores.safetensors")
    names = [f"c{place}.json" for place in range(len(SIZES))]
    for name, circuit in zip(names, circuits_of(NAMES[1]), strict=True):
        circuit.save(tmp_path / name)
    out = tmp_path / "mine"
    common = ["--out", str(out)]
    words = ["mib", "submit", str(tmp_path / "scores.safetensors"), "--task", "ioi", "--model", "gpt2", *common]
    assert main(words) == 0
    assert "ioi_gpt2: edge scores" in capsys.readouterr().out
    assert main(["mib", "check", str(out)]) == 2
    check_one_line(capsys.readouterr().err, "at least 2 tasks")
    files = [str(tmp_path / name) for name in names]
    assert main(["mib", "submit", *files, "--task", "arc-easy", "--model", "llama3", *common, "--format", "pt"]) == 0
    assert len(list((out / "arc-easy_llama3").glob("*.pt"))) == len(SIZES)
    capsys.readouterr()
    assert main(["mib", "check", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{out} is a submission of 2 folders"


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scores.json"
    scores_of(NAMES[0]).save(path)
    flags = ["--task", "ioi", "--model", "gpt2", "--out", str(tmp_path / "out")]
    wrong = {
        "There is no command of tlprune mib 'send'": ["send"],
        "2 of 2 files are scores": ["submit", str(path), str(path), *flags],
        "there are 0 in": ["submit", *flags],
        "gone.json": ["submit", str(tmp_path / "gone.json"), *flags],
        "--out": ["submit", str(path), "--task", "ioi", "--model", "gpt2"],
    }
    for message, words in wrong.items():
        assert main(["mib", *words]) == 2
        check_one_line(capsys.readouterr().err, message)
    for words in ([], ["--help"]):
        assert main(["mib", *words]) == 0
        assert "tlprune mib submit" in capsys.readouterr().out
