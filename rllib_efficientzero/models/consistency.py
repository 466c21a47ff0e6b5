"""The consistency heads P1 and P2 and their loss (SimSiam, as EfficientZero uses it; section 4.1 of the paper)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from rllib_efficientzero.models.config import ModelConfig
from rllib_efficientzero.models.layers import mlp


class ConsistencyHeads(nn.Module):
    """P1 `projector` on latents of both branches, P2 `predictor` on the imagined branch only."""

    def __init__(self, latent_features: int, config: ModelConfig) -> None:
        super().__init__()
        hidden, out = config.projector_hidden, config.projector_out
        self.projector = nn.Sequential(
            nn.Flatten(1),
            nn.Linear(latent_features, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, out),
            nn.BatchNorm1d(out),
        )
        self.predictor = mlp(out, [config.predictor_hidden], out)

    def project(self, latent: Tensor) -> Tensor:
        """Latents of real observations -> `[B, projector_out]`."""
        return self.projector(latent)

    def predict(self, latent: Tensor) -> Tensor:
        """Imagined latents -> `[B, projector_out]`."""
        return self.predictor(self.projector(latent))


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """-cos(prediction, target) over the last axis, `[..., n]` -> `[...]` in -1..1. The target gets no gradient."""
    prediction = F.normalize(prediction.float(), dim=-1, eps=1e-5)
    target = F.normalize(target.detach().float(), dim=-1, eps=1e-5)
    return -(prediction * target).sum(dim=-1)
