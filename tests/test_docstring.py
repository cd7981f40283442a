"""The docstring task: its prompts and twins, what is held out, its metrics, and tokenizers that do not suit."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

import tlprune as tp
from tlprune.task import Batch, Task
from tlprune.tasks.docstring import (
    ARGUMENTS,
    FUNCTIONS,
    SPAN_NAMES,
    TEMPLATES,
    argument_metrics,
    docstring,
    one_token_arguments,
)
from tlprune.tasks.words import PLAIN_WORDS

SIZES = {"train": 24, "validation": 12, "test": 16}
TOKENIZERS = ["code", "gpt2"]


@pytest.fixture(scope="module")
def code() -> PreTrainedTokenizerFast:
    """Words with the space before them, single marks and spaces."""
    words = sorted({*ARGUMENTS, *FUNCTIONS, *PLAIN_WORDS, "def", "self", "param"})
    pieces = ["<unk>", "<bos>", *words, *(f" {word}" for word in words), *'\n (),:"']
    tokenizer = Tokenizer(WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex(r" ?[A-Za-z]+|."), behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", pad_token="<unk>")


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def parts(task: Task) -> dict[str, Batch]:
    return {"train": task.discovery.train(), "validation": task.discovery.validation(), "test": task.test}


def texts(tokenizer: Any, batch: Batch, *, twin: bool = False) -> list[str]:
    ids = (batch.corrupt if twin else batch.clean).ids
    return tokenizer.batch_decode([row[1 : last + 1] for row, last in zip(ids, batch.positions[:, 0], strict=True)])


def signature_and_documented(text: str) -> tuple[list[str], list[str]]:
    text = re.sub(r"\s+", " ", text)
    found = re.search(r"\((.*?)\)", text)
    assert found is not None and text.endswith("param")
    documented = re.findall(r"param\s+(\w+)\s*:", text)
    return [name.strip() for name in found[1].split(",") if name.strip() != "self"], documented


def test_the_answer_follows_the_documented_arguments_in_the_signature(tokenizer: Any) -> None:
    for batch in parts(docstring(tokenizer, **SIZES)).values():
        for text, answer, foil in zip(texts(tokenizer, batch), batch.answers[:, 0], batch.foils[:, 0], strict=True):
            signature, (first, second) = signature_and_documented(text)
            right, wrong = (tokenizer.decode([token]).strip() for token in (answer, foil))
            place = signature.index(first)
            assert signature[place : place + 3] == [first, second, right]
            assert wrong in signature and wrong != right
            assert len(set(signature)) == len(signature)


def test_a_twin_has_other_arguments_in_both_places_and_is_else_the_same(tokenizer: Any) -> None:
    for batch in parts(docstring(tokenizer, **SIZES)).values():
        for row, (text, twin) in enumerate(
            zip(texts(tokenizer, batch), texts(tokenizer, batch, twin=True), strict=True)
        ):
            (signature, documented), (other, others) = map(signature_and_documented, (text, twin))
            changed = [name for name, new in zip(signature, other, strict=True) if name != new]
            assert changed == [*documented, tokenizer.decode(batch.answers[row]).strip()]
            assert not {*others} & {*signature, *other} and len(set(others)) == 2
            assert int((batch.clean.ids[row] != batch.corrupt.ids[row]).sum()) == 5


def test_spans_are_the_arguments_and_the_comma(tokenizer: Any) -> None:
    task = docstring(tokenizer, **SIZES)
    assert task.span_names == SPAN_NAMES
    batch = task.test
    assert batch.spans is not None
    for row, text in enumerate(texts(tokenizer, batch)):
        signature, documented = signature_and_documented(text)
        answer = tokenizer.decode(batch.answers[row]).strip()
        wanted = [*documented, ",", answer, *documented, "param"]
        order = ("A_def", "B_def", "B_def+1", "C_def", "A_doc", "B_doc", "end")
        for name, word in zip(order, wanted, strict=True):
            (place,) = (batch.spans[row] == SPAN_NAMES.index(name)).nonzero().flatten().tolist()
            assert tokenizer.decode(batch.clean.ids[row, place]).strip() == word
        assert signature.index(answer) == signature.index(documented[1]) + 1


def test_templates_and_names_are_held_out(code: Any) -> None:
    task = docstring(code, **SIZES)
    kept = set(task.options["held_out_names"])
    assert len(kept) == len(ARGUMENTS) // 3
    for split, batch in parts(task).items():
        for twin in (False, True):
            for text in texts(code, batch, twin=twin):
                names = {name for found in signature_and_documented(text) for name in found}
                assert names <= kept if split == "test" else not names & kept
    assert len(task.options["held_out_templates"]) == 2
    shapes = {split: {len(signature_and_documented(t)[0]) for t in texts(code, b)} for split, b in parts(task).items()}
    assert shapes["test"] <= {5, 6}


def test_the_published_template_alone_will_do(tokenizer: Any) -> None:
    task = docstring(tokenizer, templates=TEMPLATES[:1], held_out_templates=[], **SIZES)
    assert task.test.clean.attention_mask is None
    for batch in parts(task).values():
        for text in texts(tokenizer, batch):
            signature, documented = signature_and_documented(text)
            assert signature.index(documented[0]) == 2 and len(signature) == 6


def test_a_seed_fixes_the_task(code: Any) -> None:
    first, again, other = (docstring(code, seed=seed, **SIZES) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    prompts = [text for batch in parts(first).values() for text in texts(code, batch)]
    assert len(set(prompts)) == len(prompts) == sum(SIZES.values())


def test_metrics_compare_with_the_best_other_argument_of_prompt_and_twin(code: Any) -> None:
    task = docstring(code, **SIZES)
    batch, names = task.test, set(one_token_arguments(code, ARGUMENTS).values())
    logits = torch.randn(len(batch), 1, len(code), generator=torch.Generator().manual_seed(0))
    logits[::2].scatter_(2, batch.answers[::2, None], 9.0)
    margins = task.metrics["argument_margin"](logits, batch, logits)
    rights = task.metrics["argument_accuracy"](logits, batch, logits)
    for row in range(len(batch)):
        answer = int(batch.answers[row])
        others = (names & {*batch.clean.ids[row].tolist(), *batch.corrupt.ids[row].tolist()}) - {answer}
        assert len(others) in (9, 10)
        margin = float(logits[row, 0, answer]) - max(float(logits[row, 0, other]) for other in others)
        assert float(margins[row]) == pytest.approx(margin, abs=1e-6)
        assert float(rights[row]) == (margin > 0)
    assert 0 < float(rights.mean()) < 1


def test_names_that_are_not_in_the_example_do_not_count(code: Any) -> None:
    task = docstring(code, **SIZES)
    batch = task.test.rows(torch.tensor([0]))
    logits = torch.zeros(1, 1, len(code))
    logits[0, 0, batch.answers[0]] = 2.0
    logits[0, 0, batch.foils[0]] = 0.5
    strangers = {*one_token_arguments(code, ARGUMENTS).values()} - {
        *batch.clean.ids[0].tolist(),
        *batch.corrupt.ids[0].tolist(),
    }
    logits[0, 0, sorted(strangers)] = 9.0
    assert argument_metrics(one_token_arguments(code, ARGUMENTS).values())["argument_margin"](
        logits, batch, logits
    ).tolist() == [1.5]


def test_a_circuit_is_measured_by_the_tasks_own_metrics(code: Any) -> None:
    import transformers

    config = transformers.GPT2Config(vocab_size=len(code), n_embd=16, n_layer=1, n_head=2, n_positions=80)
    model = tp.from_huggingface(transformers.GPT2LMHeadModel(config), device="cpu", tokenizer=code)
    task = docstring(model, train=4, validation=2, test=4)
    figures = str(tp.evaluate(model, tp.Circuit.from_edges(model, ["input->logits"]), task))
    assert "argument_margin" in figures and "argument_accuracy" in figures


def test_tokenizers_that_split_the_names_are_refused(stories: Any) -> None:
    with pytest.raises(ValueError, match=r"Docstrings need 33 argument names that are one token each but .* names="):
        docstring(stories)


def test_unknown_words_are_no_names(testbed: Any) -> None:
    """The testbed's tokenizer makes one unknown token of every word that it has not seen."""
    with pytest.raises(ValueError, match="Docstrings need 33 argument names"):
        docstring(testbed)


def test_templates_need_the_documented_arguments(code: Any) -> None:
    with pytest.raises(ValueError, match="A template needs the slots"):
        docstring(code, templates=["def {function}({A}, {B}, {C}): {a}"])
