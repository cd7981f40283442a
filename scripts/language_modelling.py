"""What the scripts that train language models share: reading text, the steps, the figures, the files.

A model is a trunk and a head. The head reads the trunk's states where a word is to be named, and nowhere else, so that
no logits of other positions are computed: with 15 % of the words masked and a small trunk they would be half the work.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tlprune.files import write_whole
from tlprune.finetuning.plan import batches
from tlprune.tasks.labelled.known import Columns, DataSet
from tlprune.tasks.labelled.reading import rows_of_file

RECORD = "training.json"
TABLES = (".tsv", ".csv", ".json", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Course:
    """Text and steps of a training.

    Attributes:
        text: files to train on: ``train.tsv:sentence`` takes a column of a table, any other file a line at a time.
        out: directory for the model, its tokenizer and training.json.
        held_out: files to measure on, in the same way; by default every fiftieth line of the text, which is then not
            trained on.
        steps: of the optimiser, AdamW.
        batch_size: lines per step.
        rate: highest learning rate.
        warmup: share of the steps in which the rate rises; it then falls linearly to 0.
        weight_decay: of matrices.
        clip: largest gradient norm.
        max_length: tokens per line; the rest of a longer one is a line of its own.
        seed: of new weights, the order of lines, masks and dropout.
        device: such as cpu or cuda.
        threads: of the processor. Another number rounds otherwise.
    """

    text: tuple[str, ...]
    out: Path
    held_out: tuple[str, ...] = ()
    steps: int = 1000
    batch_size: int = 64
    rate: float = 5e-4
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float = 1.0
    max_length: int = 64
    seed: int = 0
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch_size": 1, "max_length": 4, "threads": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} must be at least {value} but is {getattr(self, name)}. Give a larger number.")
        if not 0 < self.rate < 1 or not 0 <= self.warmup < 1:
            raise ValueError(
                f"rate must lie between 0 and 1, and warmup be a share of the steps, but they are {self.rate} and "
                f"{self.warmup}. Rates such as 5e-4 and a warmup of 0.06 are usual."
            )
        if (self.out / "config.json").exists():
            raise ValueError(f"{self.out} must not hold a model yet but it does. Name another directory with --out.")

    def factor(self, step: int) -> float:
        """What the rate is multiplied with in a step, from 0: up in the warm-up, then down to nearly 0."""
        rising = math.ceil(self.warmup * self.steps)
        return (step + 1) / rising if step < rising else (self.steps - step) / (self.steps - rising)


def lines_in(sources: Sequence[str]) -> list[str]:
    """The lines of files with words in them; of a table, as in ``train.tsv:sentence``, the texts of a column.

    Raises:
        ValueError: a file or column is missing, or there are no words.
    """
    found = [line for source in sources for line in map(str.strip, _texts(source)) if line]
    if not found:
        raise ValueError(f"Training needs lines of text but {', '.join(sources) or 'no file'} has none. Name a file.")
    return found


def _texts(source: str) -> Iterator[str]:
    name, _, column = source.rpartition(":")
    if name and Path(name).suffix in TABLES:
        table = DataSet(Path(name).name, {}, (Columns((), column),), ())
        yield from (str(row.values[column]) for row in rows_of_file(Path(name), table))
    elif Path(source).suffix in TABLES:
        raise ValueError(f"{source} is a table and needs the name of a column. Give it as {source}:sentence.")
    elif not Path(source).is_file():
        raise ValueError(f"The text must be a file but there is no {source}. Give another path.")
    else:
        yield from Path(source).read_text(encoding="utf-8").splitlines()


def divided(course: Course) -> tuple[list[str], list[str]]:
    """Lines to train on, each once, and lines to measure on, none of which is trained on."""
    lines = list(dict.fromkeys(lines_in(course.text)))
    held_out = lines_in(course.held_out) if course.held_out else lines[::50]
    measured = {*held_out}
    trained = [line for line in lines if line not in measured]
    if not trained:
        raise ValueError(
            f"Lines are needed that are not measured on but all {len(lines)} are. Give more text, or other --held-out."
        )
    return trained, held_out


def encoded(tokenizer: Any, lines: Sequence[str], *, max_length: int) -> list[list[int]]:
    """Token ids of lines, cut into pieces of at most ``max_length``, each with the tokenizer's special tokens."""
    if not tokenizer.is_fast:
        raise ValueError("Lines are cut by a fast tokenizer but this one is not. Save it with its tokenizer.json.")
    return tokenizer(list(lines), truncation=True, max_length=max_length, return_overflowing_tokens=True)["input_ids"]


# ---- steps


def named(model: Any, batch: Any, *, ahead: int) -> tuple[Float[Tensor, "word vocabulary"], Int[Tensor, "word"]]:
    """Logits where a word is to be named, and the words.

    Args:
        model: a transformers model with a trunk and one head, such as BertForMaskedLM or GPT2LMHeadModel.
        batch: what transformers' DataCollatorForLanguageModeling makes: labels are -100 where nothing is named.
        ahead: how many places behind its state a word stands: 0 for masked words, 1 for the next word.
    """
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    states = model.base_model(**inputs).last_hidden_state
    words = batch["labels"].to(model.device)[:, ahead:]
    wanted = words != -100
    return head_of(model)(states[:, : words.shape[1]][wanted]), words[wanted]


def beside(collator: Any, rows: Sequence[list[int]]) -> Any:
    """Lines as a batch with an attention mask, which the collator makes of mappings only."""
    return collator([{"input_ids": row} for row in rows])


def head_of(model: Any) -> Any:
    """The module behind the trunk."""
    (head,) = (part for name, part in model.named_children() if name != model.base_model_prefix)
    return head


def train(
    model: Any, collator: Any, rows: Sequence[list[int]], course: Course, *, ahead: int, head_rate: float | None = None
) -> None:
    """Take the steps of a course. Masks and dropout of a step follow from the seed and its number alone.

    ``head_rate`` is the highest rate of what the trunk has no part in; by default the same.
    """
    groups = _groups(model, course, head_rate or course.rate)
    trained = [parameter for group in groups for parameter in group["params"]]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, course.factor)
    model.train()
    for step, chosen in zip(range(course.steps), _order(rows, course), strict=False):
        torch.manual_seed(1_000_003 * course.seed + step)
        logits, words = named(model, beside(collator, [rows[row] for row in chosen]), ahead=ahead)
        loss = F.cross_entropy(logits, words, reduction="sum") / max(1, len(words))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, course.clip)
        optimiser.step()
        schedule.step()
        _tell(step, course, loss)


def _groups(model: Any, course: Course, head_rate: float) -> list[dict[str, Any]]:
    """Trunk and head, each with a rate of its own; matrices decay, biases and norms, which have one axis, do not."""
    trunk = {*model.base_model.parameters()}
    parts = [(trunk, course.rate), ({*model.parameters()} - trunk, head_rate)]
    ordered = [one for one in model.parameters() if one.requires_grad]
    found = [
        {
            "params": [one for one in ordered if one in part and (one.dim() > 1) is wide],
            "lr": rate,
            "weight_decay": decay,
        }
        for part, rate in parts
        for wide, decay in ((True, course.weight_decay), (False, 0.0))
    ]
    return [group for group in found if group["params"]]


def _order(rows: Sequence[list[int]], course: Course) -> Iterator[list[int]]:
    """Batches without end: each row once in an epoch, rows of about one length together."""
    lengths, epoch = list(map(len, rows)), 0
    while True:
        yield from batches(lengths, course.batch_size, seed=course.seed, epoch=epoch)
        epoch += 1


def _tell(step: int, course: Course, loss: Tensor) -> None:
    value = loss.item()
    if not math.isfinite(value):
        raise ValueError(f"Training needs a finite loss but that of step {step} is {value}. Lower the rate.")
    if step % 50 == 0 or step == course.steps - 1:
        print(f"step {step} | nats per word: {value:.3f}", flush=True)


@torch.no_grad()
def measure(model: Any, collator: Any, rows: Sequence[list[int]], *, ahead: int, seed: int) -> dict[str, float]:
    """Accuracy of the likeliest word and cross-entropy in nats, over the words to be named in held-out lines."""
    model.eval()
    torch.manual_seed(seed)
    right = nats = count = 0.0
    for start in range(0, len(rows), 64):
        logits, words = named(model, beside(collator, rows[start : start + 64]), ahead=ahead)
        right += (logits.argmax(-1) == words).sum().item()
        nats += F.cross_entropy(logits, words, reduction="sum").item()
        count += len(words)
    if not count:
        raise ValueError("Figures need words to be named but the held-out lines have none. Give more of them.")
    return {"accuracy": right / count, "cross_entropy": nats / count, "words": count}


# ---- files


def save(model: Any, tokenizer: Any, course: Course, figures: dict[str, Any]) -> None:
    """Write the model, its tokenizer, and how it was made."""
    model.save_pretrained(course.out)
    tokenizer.save_pretrained(course.out)
    (course.out / "generation_config.json").unlink(missing_ok=True)
    settings = {name: _plain(value) for name, value in dataclasses.asdict(course).items()}
    record = {"settings": settings, "figures": figures, "torch": torch.__version__}
    write_whole(course.out / RECORD, json.dumps(record, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
