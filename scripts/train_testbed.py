"""Train the small GPT-2-format model that the package carries as its testbed.

Run from the repository root:

    python scripts/train_testbed.py --seed 0 --steps 3000 --out tlprune/models/testbed
"""

from __future__ import annotations

import argparse
import json
import string
import time
from collections.abc import Iterable
from pathlib import Path
from random import Random

import torch
from jaxtyping import Float, Int
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tlprune.models.testbed_prompts import BEHAVIOURS, held_out_pairs, right_answers, training_pair
from tlprune.tasks.gendered_pronoun import TEMPLATES as PRONOUN_TEMPLATES
from tlprune.tasks.greater_than import TEMPLATES as YEAR_TEMPLATES
from tlprune.tasks.greater_than import TWO_DIGITS
from tlprune.tasks.ioi import TEMPLATES as NAME_TEMPLATES
from tlprune.tasks.pairs import Pair
from tlprune.tasks.words import ADJECTIVES, EVENTS, NAMES, OBJECTS, PLACES, PLAIN_WORDS

THREADS = 1
SHARES = {"ioi": 24, "gendered-pronoun": 8, "greater-than": 16, "induction": 64}
REST_WEIGHT = 0.1
PRACTICE_SHARE, PRACTICE_LENGTH, PRACTICE_WEIGHT = 32, 24, 1.0
HELD_OUT_PROMPTS = 2000
PIECES = Regex(r"'[a-z]+|[A-Za-z]+|[0-9][0-9]|[0-9]|[^\sA-Za-z0-9]")


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(THREADS)
    torch.manual_seed(arguments.seed)
    began, tokenizer = time.perf_counter(), build_tokenizer()
    model = build_model(tokenizer)
    train(model, tokenizer, steps=arguments.steps, seed=arguments.seed, peak=arguments.learning_rate)
    minutes = (time.perf_counter() - began) / 60
    accuracies = {behaviour: measure(model, tokenizer, behaviour) for behaviour in BEHAVIOURS}
    save(model, tokenizer, arguments.out)
    (arguments.out / "README.md").write_text(describe(arguments, accuracies))
    print(f"{minutes:.1f} minutes", json.dumps(accuracies, indent=1))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="fixes the weights, the prompts and their order")
    parser.add_argument("--steps", type=int, default=3000, help=f"optimiser steps of {sum(SHARES.values())} prompts")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak of the schedule")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its tokenizer")
    return parser.parse_args()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Words, apostrophe clitics, punctuation and pairs of digits; the spaces between them do not count."""
    splitter = Split(PIECES, behavior="removed", invert=True)
    pieces = {piece for text in texts() for piece, _ in splitter.pre_tokenize_str(text)}
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<bos>", "<pad>", *sorted(pieces)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<bos>", pad_token="<pad>"
    )


def texts() -> Iterable[str]:
    """Everything that prompts and answers are made of, without the templates' slots."""
    for template in (*PRONOUN_TEMPLATES, *YEAR_TEMPLATES, *NAME_TEMPLATES):
        yield " ".join(literal for literal, *_ in string.Formatter().parse(template))
    for words in (*NAMES.values(), PLACES, OBJECTS, ADJECTIVES, EVENTS, PLAIN_WORDS, TWO_DIGITS, ("he", "she")):
        yield " ".join(words)


def build_model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    # The fused form of gelu_new: the same function, computed in one pass.
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=64, n_embd=128, n_layer=4, n_head=8,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            activation_function="gelu_pytorch_tanh",
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,  # pyright: ignore[reportArgumentType]
            pad_token_id=tokenizer.pad_token_id,  # pyright: ignore[reportArgumentType]
        )
    )  # fmt: skip
    model.transformer.wpe.weight.data.copy_(waves(64, 128))
    return model


def waves(positions: int, width: int) -> Float[Tensor, "pos d_model"]:
    """Sines and cosines to start the position embedding from: looking back by one is then one rotation everywhere."""
    angles = torch.arange(positions)[:, None] * torch.linspace(0.05, 3.0, width // 2)
    return 0.03 * torch.cat([angles.sin(), angles.cos()], dim=-1)


def train(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, *, steps: int, seed: int, peak: float) -> None:
    rng, model = Random(seed), model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, peak, total_steps=steps, pct_start=0.06, cycle_momentum=False
    )
    for step in range(steps):
        losses = {name: behaviour_loss(model, tokenizer, name, share, rng) for name, share in SHARES.items()}
        losses["practice"] = practice_loss(model, tokenizer, rng)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            figures = " ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
            print(f"step {step} | nats at the answer: {figures}", flush=True)


def behaviour_loss(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, behaviour: str, share: int, rng: Random
) -> float:
    """Cross-entropy in nats at the answers of new prompts; its gradients are added to those of the step.

    Each behaviour has a forward pass of its own because its prompts have much the same length.
    """
    pairs = [training_pair(behaviour, rng) for _ in range(share)]
    ids, last = encode(tokenizer, [pair.clean for pair in pairs])
    log_probs = model(ids).logits.log_softmax(dim=-1)
    loss = -(log_probs[torch.arange(share), last] * targets(tokenizer, behaviour, pairs)).sum(dim=-1).mean()
    following = ids[:, 1:].masked_fill(torch.arange(1, ids.shape[1]) > last[:, None], -100)
    rest = functional.nll_loss(log_probs[:, :-1].flatten(0, 1), following.flatten(), ignore_index=-100)
    ((loss + REST_WEIGHT * rest) * share / sum(SHARES.values())).backward()
    return loss.item()


def practice_loss(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, rng: Random) -> float:
    """Cross-entropy in nats at repeated words of longer sequences; its gradients are added to those of the step.

    Most positions teach copying here, where the tasks' prompts teach it at one.
    """
    drawn = [practice_words(rng, together=place % 2 == 0) for place in range(PRACTICE_SHARE)]
    ids, _ = encode(tokenizer, [" ".join(words) for words, _ in drawn])
    taught = torch.tensor([flags for _, flags in drawn])
    loss = functional.cross_entropy(model(ids).logits[:, :-1][taught], ids[:, 1:][taught])
    (PRACTICE_WEIGHT * loss).backward()
    return loss.item()


def practice_words(rng: Random, *, together: bool) -> tuple[list[str], list[bool]]:
    """Random words and stretches of them again and again, and whether each word follows from the one before it.

    Whole copies, which are ``together``, are soon learned by their distance; short stretches in any order then teach
    to look for the word before.
    """
    first = rng.sample(PLAIN_WORDS, rng.choice((6, 8, 10)))
    words, follows = list(first), [False] * len(first)
    while len(words) < PRACTICE_LENGTH:
        begin, size = (0, len(first)) if together else (rng.randrange(len(first) - 2), rng.choice((3, 4)))
        stretch = first[begin : begin + size]
        words += stretch
        follows += [place > 0 for place in range(len(stretch))]
    return words[:PRACTICE_LENGTH], follows[:PRACTICE_LENGTH]


def encode(
    tokenizer: PreTrainedTokenizerFast, prompts: list[str]
) -> tuple[Int[Tensor, "example pos"], Int[Tensor, "example"]]:
    """Token ids after one beginning-of-sequence token, padded on the right, and each prompt's last position."""
    rows = [[tokenizer.bos_token_id, *row] for row in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    return ids, torch.tensor([len(row) - 1 for row in rows])


def targets(
    tokenizer: PreTrainedTokenizerFast, behaviour: str, pairs: list[Pair]
) -> Float[Tensor, "example vocabulary"]:
    """The right answer, or a uniform distribution over all of them."""
    wanted = torch.zeros(len(pairs), len(tokenizer))
    for row, pair in enumerate(pairs):
        right = tokenizer.convert_tokens_to_ids(list(right_answers(behaviour, pair)))
        wanted[row, right] = 1 / len(right)  # pyright: ignore[reportArgumentType]
    return wanted


@torch.no_grad()
def measure(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, behaviour: str) -> dict[str, float]:
    """Accuracy of the most probable token, and probability of the right ones, on prompts that were held out."""
    pairs = held_out_pairs(behaviour, count=HELD_OUT_PROMPTS, seed=1)
    ids, last = encode(tokenizer, [pair.clean for pair in pairs])
    probabilities = model.eval()(ids).logits[torch.arange(len(ids)), last].softmax(dim=-1)
    right = targets(tokenizer, behaviour, pairs) > 0
    best = probabilities.argmax(dim=-1, keepdim=True)
    mass = (probabilities * right).sum(dim=-1)
    return {"accuracy": right.gather(1, best).float().mean().item(), "probability": mass.mean().item()}


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    model.config.activation_function = "gelu_new"
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    settings = json.loads((out / "tokenizer_config.json").read_text())
    # The name that every supported version of transformers knows.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def describe(arguments: argparse.Namespace, accuracies: dict[str, dict[str, float]]) -> str:
    rows = "\n".join(
        f"| {behaviour} | {100 * figures['accuracy']:.2f} % | {figures['probability']:.4f} |"
        for behaviour, figures in accuracies.items()
    )
    return f"""# Testbed model

A GPT-2-format model with 4 layers, 8 heads of 16 dimensions, MLPs of 512 neurons and a word-level tokenizer, trained
from scratch on the prompts of four tasks: indirect object identification, gendered pronoun, greater-than and induction.
It is small enough for tests and demos on a processor. It knows nothing but these prompts and, because they make copying
quicker to learn, sequences of {PRACTICE_LENGTH} random words, stretches of which come again.

Made by

    python scripts/train_testbed.py --seed {arguments.seed} --steps {arguments.steps} --out tlprune/models/testbed

with {THREADS} thread, torch {torch.__version__} and a peak learning rate of {arguments.learning_rate}. Another
number of threads, or another version of torch or processor, gives slightly different weights.

A tenth of all prompts, chosen by a hash of their text, was never trained on. On {HELD_OUT_PROMPTS} of these per
behaviour, over the full vocabulary:

| behaviour | most probable token is right | mean probability of right tokens |
|---|---|---|
{rows}

For greater-than every later two-digit year is right, and the model was trained to spread its probability evenly over
them. Names and templates that a task keeps for its test are in the training data: what is held out here are prompts.
"""


if __name__ == "__main__":
    main()
