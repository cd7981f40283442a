"""The invented world: what is in it, that its model knows it, and what a method may see of it."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter

import pytest
import torch

import tlprune as tp
from tlprune.models.world import DIRECTORY
from tlprune.tasks.knowledge.facts import Worded, worded
from tlprune.tasks.knowledge.grammar import SENTENCES, WORDS, plain_text, plain_text_entropy
from tlprune.tasks.knowledge.invented import invented_names
from tlprune.tasks.knowledge.sentences import tail_log_probs, tail_ranks
from tlprune.tasks.knowledge.wording import chosen_wordings
from tlprune.tasks.knowledge.world_facts import HOME, REGIONS, WORLD_TEMPLATES, world_facts, world_target

WEIGHTS = "a3535f103971a3ee9179f48136e929f92e85b927f9fa0b41427151d77b1e1a2d"


@pytest.fixture(scope="module")
def model():
    return tp.load("world", device="cpu")


@pytest.fixture(scope="module")
def task(model):
    return tp.tasks.world(model, text_blocks=40)


# ---- the model


def test_the_weights_are_the_committed_ones_and_small():
    assert hashlib.sha256((DIRECTORY / "model.safetensors").read_bytes()).hexdigest() == WEIGHTS
    assert sum(file.stat().st_size for file in DIRECTORY.iterdir()) < 3_000_000


def test_the_model_knows_every_fact_in_every_template(model):
    every = [
        Worded(one.fact, one.train, test={**one.train, **one.validation, **one.test})
        for one in worded(world_facts(), WORLD_TEMPLATES)
    ]
    sentences = [sentence for one in chosen_wordings(model.tokenizer, every) for sentence in one.test]
    assert len(sentences) == 6 * 410
    assert set(tail_ranks(model, sentences)) == {1}
    by_template: dict[str, list[float]] = {}
    for sentence, nats in zip(sentences, tail_log_probs(model, sentences).neg().tolist(), strict=True):
        by_template.setdefault(sentence.template, []).append(nats)
    assert len(by_template) == 54
    assert max(math.exp(sum(nats) / len(nats)) for nats in by_template.values()) < 1.01


def test_the_model_speaks_the_grammar(model, task):
    """Whole sentences cost the grammar's entropy at least; a block that begins within a sentence costs a bit more."""
    batch = task.streams["text"].test
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(model(part.clean.ids)[:, :-1].flatten(0, 1), part.answers.flatten())
            for part in batch.rows(torch.arange(40)).split(20)
        ]
    tokens = len(model.tokenizer(" ".join(plain_text(4000, seed=1)), add_special_tokens=False)["input_ids"])
    least = math.exp(plain_text_entropy() * 4000 / tokens)
    perplexity = math.exp(sum(losses).item() / 2)
    assert 0.97 * least < perplexity < 1.2 * least


# ---- the world


def test_no_tail_is_more_frequent_than_another():
    for relation in WORLD_TEMPLATES:
        counts = Counter(fact.tail for fact in world_facts() if fact.relation == relation)
        assert max(counts.values()) == min(counts.values())
    assert len({(fact.head, fact.relation) for fact in world_facts()}) == 410


@pytest.mark.parametrize("region", REGIONS)
def test_neither_head_nor_relation_nor_tail_alone_tells_a_target(region):
    target, control = world_target(region)
    towns = {fact.head for fact in world_facts() if (fact.relation, fact.tail) == ("lies in", region)}
    assert {fact.tail for fact in target} == towns
    assert len(target) == 20
    assert len(control) == 390
    assert not {*target} & {*control}
    assert sum(fact.relation == HOME for fact in control) == 40
    for fact in target:
        assert sum(other.head == fact.head for other in control) == 4
        assert any(other.tail == fact.tail and other.relation == "was born in" for other in control)


def test_a_relation_may_be_the_target_and_others_are_refused():
    target, control = world_target("works as")
    assert (len(target), len(control)) == (60, 350)
    with pytest.raises(ValueError, match=r"no group of facts 'Northmarc'.* Did you mean Northmark"):
        world_target("Northmarc")


def test_names_are_new_words():
    names = invented_names(50, seed=1)
    assert len({*names}) == 50
    assert not {*names} & {*invented_names(50, seed=1, taken=names)}
    assert names == invented_names(50, seed=1)


# ---- the task


def test_the_task_keeps_paraphrases_and_control_facts_apart(task):
    main = task.streams["main"]
    used = [{task.label_names[label] for label in batch.labels} for batch in (main.train, main.validation, main.test)]
    own = WORLD_TEMPLATES[HOME]
    assert used[0] <= {*own.train}
    assert used[1:] == [{*own.validation}, {*own.test}]
    control = task.streams["control"]
    assert [len(batch) for batch in (control.train, control.validation, control.test)] == [234, 78, 78 * 3]
    assert len(task.discovery.streams) == 3
    assert task.options["group"] == "Northmark"


def test_blocks_of_text_were_never_trained_on():
    """Short sentences come again, but no three in a row, of the five or so in a block."""
    assert not {*threes(plain_text(40_000, seed=0))} & {*threes(plain_text(4000, seed=1))}


def threes(texts):
    return list(zip(texts, texts[1:], texts[2:], strict=False))


def test_a_tokenizer_without_the_words_of_the_world_is_refused(testbed):
    with pytest.raises(ValueError, match="needs words that the tokenizer has"):
        tp.tasks.world(testbed)


# ---- plain text


def test_a_sentence_tells_its_template_and_its_words():
    """So that the entropy of the draws is the entropy of the text: brute force over the templates."""
    patterns = [re.compile(re.sub(r"\\\{(\w+)\\\}", any_word, re.escape(text))) for text in SENTENCES]
    for text in plain_text(300, seed=5):
        assert sum(bool(pattern.fullmatch(text)) for pattern in patterns) == 1


def any_word(slot):
    return f"(?:{'|'.join(WORDS[slot[1]])})"


def test_the_entropy_is_that_of_frequencies():
    """``-log p`` of a sentence is ``log`` of how many templates there are and how many sentences its own has."""
    sizes = [math.prod(len(WORDS[name]) for name in {*re.findall(r"\{(\w+)\}", text)}) for text in SENTENCES]
    by_hand = sum(math.log(len(SENTENCES) * size) for size in sizes) / len(sizes)
    assert plain_text_entropy() == pytest.approx(by_hand)


def test_a_word_that_comes_again_is_the_same():
    text = next(text for text in plain_text(200, seed=2) if "looked for the" in text)
    found = re.fullmatch(r"\w+ looked for the (\w+) everywhere , and at last she saw the (\w+) behind the \w+ \.", text)
    assert found is not None
    assert found[1] == found[2]
