"""Circuits on the hub: what is uploaded, what is read, and what is refused before it is downloaded."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import HfApi, errors
from huggingface_hub.hf_api import RepoFile
from test_circuit import random_circuit

import tlprune as tp
from tlprune import hub
from tlprune.circuit import Circuit
from tlprune.sites import Matrix, Sites, Weights

COMMIT = "0" * 39 + "1"


class Hub:
    """A hub of one folder, whose calls take what the real ones take."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls, self.sizes = folder, [], {}
        folder.mkdir()

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_repo", repo_id, options))

    def upload_folder(self, *, repo_id: str, folder_path: str, delete_patterns: list[str], **options: Any) -> Any:
        self.calls.append(("upload_folder", repo_id, options))
        for name in delete_patterns:
            (self.folder / name).unlink(missing_ok=True)
        shutil.copytree(folder_path, self.folder, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/{COMMIT}")

    def repo_info(self, repo_id: str, *, revision: str | None) -> Any:
        self.calls.append(("repo_info", repo_id, {"revision": revision}))
        return SimpleNamespace(sha=COMMIT)

    def get_paths_info(self, repo_id: str, paths: list[str], *, revision: str) -> list[Any]:
        assert revision == COMMIT
        there = [name for name in paths if (self.folder / name).exists()]
        sizes = {name: self.sizes.get(name, (self.folder / name).stat().st_size) for name in there}
        return [RepoFile(path=name, size=sizes[name], oid="0", type="file") for name in there]

    def hf_hub_download(self, repo_id: str, filename: str, *, revision: str) -> str:
        assert revision == COMMIT
        self.calls.append(("hf_hub_download", filename, {}))
        return str(self.folder / filename)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub(tmp_path / "hub")
    for name in ("create_repo", "upload_folder", "repo_info", "get_paths_info", "hf_hub_download"):
        monkeypatch.setattr(HfApi, name, _checked(getattr(HfApi, name), getattr(fake, name)))
    return fake


def _checked(real: Any, fake: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(real)

    def call(self: HfApi, *given: Any, **named: Any) -> Any:
        signature.bind(self, *given, **named)
        return fake(*given, **named)

    return call


def weights_circuit() -> Circuit:
    sites = Sites((Weights((Matrix("blocks.0.mlp.W_in", (4, 5), (0,)),)),))
    return Circuit.from_names(sites, ["blocks.0.mlp.W_in[1,2]"])


def test_what_is_pushed_is_read_again(served: Hub) -> None:
    circuit = random_circuit()
    assert circuit.push_to_hub("me/mine", private=True, revision="draft", token="secret").endswith(COMMIT)
    assert sorted(path.name for path in served.folder.iterdir()) == ["README.md", "circuit.json"]
    assert served.calls[0] == ("create_repo", "me/mine", {"private": True, "exist_ok": True})
    assert served.calls[1][2]["revision"] == "draft"
    again = tp.Circuit.from_hub("me/mine", revision="v1")
    assert again == circuit
    assert again.provenance == circuit.provenance
    assert ("repo_info", "me/mine", {"revision": "v1"}) in served.calls


def test_circuits_of_weights_are_bits_and_replace_names(served: Hub) -> None:
    random_circuit().push_to_hub("me/mine")
    weights_circuit().push_to_hub("me/mine")
    assert sorted(path.name for path in served.folder.iterdir()) == ["README.md", "circuit.safetensors"]
    assert tp.Circuit.from_hub("me/mine") == weights_circuit()


def test_the_card_says_what_it_is(served: Hub) -> None:
    planted = tp.planted("copy")
    circuit = tp.EAP(edges=2).find(planted.model, planted.task)
    circuit.push_to_hub("me/mine", figures="circuit  1.0\ncomplement  0.5", base_model="openai-community/gpt2")
    text = (served.folder / "README.md").read_text()
    _, metadata, body = text.split("---\n", 2)
    told = yaml.safe_load(metadata)
    assert (told["library_name"], told["base_model"]) == ("tlprune", "openai-community/gpt2")
    assert "tlprune" in told["tags"]
    assert "# 2 edges of planted-copy for planted-copy" in body
    for fact in ("| method | eap |", "| ablation | resample |", "| convention | embeddings merged, kv shared |"):
        assert fact in body
    assert (
        "2 of 110 (edges)" in body
        and "| versions | tlprune " in body
        and "```\ncircuit  1.0\ncomplement  0.5\n```" in body
    )
    assert 'circuit = tp.Circuit.from_hub("me/mine")' in body
    assert json.loads(body.partition("```json\n")[2].partition("```")[0]) == json.loads(json.dumps(circuit.provenance))


def test_a_card_is_no_place_for_markup_of_others(served: Hub) -> None:
    told = {"task": {"name": "<script>|x\n# y"}, "note": "```\n# out of the fence"}
    random_circuit().like(random_circuit().kept, told).push_to_hub("me/mine", figures={"KL | [x](y)": 0.5})
    body = (served.folder / "README.md").read_text()
    assert "<script>" not in body.partition("## Provenance")[0].replace("\\<script\\>", "")
    assert "\n# y" not in body
    assert "| KL \\| \\[x\\](y) | 0.5 |" in body
    assert "````json" in body


@pytest.mark.parametrize(
    ("name", "circuit"), [("circuit.json", random_circuit()), ("circuit.safetensors", weights_circuit())]
)
def test_a_large_file_is_refused_before_it_is_downloaded(name: str, circuit: Circuit, served: Hub) -> None:
    circuit.push_to_hub("me/mine")
    served.sizes[name] = hub.FILES[name] + 1
    with pytest.raises(ValueError, match=rf"{name} of me/mine has [\d,]+ bytes, more than"):
        tp.Circuit.from_hub("me/mine")
    assert not [call for call in served.calls if call[0] == "hf_hub_download"]
    served.sizes[name] = hub.FILES[name]
    assert tp.Circuit.from_hub("me/mine") == circuit


def test_only_our_files_are_read(served: Hub) -> None:
    (served.folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    (served.folder / "circuit.pkl").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(ValueError, match=r"needs circuit.json or circuit.safetensors but has neither"):
        tp.Circuit.from_hub("me/mine")
    random_circuit().save(served.folder / "circuit.json")
    weights_circuit().save(served.folder / "circuit.safetensors")
    with pytest.raises(ValueError, match=r"but has circuit\.json and circuit\.safetensors"):
        tp.Circuit.from_hub("me/mine")


def response(error: type[Exception]) -> Exception:
    made = error.__new__(error)
    made.args = ("404 Client Error.\nRepository Not Found",)
    return made


@pytest.mark.parametrize(
    "error",
    [
        response(errors.RepositoryNotFoundError),
        response(errors.RevisionNotFoundError),
        response(errors.GatedRepoError),
        response(errors.RemoteEntryNotFoundError),
        ConnectionError("no route\nto host"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_hub_that_does_not_serve_is_one_line(error: Exception, served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    for name in ("repo_info", "create_repo"):
        monkeypatch.setattr(HfApi, name, refuse)
    for act in (lambda: tp.Circuit.from_hub("me/mine"), lambda: random_circuit().push_to_hub("me/mine")):
        with pytest.raises(ValueError, match="The hub does not serve 'me/mine': ") as raised:
            act()
        assert "\n" not in str(raised.value)


def test_a_name_that_is_none_is_refused_by_the_real_client() -> None:
    with pytest.raises(ValueError, match=r"The hub does not serve '\.\./\.\./etc'"):
        tp.Circuit.from_hub("../../etc")


def test_offline_the_cache_is_read(tmp_path: Path, served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise errors.OfflineModeIsEnabled("offline")

    random_circuit().save(tmp_path / "circuit.json")
    known = {"circuit.json": str(tmp_path / "circuit.json")}
    real = inspect.signature(huggingface_hub.try_to_load_from_cache)

    def cached(*given: Any, **named: Any) -> str | None:
        return known.get(real.bind(*given, **named).arguments["filename"])

    monkeypatch.setattr(HfApi, "repo_info", offline)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    assert tp.Circuit.from_hub("me/mine") == random_circuit()
    known.clear()
    with pytest.raises(ValueError, match="me/mine is not in the cache"):
        tp.Circuit.from_hub("me/mine")
