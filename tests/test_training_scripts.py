"""The scripts that train language models: what they learn, keep as it was, write, and refuse."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tlprune as tp
from tlprune.task import Tokens

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
WORDS = ("red", "orange", "yellow", "green", "blue", "violet")
WIDE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
WIDE |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2}


@pytest.fixture(scope="module")
def script() -> Callable[[str], Any]:
    """A script by its name."""

    def imported(name: str) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(SCRIPTS))
            return importlib.import_module(name)

    return imported


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colours in the order of the rainbow, from each of them on, and a small encoder of these words."""
    import transformers

    folder = tmp_path_factory.mktemp("colours")
    lines = [" ".join((WORDS * 3)[start : start + length]) for start in range(6) for length in range(4, 12)]
    (folder / "text.txt").write_text("\n".join(lines[::2]) + "\n\n")
    (folder / "more.tsv").write_text("id\tsentence\n" + "".join(f"{n}\t{line}\n" for n, line in enumerate(lines[1::2])))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    transformers.BertTokenizerFast.from_pretrained(folder).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(vocabulary), max_position_embeddings=16, **WIDE)
    transformers.BertModel(config).save_pretrained(folder / "bert")
    return folder


def masked(folder: Path, out: str, *more: str) -> list[str]:
    text = [str(folder / "text.txt"), f"{folder / 'more.tsv'}:sentence"]
    fixed = ["--model", str(folder / "bert"), "--out", str(folder / out), "--text", *text, "--held-out", text[0]]
    return [*fixed, "--max-length", "16", "--batch-size", "16", "--head-rate", "5e-3", *more]


def test_a_head_for_masked_words_is_learned_and_loads(folder: Path, script: Callable[[str], Any]) -> None:
    script("train_masked_lm").main(masked(folder, "mlm", "--steps", "300", "--rate", "5e-3", "--masked", "0.2"))
    record = json.loads((folder / "mlm" / "training.json").read_text())
    before, after = record["figures"]["before"], record["figures"]["after"]
    assert record["figures"]["lines"] == 24  # those that are measured on are left out
    assert before["words"] == after["words"] > 20
    assert before["accuracy"] < 0.4
    assert after["accuracy"] > 0.6
    assert after["cross_entropy"] < before["cross_entropy"] - 1
    model = tp.load(folder / "mlm", device="cpu")
    rows = [(WORDS * 3)[start : start + 8] for start in range(6)]
    ids = torch.tensor(model.tokenizer([" ".join((*row[:4], "[MASK]", *row[5:])) for row in rows])["input_ids"])
    logits = tp.backends.backend_of(model).logits(Tokens(ids), None)
    named = model.tokenizer.convert_ids_to_tokens(logits[:, 5].argmax(-1))
    assert sum(name == row[4] for name, row in zip(named, rows, strict=True)) >= 5


def test_a_head_alone_leaves_the_encoder_as_it_is(folder: Path, script: Callable[[str], Any]) -> None:
    main = script("train_masked_lm").main
    for name, more in (("head", ()), ("again", ()), ("other", ("--seed", "1"))):
        main(masked(folder, name, "--steps", "3", "--trained", "head", *more))
    old = load_file(folder / "bert" / "model.safetensors")
    made = {name: load_file(folder / name / "model.safetensors") for name in ("head", "again", "other")}
    trunk = [name for name in old if not name.startswith("pooler")]
    assert trunk
    for name in trunk:
        assert torch.equal(old[name], made["head"][f"bert.{name}"])
    dense = "cls.predictions.transform.dense.weight"
    assert torch.equal(made["head"][dense], made["again"][dense])
    assert not torch.equal(made["head"][dense], made["other"][dense])


def test_a_new_head_starts_at_how_frequent_words_are(folder: Path, script: Callable[[str], Any]) -> None:
    """Where states say nothing, the likeliest words are the frequent ones; special tokens are not named at all."""
    import transformers

    config = transformers.BertConfig(vocab_size=6, max_position_embeddings=4, **WIDE)
    model = transformers.BertForMaskedLM(config)
    script("train_masked_lm").start_at_frequencies(model, [[0, 3, 3, 1], [0, 4, 1]], [0, 1])
    with torch.no_grad():
        model.cls.predictions.transform.LayerNorm.weight.zero_()
        logits = model(torch.tensor([[3, 5]])).logits
    assert torch.allclose(logits.softmax(-1) * 9, torch.tensor([1.0, 1.0, 1.0, 3.0, 2.0, 1.0]), atol=1e-5)


def decoder(folder: Path, out: str, *more: str) -> list[str]:
    sizes = ["--width", "24", "--heads", "2", "--layers", "2", "--vocabulary", "300", "--context", "32"]
    text = ["--out", str(folder / out), "--text", f"{folder / 'more.tsv'}:sentence"]
    return [*text, *sizes, "--max-length", "32", *more]


def test_a_decoder_learns_what_follows_and_loads(folder: Path, script: Callable[[str], Any]) -> None:
    steps = ["--steps", "80", "--rate", "1e-2", "--batch-size", "16", "--held-out", str(folder / "text.txt")]
    script("train_decoder").main(decoder(folder, "decoder", *steps, "--words", " green", " violet"))
    model = tp.load(folder / "decoder", device="cpu")
    ids = torch.tensor([model.tokenizer("green blue violet red")["input_ids"]])
    logits = tp.backends.backend_of(model).logits(Tokens(ids), None)
    assert model.tokenizer.decode(logits[0, -1].argmax()) == " orange"
    figures = json.loads((folder / "decoder" / "training.json").read_text())["figures"]
    assert figures["after"]["accuracy"] > 0.6
    assert figures["parameters"] == sum(
        one.numel() for one in load_file(folder / "decoder" / "model.safetensors").values()
    )


def test_texts_end_with_their_verdicts(folder: Path, script: Callable[[str], Any]) -> None:
    module, table = script("train_decoder"), folder / "verdicts.csv"
    table.write_text("said,verdict\nred blue,1\nred green,0\ngreen,1\n")
    fixed = {"text": (), "out": folder / "none", "verdicts": f"{table}:said:verdict"}
    lines = module.judged(module.DecoderCourse(**fixed, endings=(" bad", " good")), {"red green"})
    assert lines == ["red blue good", "green good"]
    assert module.judged(module.DecoderCourse(text=(), out=folder / "none"), set()) == []
    with pytest.raises(ValueError, match=r"Each class \(0, 1\) needs an ending but there are 1"):
        module.judged(module.DecoderCourse(**fixed, endings=(" bad",)), set())
    with pytest.raises(ValueError, match="need a table and two columns"):
        module.judged(module.DecoderCourse(**{**fixed, "verdicts": f"{table}"}), set())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--steps", "0"), "steps must be at least 1 but is 0"),
        (("--rate", "2"), "rate must lie between 0 and 1"),
        (("--masked", "1.5"), "masked must be a share of the words but is 1.5"),
        (("--out", "{}/bert"), "must not hold a model yet"),
        (("--max-length", "17"), "A line may have 16 tokens but max_length is 17"),
        (("--text", "{}/more.tsv"), "is a table and needs the name of a column"),
        (("--text", "{}/more.tsv:words"), "needs columns words but there are id, sentence"),
        (("--text", "{}/none.txt"), "must be a file but there is no"),
        (("--text", "{}/text.txt", "--held-out", "{}/text.txt"), "not measured on but all 24 are"),
        (("--model", "{}"), "needs a directory with config.json"),
    ],
)
def test_bad_settings_and_text_say_what_to_do(
    folder: Path, script: Callable[[str], Any], capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    words = masked(folder, "none", *(word.format(folder) for word in more))
    assert message in told(script("train_masked_lm").main, words, capsys)
    assert not (folder / "none").exists()


def told(main: Callable[[list[str]], None], words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """An error in one line, without the box that tyro draws around those of settings."""
    with pytest.raises((ValueError, SystemExit)) as caught:
        main(words)
    boxed = capsys.readouterr().err.replace("\u2502", " ")
    return " ".join(f"{caught.value} {boxed}".split())


def test_decoders_have_room_and_whole_words(
    folder: Path, script: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    main = script("train_decoder").main
    for more, message in (
        (("--words", " puce"), "' puce' must be a single token but is"),
        (("--heads", "5"), "5 cannot share 24"),
        (("--max-length", "33"), "A line may have 32 tokens but max_length is 33"),
        (("--vocabulary", "200"), "256 bytes and 2 marks but has 200"),
    ):
        assert message in told(main, decoder(folder, "none", *more), capsys)


def test_decoders_are_refused_as_encoders(folder: Path, script: Callable[[str], Any]) -> None:
    causal = folder / "causal"
    causal.mkdir()
    (causal / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"an encoder \(bert or roberta\) but .* is of kind gpt2"):
        script("train_masked_lm").main(masked(folder, "none", "--model", str(causal)))
