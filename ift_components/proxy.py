"""The proxy instruction: K learnable vectors that stand where the text instruction would, and the rules that move them.

`theta` is what the optimizer owns, `momentum` (the paper's theta~) its exponential moving average, both [K, d] in fp32 whatever
the model computes in: in bf16 a step of 2e-5 on a value above 0.008 rounds away, and so does most of a momentum of 0.999.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ift_components.errors import ConfigError
from ift_components.files import atomic_path

PROXY_FILE = "proxy_instruction.safetensors"
_KEY = "proxy_instruction"


class UpdateRule(StrEnum):
    """How theta and its momentum copy interact (paper section 3.3 and Table 2).

    Attributes:
        RESTART: before every step theta <- theta~, then one optimizer step on theta, then Eq. 3 (the authors' code).
        TRACK: theta keeps its own optimizer trajectory and theta~ trails it by Eq. 3 (the paper's text).
        FIX: the warmed-up theta, never changed.
        UPDATE: theta by gradient descent, no momentum; the warm-up uses it too.
    """

    RESTART = "restart"
    TRACK = "track"
    FIX = "fix"
    UPDATE = "update"


class ProxyInstruction(nn.Module):
    """The proxy instruction under one update rule.

    One step is: `begin_step`, forward passes that read `seen`, backward passes, `collect_gradient`, the optimizer's step on
    `theta`, `end_step`.

    Args:
        theta: initial vectors, [K, d].
        rule: the update rule.
        momentum: the paper's m in Eq. 3, in [0, 1].
        raw_gradient: whether theta's gradient is that of the summed loss, neither divided by the response tokens nor clipped
            nor in the norm, as in the authors' code.
        alias: whether theta~ shares theta's storage in the first step, as in the authors' code: it then takes that whole step.

    Raises:
        ConfigError: if the momentum is outside [0, 1].
    """

    momentum: Tensor

    def __init__(
        self,
        theta: Tensor,
        rule: UpdateRule,
        momentum: float = 0.999,
        *,
        raw_gradient: bool = False,
        alias: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ConfigError(f"proxy.momentum: {momentum} is outside [0, 1]; the paper's value is 0.999")
        self.rule = rule
        self.decay = momentum
        self.raw_gradient, self.alias = raw_gradient, alias
        self.theta = nn.Parameter(theta.detach().float().clone(), requires_grad=rule is not UpdateRule.FIX)
        self.register_buffer("momentum", self.theta.detach().clone())
        self.momentum.requires_grad_(self.has_momentum)

    @property
    def has_momentum(self) -> bool:
        """Whether the forward pass sees theta~ rather than theta."""
        return self.rule in (UpdateRule.RESTART, UpdateRule.TRACK)

    @property
    def seen(self) -> Tensor:
        """What the forward pass puts into the slots, [K, d]: theta~ under `restart` and `track`, theta otherwise."""
        return self.momentum if self.has_momentum else self.theta

    @torch.no_grad()
    def begin_step(self) -> None:
        """Under `restart`, set theta back to theta~."""
        if self.rule is UpdateRule.RESTART:
            self.theta.copy_(self.momentum)

    @torch.no_grad()
    def collect_gradient(self) -> None:
        """Hand the slots' gradient, taken at theta~, to theta."""
        if self.has_momentum:
            self.theta.grad, self.momentum.grad = self.momentum.grad, None

    @torch.no_grad()
    def end_step(self, *, first: bool = False) -> None:
        """Apply Eq. 3: theta~ <- m theta~ + (1 - m) theta.

        Args:
            first: whether this was the run's first step.
        """
        if self.has_momentum:
            self.momentum.lerp_(self.theta, 1.0 if first and self.alias else 1 - self.decay)


def random_theta(num_vectors: int, dim: int, seed: int, bound: float = 768**-0.5) -> Tensor:
    """Draw an initial proxy instruction, [K, d] in fp32, uniform in [-bound, bound] (the authors' 1/sqrt(768))."""
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(num_vectors, dim).uniform_(-bound, bound, generator=generator)


def save_proxy(
    path: Path,
    vectors: Tensor,
    *,
    model: str,
    step: int,
    rule: UpdateRule,
    image_layout: Mapping[str, str | int] | None = None,
) -> None:
    """Write a proxy instruction as fp32 `.safetensors` with its K, d, model, step, rule and layout as metadata.

    Args:
        path: the file to write, complete or not at all.
        vectors: [K, d]; after fine-tuning these are the momentum copy, which the model was trained under.
        model: dotpath of the model's builder.
        step: optimizer steps taken.
        rule: the rule they were trained under.
        image_layout: how pictures were laid out meanwhile; each of its values is noted under its key.
    """
    count, dim = vectors.shape
    metadata = {"K": str(count), "d": str(dim), "model": model, "step": str(step), "rule": str(rule)}
    metadata |= {key: str(value) for key, value in (image_layout or {}).items()}
    with atomic_path(path) as temporary:
        save_file({_KEY: vectors.detach().float().cpu().contiguous()}, temporary, metadata)


def load_proxy(path: Path, num_vectors: int, dim: int) -> tuple[Tensor, dict[str, str]]:
    """Read a proxy instruction.

    Args:
        path: what `save_proxy` wrote.
        num_vectors: the K that the config expects.
        dim: the model's embedding width d.

    Returns:
        The vectors, [K, d] in fp32, and the file's metadata.

    Raises:
        ConfigError: if the file is missing or unreadable, or K or d do not match.
    """
    if not path.is_file():
        raise ConfigError(f"proxy.path: {path} does not exist; run ift_warmup_recipe first, it writes {PROXY_FILE}")
    try:
        with safe_open(path, framework="pt") as file:
            vectors, metadata = file.get_tensor(_KEY), file.metadata()
    except SafetensorError as error:
        raise ConfigError(f"proxy.path: {path} is no proxy instruction: {error}") from error
    if vectors.shape[0] != num_vectors:
        raise ConfigError(
            f"proxy.num_vectors: {num_vectors} does not match the {vectors.shape[0]} vectors in {path}; "
            f"set proxy.num_vectors={vectors.shape[0]} or repeat the warm-up"
        )
    if vectors.shape[1] != dim:
        raise ConfigError(
            f"proxy.path: the vectors in {path} are {vectors.shape[1]} wide and the model's embeddings {dim}; "
            f"they were made for {metadata.get('model')}: repeat the warm-up with this model"
        )
    return vectors, metadata
