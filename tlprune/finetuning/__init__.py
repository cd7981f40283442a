"""Fine-tuning of a Hugging Face model on labelled data: the classifiers that masks start from."""

from __future__ import annotations

from tlprune.finetuning.command import finetune as finetune
from tlprune.finetuning.command import prune as prune
from tlprune.finetuning.plan import FineTune as FineTune
from tlprune.finetuning.pruning import PruningRun as PruningRun
from tlprune.finetuning.pruning import prune_and_finetune as prune_and_finetune
from tlprune.finetuning.pruning_plan import PruningPlan as PruningPlan
from tlprune.finetuning.pruning_plan import falling as falling
