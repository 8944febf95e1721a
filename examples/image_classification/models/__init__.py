"""The networks of the papers by name, as in `make_model("resnet18", ...)`."""

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
from examples.training.check_name import check_name

_small = partial(ResNet, blocks=(1, 1, 1), width=16, shortcut=ZeroPadding)

# Each is called with layers, image_shape, num_classes, and arguments that make it smaller.
MODELS: dict[str, Callable[..., nnx.Module]] = {
    "mlp": MLP,
    "resnet8": _small,
    # Half the resolution takes a fifth of the time on CPU, so that a laptop can train it.
    "resnet8_half": partial(_small, stem_stride=2),
    "resnet20": partial(ResNet, blocks=(3, 3, 3), width=16, shortcut=ZeroPadding),
    "resnet18": ResNet,
    "resnet50": partial(ResNet, blocks=(3, 4, 6, 3), branch=bottleneck),
    "vgg11": partial(VGG, blocks=(1, 1, 2, 2, 2), hidden=(4096, 4096)),  # as in XSAM's code
    # As in other code of F-SAM's authors. The file is missing in F-SAM's.
    "vgg16": partial(VGG, hidden=(512, 512), dropout_first=True),
    "densenet121": DenseNet,
    "wrn28_10": WideResNet,
    "pyramidnet110": PyramidNet,
    "vit_mini": partial(ViT, blocks=4, width=96),  # for a CPU
    "vit_ti": ViT,
    "vit_s": partial(ViT, width=384, heads=6),
}

# Those that are as fast under `jax.vmap` over runs as their arithmetic allows, on CPU, too.
MATRIX_PRODUCTS = ("mlp", "vit_mini", "vit_ti", "vit_s")


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
    `model.eval()` switch between the statistics of the batch and the running ones. For
    training call `training.program.set_dropout_key`, too.

    Args:
      name: A name of `MODELS`.
      num_classes: Number of classes.
      image_shape: Height, width and channels.
      rngs: Random numbers for the weights.
      dtype: Dtype of all computations before the head.
      **cut: Arguments of the network that make it smaller, as in `blocks=1`.

    Raises:
      ValueError: The name is unknown, or patches do not tile the image.
    """
    check_name("model", name, MODELS)
    return MODELS[name](Layers(rngs, dtype), image_shape, num_classes, **cut)
