"""Facts as prompts: which tokens, which sentence of several, and what is kept apart."""

from __future__ import annotations

import inspect
import math
import warnings
from random import Random

import pytest
import torch

import tlprune as tp
from tlprune.tasks import Fact, PlainText, Templates, Worded, invented_facts, knowledge, worded
from tlprune.tasks.knowledge.invented import TESTBED_TEMPLATES
from tlprune.tasks.knowledge.plain import text_stream
from tlprune.tasks.knowledge.sentences import Sentence, tail_log_probs, tail_ranks
from tlprune.tasks.knowledge.wording import chosen_wordings

TEXT = PlainText(["time year people way day man thing woman life child world hand part place case week"], block=5)
ANY_RANK = 10_000


@pytest.fixture(scope="module")
def model():
    return tp.load("testbed", device="cpu")


@pytest.fixture(scope="module")
def facts():
    return Random(0).sample(worded(invented_facts(seed=3), TESTBED_TEMPLATES), 256)


@pytest.fixture(scope="module")
def task(model, facts):
    return knowledge(model, facts[:12], facts[12:80], TEXT, known_rank=ANY_RANK)


def perplexity(model, text, tail):
    """Of the last word of a sentence, token by token."""
    ids = [model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert model.tokenizer.convert_ids_to_tokens(ids[-1]) == tail
    with torch.no_grad():
        probabilities = model(torch.tensor([ids]))[0, len(ids) - 2].double().softmax(dim=-1)
    return 1 / probabilities[ids[-1]].item()


# ---- tokens and positions


def test_a_prompt_has_its_tail_last_and_is_read_in_front_of_it(testbed):
    one = worded([Fact("Mary", "place", "garden")], TESTBED_TEMPLATES)
    others = worded([Fact(name, "object", "book") for name in ("Paul", "Anna", "James")], TESTBED_TEMPLATES)
    task = knowledge(testbed, one, others, TEXT)
    train = task.discovery.train()
    words = ["<bos>", "Mary", "lives", "near", "the", "garden"]
    assert testbed.convert_ids_to_tokens(train.clean.ids[0]) == words
    assert train.positions.tolist() == [[4]]
    assert train.answers.tolist() == [[testbed.convert_tokens_to_ids("garden")]]
    assert train.foils.tolist() == [[-100]]
    assert train.corrupt is train.clean
    assert task.tokenisation.prepend_bos
    bare = knowledge(testbed, one, others, TEXT, prepend_bos=False).discovery.train()
    assert testbed.convert_ids_to_tokens(bare.clean.ids[0]) == words[1:]
    assert bare.positions.tolist() == [[3]]


def test_answers_stand_behind_their_positions_in_every_stream(task):
    for name, stream in task.streams.items():
        for batch in (stream.train, stream.validation, stream.test):
            rows = torch.arange(len(batch))[:, None]
            assert torch.equal(batch.clean.ids[rows, batch.positions + 1], batch.answers), name
            if batch.clean.attention_mask is not None:
                assert torch.equal(batch.clean.lengths[:, None] - 2, batch.positions)


def test_templates_are_numbered_and_named(task, testbed):
    test = task.test
    for row in range(len(test)):
        template = task.label_names[test.labels[row]]
        head, relation, tail = task.options["target"][row]  # one test template each
        ids = [testbed.bos_token_id, *testbed(template.format(head=head, tail=tail))["input_ids"]]
        assert test.clean.ids[row, : len(ids)].tolist() == ids
        assert template in TESTBED_TEMPLATES[relation].test


def test_all_wordings_of_a_fact_are_trained_on_in_order(model, facts, task, testbed):
    both = knowledge(model, facts[:12], facts[12:80], TEXT, known_rank=ANY_RANK, wordings="all")
    train, best = both.discovery.train(), task.discovery.train()
    said = [
        [testbed.bos_token_id, *testbed(template.format(head=head, tail=tail))["input_ids"]]
        for head, relation, tail in both.options["target"]
        for template in TESTBED_TEMPLATES[relation].train
    ]
    assert [
        ids[: int(length)].tolist() for ids, length in zip(train.clean.ids, train.clean.lengths, strict=True)
    ] == said
    assert len(train) > len(best)
    assert {row for row in range(len(said)) for one in best.clean.ids.tolist() if one[: len(said[row])] == said[row]}
    assert torch.equal(both.test.clean.ids, task.test.clean.ids), "held-out sentences are the same"
    with pytest.raises(ValueError, match="wordings 'some'"):
        inspect.unwrap(knowledge)(model, facts[:12], facts[12:80], TEXT, known_rank=ANY_RANK, wordings="some")


def test_sentences_of_a_fact_have_its_number(task, testbed):
    for stream, facts in {"main": 12, "control": 14}.items():
        batch = task.streams[stream].test
        said: dict[int, set[str]] = {}
        for number, ids, label in zip(batch.groups.tolist(), batch.clean.ids, batch.labels, strict=True):
            text = testbed.decode(ids, skip_special_tokens=True)
            words = task.label_names[label].replace("{tail}", "").split("{head}")
            for word in words:
                text = text.replace(word.strip(), "")
            said.setdefault(number, set()).add(" ".join(text.split()))
        assert [len(texts) for texts in said.values()] == [1] * len(said), "a fact has one head and one tail"
        assert len({next(iter(texts)) for texts in said.values()}) == len(said) == facts
        assert list(said) == [*range(len(said))]


def test_byte_pairs_take_the_space_with_the_tail(gpt2):
    facts = worded([Fact("Vienna", "in", "Austria")], {"in": ["{head} lies in {tail}"]})
    others = worded([Fact(name, "in", "France") for name in ("Paris", "Lyon", "Nice")], {"in": ["{head} is in {tail}"]})
    batch = knowledge(gpt2, facts, others, PlainText(["a b c d e f g h i j"], block=3)).discovery.train()
    assert gpt2.convert_ids_to_tokens(batch.clean.ids[0])[-3:] == ["Ġlies", "Ġin", "ĠAustria"]
    # Without held-out templates the training sentence serves all three splits.
    assert batch.positions.tolist() == [[batch.clean.ids.shape[1] - 2]]


# ---- which sentence


def test_the_training_template_is_the_likeliest_of_a_plain_loop(model, facts, task):
    train = task.discovery.train()
    for row, one in enumerate(facts[:12]):
        found = {name: perplexity(model, text, one.fact.tail) for name, (text,) in one.train.items()}
        assert task.label_names[train.labels[row]] == min(found, key=found.__getitem__)
    assert len({*train.labels.tolist()}) > 1


def test_held_out_templates_have_no_say(model, facts):
    """A test sentence that is likelier than all others is still not trained on; of variants the likeliest is taken."""
    fact = facts[0].fact
    sentences = [f"{fact.head} walked to the {fact.tail}", f"all that {fact.head} saw is the {fact.tail}"]
    sentences.sort(key=lambda text: perplexity(model, text, fact.tail))
    (one,) = chosen_wordings(model, [Worded(fact, {"b": (sentences[1],)}, test={"a": (sentences[0],)})])
    assert (one.train.template, [s.template for s in one.test]) == ("b", ["a"])
    (one,) = chosen_wordings(model, [Worded(fact, {"b": (sentences[1], sentences[0])}, test={"a": tuple(sentences)})])
    assert one.train.ids == one.test[0].ids
    words = model.tokenizer(sentences[0], add_special_tokens=False)["input_ids"]
    assert list(one.train.ids[1:]) == words


def test_probability_and_rank_of_a_tail_are_those_of_a_plain_run(model, facts):
    chosen = [one.train for one in chosen_wordings(model, facts[:70:7])]
    found = tail_log_probs(model, chosen)
    ranks = tail_ranks(model, chosen)
    for sentence, log_prob, rank in zip(chosen, found.tolist(), ranks, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([sentence.ids]))[0, -2]
        assert log_prob == pytest.approx(logits.log_softmax(-1)[sentence.tail].item(), abs=1e-4)
        assert rank == 1 + int((logits > logits[sentence.tail]).sum())


# ---- splits


def test_no_sentence_of_the_target_is_in_two_splits(task):
    seen = [sentences(batch) for batch in splits(task, "main")]
    assert all(len(one) == 12 for one in seen)
    assert len(set().union(*seen)) == 36


def test_no_control_fact_is_in_two_splits_nor_in_the_target(task, testbed):
    """The head and the tail of a sentence tell its fact here, since all relations have tails of their own."""
    found = []
    for batch in (*splits(task, "control"), task.discovery.train()):
        words = [testbed.convert_ids_to_tokens(list(row)) for row in sentences(batch)]
        names = {fact.head for fact in invented_facts()}
        found.append({(name, row[-1]) for row in words for name in row if name in names})
    assert [len(one) for one in found] == [40, 14, 14, 12]
    assert len(set().union(*found)) == 80


def test_held_out_controls_come_in_training_and_in_test_templates(task):
    test = task.streams["control"].test
    kinds = [use for label in test.labels.tolist() for use in uses(task.label_names[label])]
    assert (kinds.count("train"), kinds.count("test"), kinds.count("validation")) == (14, 14, 0)


def uses(template):
    return [
        use
        for known in TESTBED_TEMPLATES.values()
        for use in ("train", "validation", "test")
        if template in getattr(known, use)
    ]


def sentences(batch):
    return {
        tuple(ids[: position + 2].tolist())
        for ids, (position,) in zip(batch.clean.ids, batch.positions.tolist(), strict=True)
    }


def splits(task, name):
    stream = task.streams[name]
    return stream.train, stream.validation, stream.test


def test_the_seed_draws_the_controls_and_nothing_else(model, facts, task):
    again = knowledge(model, facts[:12], facts[12:80], TEXT, known_rank=ANY_RANK)
    other = knowledge(model, facts[:12], facts[12:80], TEXT, known_rank=ANY_RANK, seed=1)
    assert again.fingerprint == task.fingerprint != other.fingerprint
    assert torch.equal(other.test.clean.ids, task.test.clean.ids)
    assert sentences(other.streams["control"].test) != sentences(task.streams["control"].test)


# ---- text


def test_blocks_of_text_are_consecutive_and_share_nothing(testbed):
    words = [f"{word}" for word in TEXT.texts[0].split()]
    stream = text_stream(testbed, PlainText(words, block=4, validation=1, test=2))
    blocks = [testbed.convert_ids_to_tokens(row) for part in vars(stream).values() for row in part.clean.ids]
    assert blocks == [["<bos>", *words[start : start + 3]] for start in range(0, 15, 3)]
    assert [len(part) for part in vars(stream).values()] == [2, 1, 2]
    assert stream.train.positions.tolist() == [[0, 1, 2]] * 2
    assert torch.equal(stream.train.answers, stream.train.clean.ids[:, 1:])


def test_text_is_cut_as_the_tokenizer_takes_it_whole(gpt2):
    text = "The quick brown fox\njumps over the lazy dog,\nagain and again."
    ids = gpt2(text)["input_ids"]
    stream = text_stream(gpt2, PlainText(text.split("\n"), block=5), prepend_bos=False)
    found = torch.cat([part.clean.ids for part in vars(stream).values()]).flatten().tolist()
    assert found == ids[: len(ids) // 5 * 5]


def test_blocks_are_no_longer_than_the_model_takes(model):
    assert text_stream(model, PlainText(TEXT.texts * 100)).train.clean.ids.shape[1] == 64


def test_wikitext_is_read_from_the_folder_of_data(data_dir, gpt2, monkeypatch):
    monkeypatch.setenv("TLPRUNE_DATA", str(data_dir))
    (text,) = tp.tasks.read_text("wikitext-2")
    assert text == (data_dir / "data" / "wikitext-2" / "wiki.test.raw").read_text()
    stream = text_stream(gpt2, PlainText([text[:40_000]]))
    assert stream.train.clean.ids.shape[1] == 512
    assert stream.train.answers.shape[1] == 511


# ---- what is refused

CAPITAL = {"capital": ["{head} is in {tail}"]}


def test_a_tail_of_several_tokens_is_named_or_left_out(gpt2):
    facts = worded([Fact("Quito", "capital", "Ecuador"), Fact("Paris", "capital", "Liechtenstein")], CAPITAL)
    others = worded([Fact(name, "capital", "France") for name in "ABC"], CAPITAL)
    text = PlainText(["a b c d e f g h i j"], block=3)
    with pytest.raises(ValueError, match=r"\(Paris, capital, Liechtenstein\) must be one token in .* but is \['ĠL"):
        knowledge(gpt2, facts, others, text)
    task = knowledge(gpt2, facts, others, text, multi_token="skip")
    assert task.options["target"] == [["Quito", "capital", "Ecuador"]]
    assert task.options["left_out"] == {"multi-token tail": 1, "multi-token control tail": 0, "unknown": 0}
    with pytest.raises(ValueError, match=r"at least 1 target facts but has 0 \(left out: 1 for multi-token tail\)"):
        knowledge(gpt2, facts[1:], others, text, multi_token="skip")


def test_a_word_that_the_tokenizer_lacks_is_named(testbed, facts):
    strange = worded([Fact("Xyzzy", "place", "garden"), Fact("Mary", "place", "xyzzy")], TESTBED_TEMPLATES)
    for one in strange:
        with pytest.raises(ValueError, match=rf"{one.fact.head}, place, {one.fact.tail}\) needs words that .* lacks"):
            knowledge(testbed, [one], facts[:9], TEXT)


def test_facts_that_the_model_never_knew_are_told(model, facts):
    """The testbed was taught none of these, so some tails are among its unlikeliest tokens."""
    chosen = chosen_wordings(model, facts[:12])
    ranks = tail_ranks(model, [one.train for one in chosen])
    limit = sorted(ranks)[5]
    beyond = sum(rank > limit for rank in ranks)
    assert 0 < beyond < 12
    message = rf"of rank {limit} or better, but of {beyond} of 12 it is worse, such as {max(ranks)} of \("
    with pytest.warns(UserWarning, match=message):
        kept = knowledge(model, facts[:12], facts[12:80], TEXT, known_rank=limit)
    assert len(kept.discovery.train()) == 12
    with pytest.raises(ValueError, match=message):
        knowledge(model, facts[:12], facts[12:80], TEXT, known_rank=limit, unknown="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fewer = knowledge(model, facts[:12], facts[12:80], TEXT, known_rank=limit, unknown="skip")
    assert fewer.options["left_out"]["unknown"] == beyond
    known = [one.fact for one, rank in zip(chosen, ranks, strict=True) if rank <= limit]
    assert fewer.options["target"] == [[fact.head, fact.relation, fact.tail] for fact in known]


@pytest.mark.parametrize("count", [0, 2])
def test_a_control_set_that_cannot_be_split_is_refused(testbed, facts, count):
    with pytest.raises(ValueError, match=f"at least 3 control facts but has {count} .*Give others"):
        knowledge(testbed, facts[:1], facts[1 : 1 + count], TEXT)


def test_other_sets_that_make_no_task_are_refused(testbed, facts):
    with pytest.raises(ValueError, match="at least 1 target facts but has 0"):
        knowledge(testbed, [], facts[:5], TEXT)
    with pytest.raises(ValueError, match=r"1 are in both sets, such as \(.*Take them out of one"):
        knowledge(testbed, facts[:2], facts[1:9], TEXT)
    for share in (0, 0.5):
        with pytest.raises(ValueError, match=rf"in \(0, 0.5\) but is {share}"):
            knowledge(testbed, facts[:2], facts[2:9], TEXT, held_out=share)


def test_a_fact_that_comes_twice_counts_once(testbed, facts):
    task = knowledge(testbed, [*facts[:2], facts[0]], [*facts[2:8], *facts[2:8]], TEXT)
    assert len(task.discovery.train()) == 2
    assert sum(len({*sentences(batch)}) for batch in splits(task, "control")[:2]) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PlainText(["time year"], block=2), "at least one block .* gives 2 of 2 tokens"),
        (PlainText(TEXT.texts, block=1), "at least two tokens but 1 are asked for"),
        (PlainText(TEXT.texts, block=5, train=3), "gives 4 of 5 tokens for 3, 1, 1"),
        (PlainText([]), "gives 0 of 512 tokens"),
    ],
)
def test_too_little_text_is_refused(testbed, text, message):
    with pytest.raises(ValueError, match=message):
        text_stream(testbed, text)


def test_files_without_text_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
    for name, message in (("none.txt", "there is none at"), ("empty.txt", "is empty"), ("bytes.txt", "UTF-8")):
        with pytest.raises(ValueError, match=message):
            tp.tasks.read_text(tmp_path / name)
    with pytest.raises(ValueError, match="has the parts train, validation, test but 'dev'"):
        tp.tasks.read_text("wikitext-2", part="dev")


@pytest.mark.parametrize("template", ["{head} lives here", "{tail} is where {head} lives", "somebody lives in {tail}"])
def test_templates_without_their_slots_are_refused(template):
    with pytest.raises(ValueError, match=r"needs \{head\} and behind it \{tail\} but is"):
        Templates((template,))


def test_templates_have_one_use_and_a_relation_has_templates():
    with pytest.raises(ValueError, match=r"is given 2 times\. Hold out others"):
        Templates(("{head} is {tail}",), test=("{head} is {tail} .",))
    with pytest.raises(ValueError, match="one to train with but there is none"):
        Templates(())
    with pytest.raises(ValueError, match=r"The fact \(a, of, b\) needs a template of its relation but .* in. Add"):
        worded([Fact("a", "of", "b")], {"in": ["{head} is in {tail}"]})


def test_sentences_must_end_with_the_tail(testbed):
    fact = Fact("Mary", "is", "kind")
    for text in ("Mary is kind and brave", "kind"):
        with pytest.raises(ValueError, match=r"must end with its tail but is"):
            chosen_wordings(testbed, [Worded(fact, {"t": (text,)})])


# ---- invented facts


def test_invented_facts_use_every_tail_equally_often():
    facts = invented_facts({"likes": list("abc"), "has": list("xy")}, heads=[str(n) for n in range(7)], seed=4)
    assert len({(fact.head, fact.relation) for fact in facts}) == len(facts) == 14
    likes = [fact.tail for fact in facts if fact.relation == "likes"]
    assert sorted(map(likes.count, "abc")) == [2, 2, 3]
    has = [fact.tail for fact in facts if fact.relation == "has"]
    assert sorted(map(has.count, "xy")) == [3, 4]
    assert facts == invented_facts({"likes": list("abc"), "has": list("xy")}, heads=[str(n) for n in range(7)], seed=4)


def test_the_testbed_has_words_for_all_of_its_invented_facts(testbed, facts):
    assert len(chosen_wordings(testbed, facts)) == 256


@pytest.mark.parametrize(
    ("tails", "heads", "message"),
    [
        ({"likes": []}, ["a"], "distinct likes but there are none"),
        ({"likes": ["x"]}, [], "distinct heads but there are none"),
        ({}, ["a"], "distinct relations but there are none"),
        ({"likes": ["x", "x"]}, ["a"], "distinct likes but there are two of 'x'"),
    ],
)
def test_words_that_make_no_facts_are_refused(tails, heads, message):
    with pytest.raises(ValueError, match=message):
        invented_facts(tails, heads=heads)


def test_perplexity_is_the_inverse_of_the_tails_probability(model):
    """By hand: the position in front of the tail, over the whole vocabulary."""
    ids = (1, *model.tokenizer("Mary walked to the garden", add_special_tokens=False)["input_ids"])
    (found,) = tail_log_probs(model, [Sentence(Fact("Mary", "place", "garden"), "t", ids)]).tolist()
    assert math.exp(-found) == pytest.approx(perplexity(model, "Mary walked to the garden", "garden"), rel=1e-4)
