"""The networks that the papers train, by name: `make_model("resnet18", ...)`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx

from examples.image_classification.models.densenet import DenseNet
from examples.image_classification.models.layers import Layers
from examples.image_classification.models.mlp import MLP
from examples.image_classification.models.pyramidnet import PyramidNet
from examples.image_classification.models.resnet import ResNet, ZeroPadding, bottleneck
from examples.image_classification.models.vgg import VGG
from examples.image_classification.models.vit import ViT
from examples.image_classification.models.wide_resnet import WideResNet
from examples.image_classification.names import hint

_small = partial(ResNet, blocks=(1, 1, 1), width=16, shortcut=ZeroPadding)

# Called with layers, image_shape, num_classes, and what of the network is to be smaller.
MODELS: dict[str, Callable[..., nnx.Module]] = {
    "mlp": MLP,
    "resnet8": _small,
    # At half the resolution: a fifth of the time on CPU, for what a laptop can train.
    "resnet8_half": partial(_small, stem_stride=2),
    "resnet20": partial(ResNet, blocks=(3, 3, 3), width=16, shortcut=ZeroPadding),
    "resnet18": ResNet,
    "resnet50": partial(ResNet, blocks=(3, 4, 6, 3), branch=bottleneck),
    "vgg11": partial(VGG, blocks=(1, 1, 2, 2, 2)),
    "vgg16": VGG,
    "densenet121": DenseNet,
    "wrn28_10": WideResNet,
    "pyramidnet110": PyramidNet,
    "vit_ti": ViT,
    "vit_s": partial(ViT, width=384, heads=6),
}


def make_model(
    name: str,
    *,
    num_classes: int,
    image_shape: Sequence[int],
    rngs: nnx.Rngs,
    dtype: Any = jnp.float32,
    **cut: Any,
) -> nnx.Module:
    """Returns a network with new weights, which maps images to float32 logits.

    Its variables are `nnx.Param` and `nnx.BatchStat`, all in float32. `model.train()` and
    `model.eval()` switch between the statistics of the batch and the running ones.

    Args:
        name: one of `MODELS`.
        num_classes: of the logits.
        image_shape: height, width and channels.
        rngs: of the weights.
        dtype: to compute in, up to the head.
        **cut: of the network's own arguments, those that make it smaller, as in `blocks=1`.

    Raises:
        ValueError: if there is no such network, or its patches do not tile the image.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; {hint(name, MODELS)}")
    return MODELS[name](Layers(rngs, dtype), image_shape, num_classes, **cut)
