"""The recipe for Boolean expressions in CodeLlama, end to end on a Llama of two layers in a directory."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tlprune as tp
from tlprune.backends import backend_of
from tlprune.graph import Architecture
from tlprune.processes import Processes

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
SMALL = ["--steps", "4", "--batch-size", "4", "--micro-batch", "2", "--train", "16", "--validation", "8", "--test", "8"]
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def script() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        return importlib.import_module("boolean_codellama")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, gpt2: Any) -> Path:
    """Random weights, in bfloat16 on the disk, with byte pairs for words."""
    import transformers

    path = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=len(gpt2), max_position_embeddings=256, **SHAPE)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    gpt2.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, llama: Path, script: Any) -> Path:
    out = tmp_path_factory.mktemp("study")
    script.main(["--out", str(out), "--model", str(llama), *SMALL])
    return out


def test_both_circuits_are_found_measured_and_compared(study: Path) -> None:
    summary = json.loads((study / "summary.json").read_text())
    found = {kind: tp.Circuit.load(study / kind / "circuit.json") for kind in ("few-shot", "instruction")}
    assert summary["edges"] == len(found["few-shot"].sites) == 46
    assert summary["shared"]["edges"] == len(found["few-shot"] & found["instruction"])
    for kind, circuit in found.items():
        assert summary[kind]["edges"] == len(circuit)
        assert summary[kind][f"on {kind}"].keys() == {"agreement", "accuracy", "kl", "accuracy of the full model"}
        records = [json.loads(line) for line in (study / kind / "metrics.jsonl").read_text().splitlines()]
        assert [record["step"] for record in records] == [1, 2, 3, 4]
        assert records[-1]["target"] == pytest.approx(1.2)


def test_it_is_the_papers_recipe_with_embeddings_as_a_node_in_bfloat16(study: Path, llama: Path, script: Any) -> None:
    provenance = tp.Circuit.load(study / "few-shot" / "circuit.json").provenance
    method = tp.method_from(provenance)
    recipe = tp.recipes["boolean-few-shot"].settings
    for name in ("recipe", "size", "sparsity", "rate", "multiplier_rate"):
        assert getattr(method, name) == getattr(recipe, name), name
    assert (method.steps, method.warmup, method.rise, method.keep_embeddings) == (4, 0, 3, False)
    assert provenance["ablation"] == {"name": "resample"}
    model = script.read_model(script.Study(out=study, model=str(llama)), Processes())
    assert backend_of(model).dtype == torch.bfloat16
    assert backend_of(model).fingerprint()["weights"] == provenance["model"]["weights"]


def test_the_same_line_again_trains_nothing(study: Path, llama: Path, script: Any, capsys: Any) -> None:
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tlprune.learning.training.Training.step", None)
        script.main(["--out", str(study), "--model", str(llama), *SMALL])
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before
    assert json.loads(capsys.readouterr().out)["edges"] == 46


def test_codellama_has_as_many_edges_as_the_paper_counts() -> None:
    assert tp.Graph(Architecture(n_layers=40, n_heads=40, n_kv_heads=40)).n_edges == 3_877_661


def test_embeddings_may_be_kept_and_numbers_are_the_papers_by_default(script: Any, llama: Path) -> None:
    study = script.Study(out=Path("nowhere"), embeddings="kept")
    model = tp.bridge(llama)
    task = script.task_of(script.Study(out=Path("nowhere"), train=8, validation=4, test=4), "instruction", model)
    recipe = tp.recipes["boolean-instruction"].settings
    assert script.method_of(study, "instruction", task) == recipe
    assert study.model == "codellama/CodeLlama-13b-Instruct-hf"
