"""Boolean expressions: their values, their twins, their splits, and answers that are generated."""

from __future__ import annotations

import dataclasses
from collections import Counter
from random import Random
from typing import Any

import pytest
import torch
from hooked import NEEDS_HOOKED_TRANSFORMER
from styles import fresh
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tlprune.circuit import Circuit
from tlprune.evaluation.greedy import greedy_answers
from tlprune.masking.ablation import Resample, Zero
from tlprune.masking.masked import Masked
from tlprune.masking.sites import edges
from tlprune.task import Batch, Task, Tokens
from tlprune.tasks import TASKS, boolean_expressions
from tlprune.tasks.expressions import OPPOSITES, depth, draw, exchanges, literal_count, value

WORDS = ["?", "Q", ":", "A", "is", "=", "True", "False", "and", "or", "not", "(", ")", "Answer"]
SIZES = {"train": 32, "validation": 16, "test": 24}
SHORT = "{expression} ="


def words_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words."""
    known = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, "?"))
    known.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=known, unk_token="?")


def pieces_tokenizer() -> PreTrainedTokenizerFast:
    """Words cut into pieces of at most two letters: True has two tokens and False three, ``and`` and ``or`` two."""
    pieces = ["Tr", "ue", "Fa", "ls", "e", "an", "n", "d", "o", "r", "t", "(", ")", "="]
    vocabulary = {"?": 0} | {piece: 1 + number for number, piece in enumerate(pieces)}
    vocabulary |= {f"##{piece}": 1 + len(pieces) + number for number, piece in enumerate(pieces)}
    known = Tokenizer(models.WordPiece(vocabulary, unk_token="?"))
    known.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=known, unk_token="?")


def splits(task: Task) -> dict[str, Batch]:
    return {"train": task.discovery.train(), "validation": task.discovery.validation(), "test": task.test}


def prompts(tokenizer: Any, batch: Batch, *, twin: bool = False) -> list[list[str]]:
    """The words of the prompts of a whole-word tokenizer."""
    ids = (batch.corrupt if twin else batch.clean).ids
    ends = batch.positions[:, 0] + 1
    return [tokenizer.convert_ids_to_tokens(row[:end].tolist()) for row, end in zip(ids, ends, strict=True)]


def test_values_are_those_of_python() -> None:
    rng = Random(0)
    for _ in range(2000):
        words = draw(rng, rng.randrange(2, 7))
        assert value(words) is eval(" ".join(words))
    assert value(["not", "not", "False", "or", "True", "and", "False"]) is False


@pytest.mark.parametrize("text", ["", "and", "True and", "( True", "True )", "True False", "not", "true", "( )"])
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="needs literals"):
        value(text.split())


def test_drawn_expressions_have_the_literals_asked_for_and_no_deeper_groups_than_they_can_hold() -> None:
    rng = Random(1)
    for count in (2, 3, 5):
        drawn = [draw(rng, count) for _ in range(300)]
        assert {literal_count(words) for words in drawn} == {count}
        assert {depth(words) for words in drawn} == set(range(count - 1))


def test_exchanges_are_all_single_opposites_that_turn_the_value_over() -> None:
    rng = Random(2)
    for _ in range(200):
        words = draw(rng, 4)
        expected = []
        for place, word in enumerate(words):
            other = (*words[:place], OPPOSITES.get(word, word), *words[place + 1 :])
            if eval(" ".join(other)) != eval(" ".join(words)):
                expected.append((place, other))
        assert list(exchanges(words)) == expected


@pytest.mark.parametrize("name", ["boolean-few-shot", "boolean-instruction"])
def test_twins_exchange_one_word_of_the_last_expression_and_the_answer(name: str) -> None:
    tokenizer = words_tokenizer()
    task = TASKS[name](tokenizer, template=SHORT, **SIZES)
    assert task.name == name
    for batch in splits(task).values():
        true = tokenizer.convert_tokens_to_ids("True")
        for clean, twin, answer, foil, spans in zip(
            prompts(tokenizer, batch), prompts(tokenizer, batch, twin=True), batch.answers[:, 0], batch.foils[:, 0],
            batch.spans, strict=True,
        ):  # fmt: skip
            last = len(clean) - 2 - clean[-2::-1].index("=") if "=" in clean[:-1] else -1
            begin = last + 2 if last >= 0 else 0  # behind the last solved example and its answer
            (place,) = [at for at, (one, other) in enumerate(zip(clean, twin, strict=True)) if one != other]
            assert place >= begin
            assert twin[place] == OPPOSITES[clean[place]]
            assert eval(" ".join(clean[begin:-1])) is bool(answer == true)
            assert eval(" ".join(twin[begin:-1])) is bool(foil == true) is not bool(answer == true)
            assert [at for at, number in enumerate(spans.tolist()) if number == 0] == [place]
            assert spans.tolist().index(1) == len(clean) - 1


def test_kinds_and_answers_are_equally_many_up_to_one() -> None:
    tokenizer = words_tokenizer()
    task = boolean_expressions(tokenizer, "instruction", template=SHORT, train=40, validation=16, test=37)
    for batch in splits(task).values():
        kinds = Counter(zip(batch.labels.tolist(), batch.answers[:, 0].tolist(), strict=True))
        assert len(kinds) == 2 * len(task.label_names) == 16
        assert max(kinds.values()) - min(kinds.values()) <= 1
        for words, label in zip(prompts(tokenizer, batch), batch.labels.tolist(), strict=True):
            assert task.label_names[label] == f"{literal_count(words)} literals, depth {depth(words)}"


def test_no_split_has_an_expression_of_another_and_none_is_solved() -> None:
    tokenizer = words_tokenizer()
    task = boolean_expressions(tokenizer, template=SHORT, shots=3, literals=(3,), depths=(0,), **SIZES)
    solved = {tuple(line.split(" =")[0].split()) for line in task.options["solved"].split("\n\n") if line}
    asked = [tuple(line) for batch in splits(task).values() for line in prompts(tokenizer, batch)]
    assert len(set(asked)) == sum(SIZES.values())
    seen = [solved]
    for batch in splits(task).values():
        both = prompts(tokenizer, batch) + prompts(tokenizer, batch, twin=True)
        preface = len(task.options["solved"].split())
        seen.append({tuple(line[preface:-1]) for line in both})
    assert len(solved) == 3
    assert sum(map(len, seen)) == len(set.union(*seen))


def test_solved_examples_are_right_in_turn_and_the_same_in_all_prompts() -> None:
    tokenizer = words_tokenizer()
    task = boolean_expressions(tokenizer, template=SHORT, shots=5, **SIZES)
    lines = [line.split(" = ") for line in task.options["solved"].split("\n\n") if line]
    assert [answer for _, answer in lines] == ["True", "False", "True", "False", "True"]
    assert all(str(eval(text)) == answer for text, answer in lines)
    preface = task.options["solved"].split()
    for batch in splits(task).values():
        for line in prompts(tokenizer, batch) + prompts(tokenizer, batch, twin=True):
            assert line[: len(preface)] == preface


def test_a_seed_fixes_the_task_and_another_changes_it() -> None:
    first, again, other = (boolean_expressions(words_tokenizer(), seed=seed, **SIZES) for seed in (3, 3, 4))
    assert first.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize("name", ["gpt2", "roberta"])
@pytest.mark.parametrize("wording", ["few-shot", "instruction"])
def test_real_tokenizers_have_one_token_for_each_answer(request: Any, name: str, wording: Any) -> None:
    tokenizer = request.getfixturevalue(name)
    task = boolean_expressions(tokenizer, wording, **SIZES)
    texts = {}
    for split, batch in splits(task).items():
        assert {tokenizer.decode(row) for row in batch.answers.tolist()} == {" True", " False"}
        assert ((batch.clean.ids != batch.corrupt.ids).sum(1) == 1).all()
        texts[split] = {tokenizer.decode(row) for row in batch.clean.ids}
        if batch.clean.attention_mask is not None:
            assert torch.equal(batch.clean.attention_mask, batch.corrupt.attention_mask)
    assert len(set.union(*texts.values())) == sum(SIZES.values())


def test_a_tokenizer_without_equally_long_opposites_or_the_words_is_refused(stories: Any, testbed: Any) -> None:
    with pytest.raises(ValueError, match="a twin with as many tokens"):
        boolean_expressions(stories, "instruction", **SIZES)
    with pytest.raises(ValueError, match="tells True False and or not"):
        boolean_expressions(testbed, "instruction", **SIZES)


def test_too_few_expressions_and_impossible_kinds_are_refused() -> None:
    tokenizer = words_tokenizer()
    with pytest.raises(ValueError, match="no further"):
        boolean_expressions(tokenizer, "instruction", template=SHORT, literals=(2,), depths=(0,), train=200)
    with pytest.raises(ValueError, match="depths up to n - 2"):
        boolean_expressions(tokenizer, literals=(3,), depths=(2,))
    with pytest.raises(ValueError, match="template needs the slots"):
        boolean_expressions(tokenizer, template="{words} =")


def pieces_task() -> Task:
    return boolean_expressions(pieces_tokenizer(), "instruction", template=SHORT, literals=(3,), **SIZES)


def test_answers_of_several_tokens_are_read_after_the_true_ones_and_filled_up() -> None:
    tokenizer, batch = pieces_tokenizer(), pieces_task().test
    spelt = {tuple(tokenizer.convert_ids_to_tokens([max(0, token) for token in row])) for row in batch.answers.tolist()}
    assert spelt == {("Tr", "##ue", "?"), ("Fa", "##ls", "##e")}
    for row in range(len(batch)):
        answer = [token for token in batch.answers[row].tolist() if token >= 0]
        first = int(batch.positions[row, 0])
        assert batch.positions[row].tolist() == [first + min(step, len(answer) - 1) for step in range(3)]
        for ids in (batch.clean.ids[row], batch.corrupt.ids[row]):
            assert ids[first + 1 : first + len(answer)].tolist() == answer[:-1]
        foil = [token for token in batch.foils[row].tolist() if token >= 0]
        assert len(foil) == len(answer)
        assert foil[0] != answer[0]
    assert (batch.spans[torch.arange(len(batch)), batch.positions[:, 0]] == 1).all()


@NEEDS_HOOKED_TRANSFORMER
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("ablation", [Resample(), Zero()])
def test_generated_answers_are_those_of_a_loop_over_single_prompts(side: str, ablation: Any) -> None:
    model = fresh("gpt2", n_ctx=64, d_vocab=29)
    batch = moved(pieces_task().test.rows(torch.arange(10)), side)
    sites = edges(model)
    kept = torch.rand(len(sites), generator=torch.Generator().manual_seed(0)) < 0.7
    circuit = Circuit(sites, kept)
    found = greedy_answers(model, circuit, batch, ablation=ablation, batch_size=4)
    for row in range(len(batch)):
        for name, mask in (("circuit", kept), ("full", torch.ones_like(kept))):
            expected = by_hand(model, Circuit(sites, mask), batch, row, ablation)
            assert getattr(found, name)[row].tolist() == expected + [-100] * (3 - len(expected))
    assert torch.equal(found.exact, (found.circuit == batch.answers).all(1))


def by_hand(model: Any, circuit: Circuit, batch: Batch, row: int, ablation: Any) -> list[int]:
    """One token after the other, each from a run of an unpadded prompt and its unpadded twin."""
    end, length = int(batch.positions[row, 0]) + 1, int((batch.answers[row] >= 0).sum())
    mask = batch.clean.attention_mask
    begin = 0 if mask is None else int(mask[row].argmax())
    clean, twin = (tokens.ids[row, begin:end].tolist() for tokens in (batch.clean, batch.corrupt))
    said: list[int] = []
    for _ in range(length):
        ids = [torch.tensor([prompt + said]) for prompt in (clean, twin)]
        logits = Masked(model, circuit, ablation)(*ids)
        said.append(int(logits[0, -1].argmax()))
    return said


def moved(batch: Batch, side: str) -> Batch:
    """The same examples padded on a side."""
    if side == "right":
        return batch
    assert batch.clean.attention_mask is not None
    shifts = batch.clean.ids.shape[1] - batch.clean.lengths

    def turned(values: torch.Tensor) -> torch.Tensor:
        return torch.stack([row.roll(int(shift)) for row, shift in zip(values, shifts, strict=True)])

    clean, twin = (Tokens(turned(one.ids), turned(one.attention_mask)) for one in (batch.clean, batch.corrupt))
    return dataclasses.replace(
        batch, clean=clean, corrupt=twin, positions=batch.positions + shifts[:, None], spans=turned(batch.spans)
    )


@NEEDS_HOOKED_TRANSFORMER
def test_a_generated_token_is_what_the_next_one_follows() -> None:
    """A model that answers wrongly at first would be right in the second token if it were told the first."""
    model = fresh("gpt2", n_ctx=64, d_vocab=29)
    batch = pieces_task().test
    found = greedy_answers(model, Circuit(edges(model), torch.ones(len(edges(model)), dtype=torch.bool)), batch)
    assert torch.equal(found.circuit, found.full)
    assert found.agrees.all()
    told = Masked(model, Circuit(edges(model), torch.ones(len(edges(model)), dtype=torch.bool)))(batch).argmax(-1)
    assert torch.equal(found.circuit[:, 0], told[:, 0])
    assert (found.circuit[:, 1] != told[:, 1]).any()


@NEEDS_HOOKED_TRANSFORMER
def test_answers_that_do_not_follow_one_another_are_refused() -> None:
    model, batch = fresh("gpt2", n_ctx=64, d_vocab=29), pieces_task().test
    apart = dataclasses.replace(batch, positions=batch.positions - torch.tensor([[2, 1, 0]]))
    with pytest.raises(ValueError, match="follow one another"):
        greedy_answers(model, Circuit(edges(model), torch.ones(len(edges(model)), dtype=torch.bool)), apart)
