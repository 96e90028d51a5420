"""What stands in the slots while training varies: noise, dropout, or another proxy of a bank for each sample.

Every draw depends on seed, step and the sample's name alone, so that resuming, the number of processes and how a step is
divided into batches change nothing. Validation and reports see the proxy as it is.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ift_components.models.forward import Batch


@dataclass(frozen=True)
class ProxyVariation:
    """How the vectors in the slots are varied in the forward pass of training.

    Attributes:
        noise: standard deviation of Gaussian noise as a share of the root mean square of the vectors' entries.
        dropout: probability of each vector to be replaced by zeros (word dropout, Iyyer et al. 2015); the others stay as they
            are, because the layers' norms would undo a factor.
        bank: [n, K, d] proxies, one of which is drawn for each sample in place of the run's own; None takes that.
        seed: the run's seed.
    """

    noise: float = 0.0
    dropout: float = 0.0
    bank: Tensor | None = None
    seed: int = 0

    def __call__(self, proxy: Tensor, batch: Batch, step: int) -> Tensor:
        """Return the vectors for every row with slots, [r, K, d], through which gradients go to the proxy.

        Args:
            proxy: [K, d], the run's.
            batch: the samples.
            step: optimizer steps taken.
        """
        count = len(proxy)
        rows = (batch.slot_index[::count] // batch.tokens.shape[1]).tolist()
        generators = [np.random.default_rng((self.seed, step, zlib.crc32(batch.ids[row].encode()))) for row in rows]
        vectors = proxy.expand(len(rows), *proxy.shape)
        if self.bank is not None:
            numbers = [int(generator.integers(len(self.bank))) for generator in generators]
            vectors = self.bank.to(proxy.device)[numbers]
        if self.noise:
            size = vectors.detach().square().mean(dim=(1, 2), keepdim=True).sqrt()  # [r, 1, 1]
            drawn = [generator.standard_normal(proxy.shape, np.float32) for generator in generators]
            vectors = vectors + self.noise * size * _stack(drawn, proxy)
        if self.dropout:
            kept = [generator.random((count, 1), np.float32) >= self.dropout for generator in generators]
            vectors = vectors * _stack(kept, proxy)
        return vectors


def _stack(arrays: list[np.ndarray], like: Tensor) -> Tensor:
    shape = (0, *like.shape) if not arrays else (len(arrays), *arrays[0].shape)
    return torch.from_numpy(np.array(arrays, np.float32).reshape(shape)).to(like.device)
