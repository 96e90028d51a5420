"""The keys of the evaluation configs."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING


@dataclass
class EvalSettings:
    """An evaluation on multiple-choice questions.

    Attributes:
        output_dir: folder to create.
        data: prepared folder.
        split: `val` or `test`.
        model: component that builds the model.
        checkpoint_dir: checkpoint in Hugging Face layout; null keeps the builder's random weights.
        tokenizer: component that builds the model's transform.
        scoring: `generate` (the paper's protocol), `logits` (the answer sentence is forced and the letters' logits compared)
            or `both`.
        max_new_tokens: longest generated answer in tokens.
        batch_size: questions per forward pass.
        limit: use only the first questions.
        dtype: `fp32` or `bf16`.
        device: `cpu`, `cuda` or `auto`.
    """

    output_dir: str = MISSING
    data: str = MISSING
    split: str = "test"
    model: dict[str, Any] = MISSING
    checkpoint_dir: str | None = None
    tokenizer: dict[str, Any] = MISSING
    scoring: str = "generate"
    max_new_tokens: int = 50
    batch_size: int = 16
    limit: int | None = None
    dtype: str = "fp32"
    device: str = "auto"
