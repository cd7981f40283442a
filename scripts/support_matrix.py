"""Writes docs/support.md: which masks work on which models, as the contract tests find it.

python scripts/support_matrix.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
PAGE = ROOT / "docs" / "support.md"
TEXT = """# What works on what

`python scripts/support_matrix.py` writes this table from the contract that the tests hold every kind of model to: with
everything kept the masked model is the model; with nothing kept it knows nothing of the prompt, and under Resample is
the counterfactual run; what is replaced by itself changes nothing; gradients are slopes; the model is left as it was.
What is not in the table is refused with an error that says what to use instead.

Letters are ablations: **Z**ero, **M**ean, **R**esample, **G**aussian noise, **C**onstant (learned). An ablated weight
is 0 whatever replaces activations. Under padding, the sides (**L**eft, **R**ight) on which prompts may be padded; BERT
numbers positions from the first, padding or not, and classifiers read the first. A dash: refused.

The models are tiny and random, one for each way in which architectures differ; `tests/huggingface_models.py` and
`tests/encoders.py` have them. TransformerLens 4 has TransformerBridge alone; its rows are the same on both lines.

"""


def main() -> None:
    torch.set_num_threads(1)  # tiny products
    import contract  # pyright: ignore[reportMissingImports]

    head = f"| class | model | {' | '.join(contract.COLUMNS)} |\n|{'---|' * (2 + len(contract.COLUMNS))}\n"
    PAGE.write_text(TEXT + head + "\n".join(map(contract.table_row, contract.rows())) + "\n")


if __name__ == "__main__":
    main()
