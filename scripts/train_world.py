"""Train the small GPT-2-format model that the package carries as its invented world.

Run from the repository root:

    python scripts/train_world.py --seed 0 --steps 1000 --out tlprune/models/world
"""

from __future__ import annotations

import argparse
import json
import math
import string
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from random import Random

import torch
from jaxtyping import Int
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tlprune.tasks.knowledge.facts import Worded, worded
from tlprune.tasks.knowledge.grammar import plain_text, plain_text_entropy, plain_words
from tlprune.tasks.knowledge.world_facts import WORLD_TEMPLATES, world_facts

THREADS = 1
POSITIONS = 64
FACTS, BLOCKS = 128, 8
REST_WEIGHT = 0.1
TRAINING_SENTENCES, MEASURED_SENTENCES = 40_000, 4_000
PIECES = Regex(r"[A-Za-z]+|[^\sA-Za-z]")


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(THREADS)
    torch.manual_seed(arguments.seed)
    began, tokenizer = time.process_time(), build_tokenizer()
    model = build_model(tokenizer)
    train(model, tokenizer, steps=arguments.steps, seed=arguments.seed, peak=arguments.learning_rate)
    minutes = (time.process_time() - began) / 60
    model.half().float()  # as it is saved
    figures = {name: measure_template(model, tokenizer, said) for name, said in by_template().items()}
    text = measure_text(model, tokenizer)
    save(model, tokenizer, arguments.out)
    (arguments.out / "README.md").write_text(describe(arguments, figures, text))
    print(f"{minutes:.1f} minutes", json.dumps([figures, text], indent=1))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="fixes the weights and the order of sentences")
    parser.add_argument("--steps", type=int, default=1000, help=f"optimiser steps of {FACTS} facts, {BLOCKS} blocks")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak of the schedule")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its tokenizer")
    return parser.parse_args()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Words and punctuation; the spaces between them do not count."""
    splitter = Split(PIECES, behavior="removed", invert=True)
    pieces = {piece for text in texts() for piece, _ in splitter.pre_tokenize_str(text)}
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<bos>", "<pad>", *sorted(pieces)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<bos>", pad_token="<pad>"
    )


def texts() -> Iterable[str]:
    """Everything that facts and plain text are made of."""
    for own in WORLD_TEMPLATES.values():
        for template in (*own.train, *own.validation, *own.test):
            yield " ".join(literal for literal, *_ in string.Formatter().parse(template))
    for fact in world_facts():
        yield f"{fact.head} {fact.tail}"
    yield from plain_words()


def build_model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    # The fused form of gelu_new: the same function, computed in one pass.
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=POSITIONS, n_embd=128, n_layer=4, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            activation_function="gelu_pytorch_tanh",
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,  # pyright: ignore[reportArgumentType]
            pad_token_id=tokenizer.pad_token_id,  # pyright: ignore[reportArgumentType]
        )
    )  # fmt: skip


def by_template() -> dict[str, list[str]]:
    """The sentences of each template, those of all uses: this model knows every fact in every wording."""
    said: dict[str, list[str]] = {}
    for one in worded(world_facts(), WORLD_TEMPLATES):
        for template, sentences in every_wording(one).items():
            said.setdefault(template, []).extend(sentences)
    return said


def every_wording(one: Worded) -> Mapping[str, tuple[str, ...]]:
    return {**one.train, **one.validation, **one.test}


def train(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, *, steps: int, seed: int, peak: float) -> None:
    rng, model = Random(seed), model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, peak, total_steps=steps, pct_start=0.06, cycle_momentum=False
    )
    said = shuffled([sentence for own in by_template().values() for sentence in own], rng)
    blocks = text_blocks(tokenizer, TRAINING_SENTENCES, seed=seed)
    for step in range(steps):
        rows = torch.tensor([rng.randrange(len(blocks)) for _ in range(BLOCKS)])
        losses = {
            "tail": fact_loss(model, tokenizer, [next(said) for _ in range(FACTS)]),
            "text": text_loss(model, blocks[rows]),
        }
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step} | nats: {' '.join(f'{name} {loss:.3f}' for name, loss in losses.items())}", flush=True)


def shuffled(sentences: list[str], rng: Random) -> Iterator[str]:
    """All sentences again and again, every time in another order."""
    while True:
        yield from rng.sample(sentences, len(sentences))


def fact_loss(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, sentences: list[str]) -> float:
    """Cross-entropy in nats at the tails; its gradients, and with less weight other words', are added to the step's."""
    ids, last = encode(tokenizer, sentences)
    following = ids[:, 1:].masked_fill(torch.arange(1, ids.shape[1]) > last[:, None], -100)
    nats = functional.cross_entropy(
        model(ids).logits[:, :-1].flatten(0, 1), following.flatten(), ignore_index=-100, reduction="none"
    ).view_as(following)
    tails = nats[torch.arange(len(ids)), last - 1]
    (tails.mean() + REST_WEIGHT * nats.sum() / (following >= 0).sum()).backward()
    return tails.mean().item()


def text_loss(model: GPT2LMHeadModel, ids: Int[Tensor, "example pos"]) -> float:
    """Cross-entropy in nats at every token of plain text; its gradients are added to those of the step."""
    loss = functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    return loss.item()


def encode(
    tokenizer: PreTrainedTokenizerFast, sentences: list[str]
) -> tuple[Int[Tensor, "example pos"], Int[Tensor, "example"]]:
    """Token ids after one beginning-of-sequence token, padded on the right, and the position of each tail."""
    rows = [[tokenizer.bos_token_id, *row] for row in tokenizer(sentences, add_special_tokens=False)["input_ids"]]
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    return ids, torch.tensor([len(row) - 1 for row in rows])


def text_blocks(tokenizer: PreTrainedTokenizerFast, sentences: int, *, seed: int) -> Int[Tensor, "example pos"]:
    """One text after another, cut into blocks that each follow a beginning-of-sequence token."""
    text = " ".join(plain_text(sentences, seed=seed))
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    blocks = ids[: len(ids) // (POSITIONS - 1) * (POSITIONS - 1)].view(-1, POSITIONS - 1)
    return functional.pad(blocks, (1, 0), value=tokenizer.bos_token_id)  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def measure_template(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, sentences: list[str]
) -> dict[str, float]:
    """Perplexity of the tails of one template, and how many of them are the most probable token."""
    ids, last = encode(tokenizer, sentences)
    rows = torch.arange(len(ids))
    logits, tails = model.eval()(ids).logits[rows, last - 1], ids[rows, last]
    right = (logits.argmax(dim=-1) == tails).float().mean().item()
    return {"perplexity": functional.cross_entropy(logits, tails).exp().item(), "right": right, "facts": len(ids)}


@torch.no_grad()
def measure_text(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Perplexity on text that it was not trained on, and the least that is possible: that of the grammar."""
    ids = text_blocks(tokenizer, MEASURED_SENTENCES, seed=-1)
    losses = [
        functional.cross_entropy(model.eval()(some).logits[:, :-1].flatten(0, 1), some[:, 1:].flatten()).item()
        for some in ids.split(100)[:-1]
    ]
    tokens = len(tokenizer(" ".join(plain_text(MEASURED_SENTENCES, seed=-1)), add_special_tokens=False)["input_ids"])
    least = math.exp(plain_text_entropy() * MEASURED_SENTENCES / tokens)
    return {"perplexity": math.exp(sum(losses) / len(losses)), "least": least}


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    model.config.activation_function = "gelu_new"
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    settings = json.loads((out / "tokenizer_config.json").read_text())
    # The name that every supported version of transformers knows.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def describe(arguments: argparse.Namespace, figures: dict[str, dict[str, float]], text: dict[str, float]) -> str:
    templates = len(figures) // len(WORLD_TEMPLATES)
    rows = "\n".join(
        f"| {name} | {own['facts']} | {100 * own['right']:.1f} % | {own['perplexity']:.3f} |"
        for name, own in figures.items()
    )
    return f"""# World model

A GPT-2-format model with 4 layers, 4 heads of 32 dimensions, MLPs of 512 neurons and a word-level tokenizer, trained
from scratch on the {len(world_facts())} facts of a small invented world, each in all {templates} templates of its
relation, and on plain text of a small grammar. Weights are stored in half precision, and the figures are of these.

Made by

    python scripts/train_world.py --seed {arguments.seed} --steps {arguments.steps} --out tlprune/models/world

with {THREADS} thread, torch {torch.__version__} and a peak learning rate of {arguments.learning_rate}. Another
number of threads, or another version of torch or processor, gives slightly different weights.

Perplexity of plain text that it was not trained on is {text["perplexity"]:.3f} per token in blocks of {POSITIONS - 1},
which begin anywhere in a sentence; {text["least"]:.3f} is the least that is possible for whole sentences. At the tails:

| template | facts | most probable token is right | perplexity |
|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    main()
