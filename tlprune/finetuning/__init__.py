"""Fine-tuning of a Hugging Face model on labelled data: the classifiers that masks start from."""

from __future__ import annotations

from tlprune.finetuning.command import finetune as finetune
from tlprune.finetuning.command import prune as prune
from tlprune.finetuning.plan import FineTune as FineTune
