"""The commands as a person types them, and what they answer to bad input."""

import json
import resource
from pathlib import Path

import pytest

import tlprune as tp
from tlprune.cli import main
from tlprune.learning.records import Step
from tlprune.learning.training import Training
from tlprune.methods import METHODS
from tlprune.run_folder import CHECKPOINT, FILES
from tlprune.studies.commands.sweep import SWEPT
from tlprune.tasks.usual import by_span

PLANTED = ["discover", "--model", "planted-and", "--task", "planted", "--edges", "5", "--steps", "120"]


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "planted"
    assert main([*PLANTED, "--out", str(out)]) == 0
    return out


def test_discover_writes_a_circuit_that_loads(run_directory: Path) -> None:
    assert sorted(path.name for path in run_directory.iterdir()) == sorted([*FILES, "run.yaml"])
    circuit = tp.Circuit.load(run_directory / "circuit.json")
    assert circuit == tp.planted("and").circuit
    assert circuit.provenance["command"] == {"model": "planted-and", "task": "planted", "task_seed": 0}
    records = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 121))
    page = (run_directory / "circuit.html").read_text()
    assert all(edge.replace(">", "&gt;").replace("<", "&lt;") in page for edge in circuit.edges)


def test_discover_and_evaluate_print_the_same_table(
    tmp_path: Path, run_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*PLANTED, "--out", str(tmp_path / "again")]) == 0
    found = capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "again" / "circuit.json")]) == 0
    table = capsys.readouterr().out.partition("\n\n")[2].strip()
    assert table in found
    for row in ("full model", "circuit", "complement", "random", "empty"):
        assert f"\n{row}" in table


def test_evaluate_prints_the_figures_of_the_run_as_json(
    run_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run_directory / "circuit.json"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((run_directory / "evaluation.json").read_text())
    assert printed["ablation"] == printed["discovery_ablation"] == {"name": "resample"}
    assert printed["rows"][1]["name"] == "circuit"
    low, high = printed["rows"][1]["intervals"]["agreement"]
    assert low <= printed["rows"][1]["agreement"] <= high


def test_discover_goes_on_where_it_was_stopped(
    tmp_path: Path, run_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same line again; with other settings it is refused, and a finished run is one that is taken."""
    words, step = [*PLANTED, "--out", str(tmp_path / "run")], Training.step

    def stopped(training: Training) -> Step:
        if training.done == 70:
            raise KeyboardInterrupt
        return step(training)

    monkeypatch.setattr(Training, "step", stopped)
    assert main(words) == 130
    monkeypatch.setattr(Training, "step", step)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["metrics.jsonl", CHECKPOINT]
    assert main([*words, "--seed", "1"]) == 2
    assert "was written with another seed (0, now 1)" in capsys.readouterr().err
    assert main(words) == 0
    records, whole = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "run", run_directory)
    )
    assert [{**one, "seconds": 0} for one in records] == [{**one, "seconds": 0} for one in whole]
    circuits = [tp.Circuit.load(folder / "circuit.json") for folder in (tmp_path / "run", run_directory)]
    assert circuits[0] == circuits[1]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted([*FILES, "run.yaml"])
    assert main(words) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_discover_finds_a_full_disk_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tlprune.models.load.load", None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        assert main([*PLANTED, "--out", str(tmp_path / "run")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "run: File too large" in capsys.readouterr().err


def test_micro_batches_are_of_methods_that_train_masks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["discover", "--method", "eap", "--micro-batch", "2"]) == 2
    assert "eap trains none. Leave --micro-batch out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "names"),
    [("eap", []), ("eap", ["x", "end"]), ("random", []), ("edge-pruning", [])],
    ids=["eap", "eap of two", "random", "edge-pruning"],
)
def test_circuits_by_span_are_found_measured_and_drawn(
    method: str, names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "planted-and", "--task", "planted", "--method", method, "--edges", "12", "--spans", *names]
    words += ["--steps", "20"] if method == "edge-pruning" else []
    assert main(["discover", *words, "--out", str(tmp_path / "run")]) == 0
    found = capsys.readouterr().out
    circuit = tp.Circuit.load(tmp_path / "run" / "circuit.json")
    planted = tp.planted("and")
    assert circuit.sites.spans == tuple(names or planted.task.span_names)
    assert len(circuit) == 12
    assert "@end" in (tmp_path / "run" / "circuit.html").read_text()
    assert main(["evaluate", str(tmp_path / "run" / "circuit.json")]) == 0
    table = capsys.readouterr().out.partition("\n\n")[2].strip()
    assert table in found
    assert "distinct" in table


def test_methods_inside_get_the_same_spans() -> None:
    task, inner = tp.planted("and").task, tp.EAP(edges=30)
    found = by_span(tp.HAP(edges=5, attribution=inner, spans=("task",)), task)
    assert found.spans == found.attribution.spans == task.span_names
    warm = by_span(tp.EdgePruning(edges=5, warm_start=inner, spans=("x",)), task)
    assert warm.warm_start.spans == ("x",)
    assert by_span(inner, task) is inner


def test_spans_need_a_task_that_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["discover", "--method", "eap", "--edges", "12", "--out", str(tmp_path / "run"), "--spans"]
    assert main([*words, "--model", "tracr-reverse", "--task", "reverse"]) == 2
    assert "but 'reverse' names none. Leave --spans out" in capsys.readouterr().err
    assert main([*words, "z", "x", "--model", "planted-and", "--task", "planted"]) == 2
    assert "'planted-and' names x, y, end, not z, x. Leave" in capsys.readouterr().err


def test_methods_of_nodes_are_measured_and_not_drawn(tmp_path: Path) -> None:
    words = ["--model", "planted-and", "--task", "planted", "--method", "node-patching", "--nodes", "4"]
    assert main(["discover", *words, "--out", str(tmp_path / "run")]) == 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "circuit.json",
        "evaluation.json",
        "run.yaml",
    ]
    assert tp.Circuit.load(tmp_path / "run" / "circuit.json").names == tp.planted("and").circuit.nodes


def test_a_tasks_own_metrics_are_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["discover", "--model", "testbed", "--task", "greater-than", "--steps", "1", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    assert "years_above" in capsys.readouterr().out


def test_the_printed_line_loads_the_circuit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*PLANTED[:-1], "2", "--out", str(tmp_path / "run")])
    line = capsys.readouterr().out.strip().splitlines()[-1].partition(": ")[2]
    scope: dict = {}
    exec(f"import tlprune\n{line}", scope)
    assert len(scope["circuit"]) == 5


BAD = {
    "unknown model": (["--model", "gtp2"], "There is no model 'gtp2'"),
    "unknown task": (["--task", "iio"], "There is no task 'iio'.*Did you mean ioi"),
    "unknown method": (["--method", "acdd"], "There is no method 'acdd'"),
    "sparsity": (["--sparsity", "1"], "Sparsity must lie between 0 and 1 but is 1"),
    "too many edges": (["--model", "planted", "--task", "planted", "--edges", "111"], "between 0 and 110 but is 111"),
    "task of another model": (["--model", "testbed", "--task", "planted"], "planted"),
    "text without tokenizer": (["--model", "planted", "--task", "ioi"], "tokenizer"),
    "not a number": (["--steps", "many"], "--steps"),
    "unknown flag": (["--sparisty", ".9"], "--sparisty"),
    "no steps": (["--steps", "0"], "steps must be at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_before_any_work(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, message = BAD[case]
    assert main(["discover", *words, "--out", str(tmp_path / "run")]) == 2
    check_one_line(capsys.readouterr().err, message)
    assert not (tmp_path / "run").exists()


def check_one_line(errors: str, message: str) -> None:
    import re

    assert errors.startswith("tlprune: error: ")
    assert errors.count("\n") == 1
    assert re.search(message, errors)


def test_output_directories(tmp_path: Path, run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run_directory / "circuit.json").read_bytes()
    assert main([*PLANTED, "--out", str(run_directory)]) == 2
    check_one_line(capsys.readouterr().err, "already holds a run")
    assert (run_directory / "circuit.json").read_bytes() == before
    (tmp_path / "file").touch()
    assert main([*PLANTED, "--out", str(tmp_path / "file" / "run")]) == 2
    check_one_line(capsys.readouterr().err, "Cannot write to")


def test_default_directories_are_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main([*PLANTED[:-1], "2"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "planted-and-planted",
        "planted-and-planted-2",
    ]


def test_bad_circuits(tmp_path: Path, run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = run_directory / "circuit.json"
    broken = tmp_path / "circuit.json"
    broken.write_text(good.read_text()[:100])
    for words, message in (
        ([str(tmp_path / "none.json")], "Cannot read the circuit"),
        ([str(broken)], "not JSON"),
        ([str(good), "--model", "planted-or"], "was found on model 'planted-and'.*is used on 'planted-or'"),
        ([str(good), "--model", "testbed", "--task", "ioi"], "Build both from one model|was found on"),
        ([], "circuit"),
    ):
        assert main(["evaluate", *words]) == 2
        check_one_line(capsys.readouterr().err, message)


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "tlprune discover" in capsys.readouterr().out
    assert main(["discovr"]) == 2
    check_one_line(capsys.readouterr().err, "no command 'discovr'")
    with pytest.raises(SystemExit, match="0"):
        main(["discover", "--help"])
    assert "--sparsity" in capsys.readouterr().out


FLAGS = [("discover", name) for name in METHODS] + [("sweep", name) for name in SWEPT]


@pytest.mark.parametrize("words", FLAGS, ids=str)
def test_every_method_has_flags_those_of_its_own_methods_among_them(
    words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    command, name = words
    with pytest.raises(SystemExit) as stop:
        main([command, "--method", name, "--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0
    assert ("--attribution.sparsity" in said) == (name == "hap")


def test_a_compiled_program_brings_its_model_its_ablation_and_the_size_of_its_circuit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["discover", "--task", "xproportion", "--steps", "3", "--out", str(out)]) == 0
    circuit = tp.Circuit.load(out / "circuit.json")
    assert len(circuit) == len(tp.tracr("xproportion").behavioural)
    assert circuit.provenance["ablation"] == {"name": "zero"}
    assert circuit.provenance["command"] == {"model": "tracr-xproportion", "task": "xproportion", "task_seed": 0}
    assert "zero ablation" in capsys.readouterr().out
    assert main(["evaluate", str(out / "circuit.json")]) == 0
    assert "256 test examples" in capsys.readouterr().out


def test_size_and_ablation_can_be_chosen(tmp_path: Path) -> None:
    words = ["discover", "--task", "reverse", "--steps", "2", "--edges", "4", "--ablation", "resample"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    circuit = tp.Circuit.load(tmp_path / "run" / "circuit.json")
    assert (len(circuit), circuit.provenance["ablation"]["name"]) == (4, "resample")
