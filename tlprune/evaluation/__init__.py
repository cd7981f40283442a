"""What circuits do on test examples: against baselines, against each other, and edge by edge."""

from tlprune.evaluation.baselines import Evaluation as Evaluation
from tlprune.evaluation.baselines import evaluate as evaluate
