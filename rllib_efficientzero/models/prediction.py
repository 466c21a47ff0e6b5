"""The prediction network f: latent -> policy logits and value logits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rllib_efficientzero.models.layers import Reduce, ResidualBlock, mlp


class Prediction(nn.Module):
    """A shared trunk and two MLP heads: latent -> (`[B, A]` policy logits, `[B, support]` value logits).

    The last layer of both heads is initialised with zeros: a uniform policy and value zero.
    """

    def __init__(self, trunk: nn.Module, policy: nn.Module, value: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.policy = policy
        self.value = value

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(latent)
        return self.policy(features), self.value(features)

    def value_logits(self, latent: Tensor) -> Tensor:
        """Latent -> only the value logits, `[B, support]`."""
        return self.value(self.trunk(latent))


def image_prediction(
    channels: int, cells: int, reduced_channels: int, num_blocks: int, hidden: Sequence[int], actions: int, support: int
) -> Prediction:
    """Makes the prediction for images: a residual trunk, and heads that begin with their own 1x1 convolution."""

    def head(out: int) -> nn.Module:
        return nn.Sequential(
            Reduce(channels, reduced_channels), mlp(reduced_channels * cells, hidden, out, zero_last=True)
        )

    trunk = nn.Sequential(*(ResidualBlock(channels) for _ in range(num_blocks)))
    return Prediction(trunk, policy=head(actions), value=head(support))


def vector_prediction(latent_size: int, hidden: Sequence[int], actions: int, support: int) -> Prediction:
    """Makes the prediction for vectors: heads directly on the latent."""
    return Prediction(
        nn.Identity(),
        policy=mlp(latent_size, hidden, actions, zero_last=True),
        value=mlp(latent_size, hidden, support, zero_last=True),
    )
