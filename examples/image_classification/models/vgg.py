"""VGG with BatchNorm (Simonyan and Zisserman, https://arxiv.org/abs/1409.1556), as for CIFAR.

The head stands on the mean over pixels. Its hidden layers have ReLU and Dropout at a rate of 0.5,
after the layer as in torchvision, or before it as in its first version. Convolutions start as He
normal over the outputs, the head as torch.nn.Linear with a zero bias.
"""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from examples.image_classification.models.layers import Layers, global_average_pool, max_pool_2x2


class VGG(nnx.Module):
    """Stages of 3 x 3 convolutions, each of which ends with max pooling.

    The convolutions have no bias, since BatchNorm would subtract it. Other counts include biases.

    Args:
      layers: Makes the layers.
      image_shape: Height, width and channels.
      num_classes: Number of classes.
      blocks: Convolutions of each stage.
      width: Width of the first stage. It doubles from stage to stage, up to eight times.
      hidden: Widths of the hidden layers of the head.
      dropout_first: Whether Dropout comes before a hidden layer, not after its ReLU.
    """

    def __init__(
        self,
        layers: Layers,
        image_shape: Sequence[int],
        num_classes: int,
        blocks: Sequence[int] = (2, 2, 3, 3, 3),
        width: int = 64,
        hidden: Sequence[int] = (),
        dropout_first: bool = False,
    ) -> None:
        features: list[Any] = []
        in_width = image_shape[-1]
        for stage, number in enumerate(blocks):
            out_width = width * min(2**stage, 8)
            for _ in range(number):
                features += [*layers.conv_norm(in_width, out_width), nnx.relu]
                in_width = out_width
            features.append(max_pool_2x2)
        self.features = nnx.Sequential(*features)
        head: list[Any] = []
        for out_width in hidden:
            layer, dropout = [layers.linear(in_width, out_width), nnx.relu], [nnx.Dropout(0.5)]
            head += dropout + layer if dropout_first else layer + dropout
            in_width = out_width
        self.head = nnx.Sequential(*head, layers.head(in_width, num_classes))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns float32 logits of images of shape (batch, height, width, channels)."""
        return self.head(global_average_pool(self.features(images)))
