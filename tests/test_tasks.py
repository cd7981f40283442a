from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GPT2TokenizerFast, LlamaForCausalLM

from tlprune.task import Batch, Stream, Task, Tokenisation, Tokens
from tlprune.tasks import TASKS, Pair, from_pairs, gendered_pronoun, greater_than, induction, ioi, ioi_t1
from tlprune.tasks.gendered_pronoun import NAMES, STORY_NAMES, STORY_TEMPLATES
from tlprune.tasks.greater_than import valid_answers

TEXT_TASKS = ["ioi", "gendered-pronoun", "greater-than", "induction"]
SIZES = {"train": 24, "validation": 12, "test": 16}
HE = Pair("I know that John is kind, isn't", "I know that Mary is kind, isn't", " he", " she")
SHE = Pair("So Mary is happy, isn't", "So John is happy, isn't", " she", " he")


def splits(task: Task) -> tuple[Batch, Batch, Batch]:
    return task.discovery.train(), task.discovery.validation(), task.test


def prompts(tokenizer: Any, batch: Batch, *, twin: bool = False) -> list[str]:
    ids = batch.corrupt.ids if twin else batch.clean.ids
    return tokenizer.batch_decode([row[: last + 1] for row, last in zip(ids, batch.positions[:, 0], strict=True)])


def repeat(pairs: list[Pair]) -> dict[str, list[Pair]]:
    return {"train": pairs, "validation": pairs, "test": pairs}


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_a_seed_fixes_a_task_and_another_seed_changes_it(testbed, name):
    build: Callable[..., Task] = TASKS[name]
    first, again, other = (build(testbed, seed=seed, **SIZES) for seed in (3, 3, 4))
    assert first.name == name
    assert first.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_splits_have_the_sizes_asked_for_and_share_no_prompt(testbed, name):
    task = TASKS[name](testbed, **SIZES)
    assert [len(batch) for batch in splits(task)] == list(SIZES.values())
    texts = [text for batch in splits(task) for text in prompts(testbed, batch)]
    assert len(set(texts)) == sum(SIZES.values())
    assert all("<unk>" not in text for text in texts)


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_a_twin_differs_and_its_padding_does_not(testbed, name):
    for batch in splits(TASKS[name](testbed, **SIZES)):
        assert batch.clean.ids.dtype == batch.answers.dtype == batch.positions.dtype == torch.int64
        assert (batch.clean.ids != batch.corrupt.ids).any(dim=1).all()
        assert (batch.answers != batch.foils).all()
        if batch.clean.attention_mask is not None:
            assert torch.equal(batch.clean.attention_mask, batch.corrupt.attention_mask)


def test_the_index_of_an_example_is_its_row(testbed):
    task = induction(testbed, **SIZES)
    assert task.test.index.tolist() == list(range(SIZES["test"]))


def test_ioi_holds_out_templates_and_names(testbed):
    task = ioi(testbed, **SIZES)
    kept = testbed.convert_tokens_to_ids(task.options["held_out_names"])
    for batch in (task.discovery.train(), task.discovery.validation()):
        assert not torch.isin(batch.clean.ids, torch.tensor(kept)).any()
        assert not torch.isin(batch.corrupt.ids, torch.tensor(kept)).any()
    assert torch.isin(task.test.answers, torch.tensor(kept)).all()
    assert len(task.options["held_out_templates"]) == 6


def test_ioi_repeats_the_foil_and_its_twin_repeats_no_name(testbed):
    batch = ioi(testbed, **SIZES).test
    names = torch.tensor(testbed.convert_tokens_to_ids([*NAMES["he"], *NAMES["she"]]))
    for clean, corrupt, answer, foil in zip(
        batch.clean.ids, batch.corrupt.ids, batch.answers, batch.foils, strict=True
    ):
        assert (clean == answer).sum() == 1
        assert (clean == foil).sum() == 2
        replaced = corrupt[torch.isin(corrupt, names)].tolist()
        assert len(replaced) == len(set(replaced)) == 3
        assert not {answer.item(), foil.item()} & set(replaced)


def test_ioi_has_both_orders(testbed):
    task = ioi(testbed, templates=["{A} met {B} and {S} wrote to", "{A} saw {B} and {S} sang to"], **SIZES)
    first = task.discovery.train().clean.ids[:, 1] == task.discovery.train().answers[:, 0]
    assert first.any()
    assert not first.all()


SINGLE = "{A} met {B} and {S} wrote to"


@pytest.mark.parametrize(("order", "firsts"), [("ABBA", {True}), ("BABA", {False}), ("both", {True, False})])
def test_ioi_t1_has_one_template_in_the_orders_asked_for(testbed, order, firsts):
    task = ioi_t1(testbed, order=order, template=SINGLE, **SIZES)
    for batch in splits(task):
        for text, twin, answer, foil in zip(
            prompts(testbed, batch), prompts(testbed, batch, twin=True),
            testbed.batch_decode(batch.answers), testbed.batch_decode(batch.foils), strict=True,
        ):  # fmt: skip
            _, first, met, second, also, again, *rest = text.split()
            assert [met, also, *rest] == ["met", "and", "wrote", "to"]
            assert (first == answer) in firsts
            assert {first, second} == {answer, foil}
            assert again == foil
            others = twin.split()
            assert len({others[1], others[3], others[5], first, second}) == 5
    seen = {text.split()[1] == answer for text, answer in zip(
        prompts(testbed, task.test), testbed.batch_decode(task.test.answers), strict=True
    )}  # fmt: skip
    assert seen == firsts


def test_ioi_t1_holds_out_names_alone_and_takes_its_own_template_under_gpt2(gpt2):
    task = ioi_t1(gpt2, **SIZES)
    kept = set(task.options["held_out_names"])
    for batch in (task.discovery.train(), task.discovery.validation()):
        assert not kept & set(gpt2.decode(batch.clean.ids.flatten()).replace(",", "").split())
        assert not kept & set(gpt2.decode(batch.corrupt.ids.flatten()).replace(",", "").split())
    for text, answer in zip(prompts(gpt2, task.test), gpt2.batch_decode(task.test.answers), strict=True):
        assert re.fullmatch(r"<\|endoftext\|>Then, \w+ and \w+ went to the [\w ]+\. \w+ gave a [\w ]+ to", text)
        assert answer.strip() in kept


def test_gendered_pronoun_holds_out_templates_and_names(testbed):
    task = gendered_pronoun(testbed, **SIZES)
    kept = set(task.options["held_out_names"])
    train = " ".join(prompts(testbed, task.discovery.train()) + prompts(testbed, task.discovery.train(), twin=True))
    assert not kept & set(train.split())
    assert all(kept & set(text.split()) for text in prompts(testbed, task.test))
    assert all(kept & set(text.split()) for text in prompts(testbed, task.test, twin=True))


def test_gendered_pronoun_takes_folds(testbed):
    fold = {"held_out_templates": ["So {name} is kind, isn't"], "held_out_names": ["John", "Paul", "Mary", "Anna"]}
    templates = [*fold["held_out_templates"], "Although {name} is kind,", "{name} is tired because"]
    task = gendered_pronoun(testbed, templates=templates, train=30, validation=10, test=4, **fold)
    assert sorted(text.split()[2] for text in prompts(testbed, task.test)) == sorted(fold["held_out_names"])
    assert task.options["held_out_templates"] == fold["held_out_templates"]


def test_an_empty_fold_shares_everything(testbed):
    names = {"he": ["John", "Paul"], "she": ["Mary", "Anna"]}
    templates = ["{name} is kind,", "So {name} is", "If {name} is"]
    sizes = {"train": 6, "validation": 3, "test": 3}
    task = gendered_pronoun(
        testbed, templates=templates, names=names, held_out_templates=[], held_out_names=[], **sizes
    )
    assert len({text for batch in splits(task) for text in prompts(testbed, batch)}) == 12


@pytest.mark.parametrize("held_out", [["Nobody"], ["John", "Paul", "Mary", "Anna"]])
def test_a_fold_must_be_some_of_the_names(testbed, held_out):
    names = {"he": ["John", "Paul"], "she": ["Mary", "Anna"]}
    with pytest.raises(ValueError, match="Held-out items must be some of the 4"):
        gendered_pronoun(testbed, names=names, held_out_names=held_out)


def test_names_without_a_partner_are_refused(testbed):
    with pytest.raises(ValueError, match="partner of the other gender"):
        gendered_pronoun(testbed, names={"he": ["John"], "she": []})
    with pytest.raises(ValueError, match="'he' and 'she'"):
        gendered_pronoun(testbed, names={"he": ["John"]})


def test_more_prompts_than_there_are_is_an_error(testbed):
    with pytest.raises(ValueError, match="more distinct prompts were asked for"):
        gendered_pronoun(testbed, templates=["So {name}", "If {name}"], train=1000)


def test_a_template_needs_its_slots(testbed):
    with pytest.raises(ValueError, match="A template needs the slots"):
        ioi(testbed, templates=["{A} met {B} and sang to"])
    with pytest.raises(ValueError, match="'colour'"):
        gendered_pronoun(testbed, templates=["The {colour} hat that {name} wore"])


def test_greater_than_has_right_answers_and_wrong_foils(testbed):
    batch = greater_than(testbed, **SIZES).test
    answers, foils = (testbed.convert_ids_to_tokens(ids[:, 0].tolist()) for ids in (batch.answers, batch.foils))
    starts = [text.split()[text.split().index(text.split()[-1]) + 1] for text in prompts(testbed, batch)]
    assert all(foil < start < answer for foil, start, answer in zip(foils, starts, answers, strict=True))
    assert all(" 01 " in text for text in prompts(testbed, batch, twin=True))
    assert valid_answers("from 1732 to 17") == tuple(str(number) for number in range(33, 100))


@pytest.mark.parametrize("tokenizer", ["testbed", "gpt2"])
def test_greater_than_labels_are_the_first_years_last_digits(request, tokenizer):
    tokenizer = request.getfixturevalue(tokenizer)
    task = greater_than(tokenizer, **SIZES)
    numbers = task.options["number_tokens"]
    assert list(numbers) == [f"{number:02d}" for number in range(100)]
    assert tokenizer.batch_decode([[token] for token in numbers.values()]) == list(numbers)
    assert task.metrics["year_ranking"].tokens == {int(number): token for number, token in numbers.items()}
    for batch in splits(task):
        for text, twin, label, answer, foil in zip(
            prompts(tokenizer, batch), prompts(tokenizer, batch, twin=True), batch.labels.tolist(),
            tokenizer.batch_decode(batch.answers), tokenizer.batch_decode(batch.foils), strict=True,
        ):  # fmt: skip
            first, second = (re.search(r"(\d\d) ?(\d\d)", prompt) for prompt in (text, twin))
            assert (first[1], first[2], second[2]) == (second[1], f"{label:02d}", "01")
            assert int(foil) < label < int(answer)


def test_induction_repeats_in_the_prompt_and_not_in_its_twin(testbed):
    batch = induction(testbed, **SIZES).test
    for text, twin, answer in zip(
        prompts(testbed, batch), prompts(testbed, batch, twin=True), batch.answers[:, 0], strict=True
    ):
        words, others = text.split(), twin.split()
        assert words[words.index(words[-1]) + 1] == testbed.convert_ids_to_tokens(answer.item())
        assert len(set(others)) == len(others) == len(words)


def test_unequal_prompts_are_an_error_that_names_the_pair(testbed):
    pair = Pair("John is kind", "John is very kind", " he", " she")
    with pytest.raises(ValueError, match=r"'John is kind' has 3 and 'John is very kind' has 4"):
        from_pairs("pairs", testbed, **repeat([pair]))


def test_an_answer_of_two_tokens_is_an_error_that_names_the_pair(testbed):
    pair = Pair("John is", "Mary is", " kind brave", " she")
    with pytest.raises(ValueError, match=r"' kind brave' turns \['John', 'is'\] into .*'John is'"):
        from_pairs("pairs", testbed, **repeat([pair]))


def test_a_foil_must_differ_from_the_answer(testbed):
    with pytest.raises(ValueError, match="foil that differs"):
        from_pairs("pairs", testbed, **repeat([Pair("John is", "Mary is", " he", " he")]))


def test_an_empty_split_is_an_error(testbed):
    with pytest.raises(ValueError, match="at least one pair in each split"):
        from_pairs("pairs", testbed, train=[HE], validation=[], test=[HE])


def test_a_model_without_tokenizer_is_an_error():
    with pytest.raises(ValueError, match="Linear carries none"):
        from_pairs("pairs", torch.nn.Linear(1, 1), **repeat([HE]))


@pytest.mark.parametrize(("asked", "first"), [(None, "<bos>"), (True, "<bos>"), (False, "I")])
def test_one_beginning_token_or_none(testbed, asked, first):
    task = from_pairs("pairs", testbed, prepend_bos=asked, **repeat([HE]))
    assert testbed.convert_ids_to_tokens(task.test.clean.ids[0].tolist())[0] == first
    assert (task.test.clean.ids == testbed.bos_token_id).sum() == (first == "<bos>")
    assert task.tokenisation.prepend_bos == (first == "<bos>")


def test_a_tokenizer_without_a_beginning_token_gets_none(data_dir):
    tokenizer = GPT2TokenizerFast.from_pretrained(data_dir / "tokenizers" / "gpt2")
    tokenizer.bos_token = None
    assert not from_pairs("pairs", tokenizer, **repeat([HE])).tokenisation.prepend_bos
    with pytest.raises(ValueError, match="prepend_bos=True needs"):
        from_pairs("pairs", tokenizer, prepend_bos=True, **repeat([HE]))


@pytest.mark.parametrize("side", ["right", "left"])
def test_mixed_lengths_are_padded_and_masked(testbed, side):
    batch = from_pairs("pairs", testbed, padding_side=side, **repeat([HE, SHE])).test
    mask = torch.ones_like(batch.clean.ids)
    mask[1, slice(8, None) if side == "right" else slice(2)] = 0
    assert torch.equal(batch.clean.attention_mask, mask)
    assert torch.equal(batch.clean.ids == testbed.pad_token_id, mask == 0)
    assert batch.positions.tolist() == ([[9], [7]] if side == "right" else [[9], [9]])
    at_position = batch.clean.ids.gather(1, batch.positions)[:, 0].tolist()
    assert testbed.convert_ids_to_tokens(at_position) == ["'t", "'t"]


def test_equal_lengths_need_no_mask(testbed):
    batch = from_pairs("pairs", testbed, **repeat([HE, HE])).test
    assert batch.clean.attention_mask is None
    assert batch.corrupt.attention_mask is None


@pytest.mark.parametrize("name", [*TEXT_TASKS, "docstring"])
def test_every_task_builds_for_the_tokenizer_of_gpt2(gpt2, name):
    task = TASKS[name](gpt2, **SIZES)
    for batch in splits(task):
        assert (batch.clean.ids[:, 0] == gpt2.bos_token_id).all()
        assert (batch.clean.ids[:, 1] != gpt2.bos_token_id).all()
    assert gpt2.decode(task.test.answers[0]).startswith(" ") == (name != "greater-than")


def test_stories_answers_are_tokenised_in_context(stories):
    alone = stories(" he", add_special_tokens=False)["input_ids"]
    task = from_pairs("pairs", stories, **repeat([Pair("Tim ran and", "Lily ran and", " he", " she")]))
    assert len(alone) == 2
    assert stories.convert_ids_to_tokens(task.test.answers[:, 0].tolist()) == ["▁he"]
    assert task.test.clean.ids[0, :2].tolist() == [stories.bos_token_id, stories.convert_tokens_to_ids("▁Tim")]


@torch.no_grad()
def test_stories_names_and_templates_make_126_prompts_that_the_model_mostly_completes(stories, data_dir):
    task = gendered_pronoun(
        stories, templates=STORY_TEMPLATES, names=STORY_NAMES, held_out_templates=[], held_out_names=[],
        train=80, validation=23, test=23,
    )  # fmt: skip
    assert len({text for batch in splits(task) for text in prompts(stories, batch)}) == 126
    model = LlamaForCausalLM.from_pretrained(data_dir / "models" / "stories260K").eval()
    differences = torch.cat([logit_differences(model, batch) for batch in splits(task)])
    # Measured: 97.6 % right, mean difference 2.11.
    assert (differences > 0).float().mean() > 0.95
    assert differences.mean() > 1.8


def logit_differences(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    logits = model(batch.clean.ids, attention_mask=batch.clean.attention_mask).logits
    read = logits[torch.arange(len(batch)), batch.positions[:, 0]]
    return (read.gather(1, batch.answers) - read.gather(1, batch.foils))[:, 0]


def test_stories_names_and_templates_can_be_held_out(stories):
    sizes = {"train": 40, "validation": 10, "test": 8}
    task = gendered_pronoun(stories, templates=STORY_TEMPLATES, names=STORY_NAMES, **sizes)
    assert len(task.options["held_out_names"]) >= 4
    default = gendered_pronoun(stories, **SIZES)
    assert len(default.test) == SIZES["test"]


def test_tasks_say_why_a_tokenizer_does_not_suit(stories):
    with pytest.raises(ValueError, match="two and two digits"):
        greater_than(stories)
    with pytest.raises(ValueError, match="names that are one token each"):
        ioi(stories)
    with pytest.raises(ValueError, match="words that are one token each"):
        induction(stories, words=["hippopotamus"])


def test_token_types_follow_their_prompts_and_count_in_the_fingerprint():
    ids, types = torch.arange(8).view(4, 2), torch.tensor([[0, 1], [0, 0], [1, 1], [0, 1]])

    def task(token_types: torch.Tensor | None) -> Task:
        tokens, one = Tokens(ids, torch.ones_like(ids), token_types), torch.ones(4, 1, dtype=torch.long)
        batch = Batch(torch.arange(4), tokens, tokens, one, one, one + 1)
        return Task("pairs", {"main": Stream(batch, batch, batch)}, Tokenisation(prepend_bos=False))

    chosen = task(types).test.rows(torch.tensor([3, 1])).clean
    assert chosen.token_types is not None and chosen.token_types.tolist() == [[0, 1], [0, 0]]
    assert chosen.ids.tolist() == [[6, 7], [2, 3]]
    assert len({task(None).fingerprint, task(types).fingerprint, task(1 - types).fingerprint}) == 3


def test_a_task_is_shown_in_a_line(testbed: Any) -> None:
    task = ioi(testbed, **SIZES)
    assert repr(task) == "Task('ioi', main: 24 train, main: 12 validation, main: 16 test)"
    assert re.fullmatch(r"Batch\(16 prompts of \d+ tokens\)", repr(task.test))
    assert re.fullmatch(r"Tokens\(16 prompts of \d+ tokens\)", repr(task.test.clean))
