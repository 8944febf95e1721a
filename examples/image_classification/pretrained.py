"""Loads and saves weights in safetensors files with the names and layouts of timm.

The networks are `resnet18`, `resnet50`, `vit_mini` (with no equal in timm), `vit_ti` (timm's
vit_tiny_patch16_224 or deit_tiny_patch16_224) and `vit_s` (vit_small_patch16_224 or
deit_small_patch16_224). With the same weights they compute the same logits as timm's networks.
Position embeddings of another image size are resized as timm does, and for gray images its weights
of the three colors are added up. These differences remain:

- For images up to 64 pixels our ResNets have a smaller stem, and our ViTs smaller patches. Weights
  for larger images do not fit and raise.
- The distilled networks of DeiT have another token. Their files raise.
- Our BatchNorm averages the biased variance of a batch, that of timm the unbiased one.
- Our data sets set the mean and standard deviation that normalize pixels. The weights of vit_* were
  trained with 0.5 for both, those of deit_* and resnet* with the values of ImageNet.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

Names = dict[str, str]
Shape = tuple[int, ...]
Tensors = dict[str, Any]

# Parts of our names, and of timm's. All are replaced, in this order.
VIT = {
    "embed.": "patch_embed.proj.",
    "class_token": "cls_token",
    "positions": "pos_embed",
    "attention_norm": "norm1",
    "attention.query": "attn.qkv",
    "attention.key": "attn.qkv",
    "attention.value": "attn.qkv",
    "attention.out": "attn.proj",
    "mlp_norm": "norm2",
    "expand": "mlp.fc1",
    "contract": "mlp.fc2",
    "kernel": "weight",
    "scale": "weight",
}
RESNET = {
    "stem.layers.0": "conv1",
    "stem.layers.1": "bn1",
    "branch.layers.0": "conv1",
    "branch.layers.1": "bn1",
    "branch.layers.3": "conv2",
    "branch.layers.4": "bn2",
    "branch.layers.6": "conv3",
    "branch.layers.7": "bn3",
    "shortcut.layers": "downsample",
    "head": "fc",
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
NAMES = dict.fromkeys(("resnet18", "resnet50"), RESNET)
NAMES |= dict.fromkeys(("vit_mini", "vit_ti", "vit_s"), VIT)
QKV = ("query", "key", "value")  # the order in which timm stacks them
HEADS = ("head.", "fc.")
FLOATS = ("F64", "F32", "F16", "BF16")
# Kernels of the networks for large images.
LARGE_IMAGES = {"conv1.weight": (7, 7), "patch_embed.proj.weight": (16, 16)}
MAX_LISTED = 5  # names in one message


def load_pretrained(path: Path, model_name: str, params: Any, statistics: Any) -> tuple[Any, Any]:
    """Returns parameters and running statistics with the weights of a file, but the same head.

    Args:
      path: A safetensors file with the names of timm, in 16 bits or more.
      model_name: `resnet18`, `resnet50`, `vit_mini`, `vit_ti` or `vit_s`.
      params: The parameters of the network, which give shapes, shardings, and the head.
      statistics: The running statistics of BatchNorm.

    Raises:
      ValueError: The network has no names in timm, or the file is damaged or does not fit.
      OSError: The file cannot be read.
    """
    in_timm = jax.eval_shape(partial(_to_timm, model_name), params, statistics)
    shapes = {name: x.shape for name, x in in_timm.items() if not name.startswith(HEADS)}
    tensors = _read(path)
    _check_names(set(tensors), set(shapes), f"{path} does not fit {model_name}")
    for name in {"patch_embed.proj.weight", "conv1.weight"} & shapes.keys():
        if (tensors[name].shape[1:2], shapes[name][1]) == ((3,), 1):  # gray images
            tensors[name] = tensors[name].sum(axis=1, keepdims=True)
    if "pos_embed" in shapes:
        tensors["pos_embed"] = _resize_positions(tensors["pos_embed"], shapes["pos_embed"])
    _check_shapes(tensors, shapes, f"{path} does not fit {model_name}")
    table = _name_table(model_name, params)

    def load(key_path: Any, leaf: jax.Array) -> jax.Array:
        own_name, name = _names(key_path, table)
        if name.startswith(HEADS):
            return leaf
        array = tensors[name]
        if ".qkv." in name:
            array = np.split(array, 3)[_part(own_name)]
        if array.ndim in (2, 4):  # from (out, in, ...) to (..., in, out)
            array = array.transpose(*range(2, array.ndim), 1, 0)
        return jax.device_put(array.reshape(leaf.shape).astype(np.float32), leaf.sharding)

    return jax.tree.map_with_path(load, params), jax.tree.map_with_path(load, statistics)


def save_pretrained(path: Path, model_name: str, params: Any, statistics: Any) -> None:
    """Writes a network, with its head, to a safetensors file that timm can load.

    Args:
      path: The file. An old one is replaced.
      model_name: `resnet18`, `resnet50`, `vit_ti` or `vit_s`.
      params: The parameters of the network.
      statistics: The running statistics of BatchNorm.

    Raises:
      ValueError: The network has no names in timm.
      OSError: The file cannot be written.
    """
    tensors = _to_timm(model_name, *jax.tree.map(np.asarray, (params, statistics)))
    # safetensors writes an array's memory, where a transposed array still has the old order.
    path.write_bytes(save({name: np.ascontiguousarray(x) for name, x in tensors.items()}))


def _to_timm(model_name: str, params: Any, statistics: Any) -> Tensors:
    """Returns the arrays of a network with the names and layouts of timm."""
    table = _name_table(model_name, params)
    parts: dict[str, dict[int, Any]] = {}
    leaves = jax.tree.leaves_with_path(params) + jax.tree.leaves_with_path(statistics)
    for key_path, array in leaves:
        own_name, name = _names(key_path, table)
        if "attention." in own_name:  # heads have an own axis
            if own_name.endswith("bias"):
                array = array.reshape(-1)
            elif own_name.endswith("out.kernel"):
                array = array.reshape(-1, array.shape[-1])
            else:
                array = array.reshape(array.shape[0], -1)
        if array.ndim in (2, 4):  # from (..., in, out) to (out, in, ...)
            array = array.transpose(-1, -2, *range(array.ndim - 2))
        parts.setdefault(name, {})[_part(own_name)] = array
    return {
        name: jnp.concatenate([found[i] for i in sorted(found)]) if len(found) > 1 else found[0]
        for name, found in parts.items()
    }


def _names(key_path: Any, table: Names) -> tuple[str, str]:
    """Returns our name and timm's name of an array."""
    own_name = name = jax.tree_util.keystr(key_path, simple=True, separator=".")
    for ours, theirs in table.items():
        name = name.replace(ours, theirs)
    return own_name, name


def _part(own_name: str) -> int:
    """Returns the place of an array among those that are one tensor in timm."""
    return next((i for i, part in enumerate(QKV) if f".{part}." in own_name), 0)


def _name_table(model_name: str, params: Any) -> Names:
    """Returns the replacements for a network, with those of its blocks."""
    if model_name not in NAMES:
        raise ValueError(f"{model_name} has no pretrained weights: {', '.join(NAMES)} have")
    if NAMES[model_name] is VIT:
        return VIT
    stage, block, table = 0, 0, {}
    for index in sorted(params["blocks"]):
        is_first = index == 0 or "shortcut" in params["blocks"][index]
        stage, block = (stage + 1, 0) if is_first else (stage, block + 1)
        table[f"blocks.{index}."] = f"layer{stage}.{block}."
    return table | RESNET


def _read(path: Path) -> Tensors:
    """Returns the tensors of a file, without those of the head."""
    if path.is_dir():
        text = f"Is a directory: {path} (examples.experiments.export writes the file of a run)"
        raise IsADirectoryError(text)
    path.open("rb").close()  # safetensors calls a file missing that it may not read
    tensors = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                if name.startswith(HEADS) or name.endswith("num_batches_tracked"):
                    continue
                dtype = file.get_slice(name).get_dtype()
                if dtype not in FLOATS:
                    raise ValueError(f"{path}: {name} is {dtype}, not one of {', '.join(FLOATS)}")
                tensors[name] = file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or not a safetensors file ({error})") from error
    return tensors


def _check_names(found: set[str], needed: set[str], where: str) -> None:
    """Raises ValueError for tensors that are missing or unknown."""
    texts = []
    for what, names in (("missing", needed - found), ("unknown", found - needed)):
        if names:
            listed = sorted(names)[:MAX_LISTED] + ["..."] * (len(names) > MAX_LISTED)
            texts.append(f"{what} tensors: {len(names)} ({', '.join(listed)})")
    if texts:
        raise ValueError(f"{where}: {', '.join(texts)}")


def _check_shapes(tensors: Tensors, shapes: dict[str, Shape], where: str) -> None:
    """Raises ValueError for tensors of another shape, and lists the first ones."""
    wrong = [name for name in shapes if tensors[name].shape != shapes[name]]
    if not wrong:
        return
    name, *others = wrong
    found = tensors[name].shape
    text = f"{where}: {name} has the shape {found} in the file and {shapes[name]} in the network"
    if others:
        listed = ", ".join([*others[:4], *["..."] * (len(others) > 4)])
        text += f", and {len(others)} more differ: {listed}"
    elif found[2:] == LARGE_IMAGES.get(name):
        text += " for small images: --image-size 224, or any over 64, gives that of the file"
    raise ValueError(text)


def _resize_positions(tensor: Any, shape: Shape) -> Any:
    """Returns position embeddings for another square grid of patches, as timm resizes them."""
    width = shape[2]
    sizes = tensor.size, math.prod(shape)
    old, new = (math.isqrt(max(size // width - 1, 0)) for size in sizes)
    are_squares = (tensor.shape, shape) == ((1, old**2 + 1, width), (1, new**2 + 1, width))
    if old in (0, new) or not are_squares:
        return tensor
    token, grid = np.split(tensor.astype(np.float32), [1], axis=1)
    resized = jax.image.resize(
        grid.reshape(old, old, -1),
        (new, new, width),
        "cubic",
        precision=jax.lax.Precision.HIGHEST,  # GPUs and TPUs would lose half of the digits
    )
    return np.concatenate([token, np.reshape(resized, (1, new**2, -1))], axis=1)
