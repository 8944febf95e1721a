"""Weights of timm: names, layouts, resized position embeddings, and errors."""

import dataclasses
import functools
import json
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from examples.experiments import evaluate, export
from examples.image_classification import __main__ as entry
from examples.image_classification.config import Config
from examples.image_classification.models import MODELS
from examples.image_classification.models.layers import Layers
from examples.image_classification.pretrained import load_pretrained, save_pretrained
from examples.training.train import prepare, train

# Arguments that make each network small, and images with the stem of large ones.
SMALL = {
    "vit_ti": {"blocks": 2, "width": 12},
    "vit_s": {"blocks": 1, "width": 12},
    "resnet18": {"blocks": (2, 1, 1, 2), "width": 4},
    "resnet50": {"blocks": (1, 2, 1, 1), "width": 4},
}
SIDE = {"vit_ti": 32, "vit_s": 32, "resnet18": 65, "resnet50": 65}
every_model = pytest.mark.parametrize("name", SMALL)


# One key for all layers, of a kind that compiles fast.
ONE_KEY = SimpleNamespace(params=functools.partial(jax.random.key, 0, impl="unsafe_rbg"))


@functools.cache
def structure(name, side, channels=3, **cut):
    """Returns the graph, and the shapes of parameters and statistics."""
    layers = Layers(ONE_KEY, conv_init=nnx.initializers.zeros)
    model = nnx.eval_shape(lambda: MODELS[name](layers, (side, side, channels), 5, **cut))
    model.eval()
    graph, *variables = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, *map(nnx.as_pure, variables)


def filled(tree, seed=0):
    """Every array is random, and positive, as variances are."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.array(rng.uniform(0.5, 1.5, x.shape), x.dtype), tree)


def network(name, seed=0, side=None):
    _, *trees = structure(name, side or SIDE[name], **SMALL[name])
    return filled(trees, seed)


# --- The tensors of timm, written independently ---


def norm_shapes(name, width, running=False):
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{kind}": (width,) for kind in (kinds if running else kinds[:2])}


def linear_shapes(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def vit_shapes(width, blocks, patch, grid, classes=5):
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, grid**2 + 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        **norm_shapes("norm", width),
        **linear_shapes("head", width, classes),
    }
    for i in range(blocks):
        shapes |= norm_shapes(f"blocks.{i}.norm1", width) | norm_shapes(f"blocks.{i}.norm2", width)
        shapes |= linear_shapes(f"blocks.{i}.attn.qkv", width, 3 * width)
        shapes |= linear_shapes(f"blocks.{i}.attn.proj", width, width)
        shapes |= linear_shapes(f"blocks.{i}.mlp.fc1", width, 4 * width)
        shapes |= linear_shapes(f"blocks.{i}.mlp.fc2", 4 * width, width)
    return shapes


def resnet_shapes(width, blocks, expansion, classes=5):
    shapes = {"conv1.weight": (width, 3, 7, 7), **norm_shapes("bn1", width, running=True)}
    before = width
    for stage, number in enumerate(blocks):
        inner = width * 2**stage
        after = inner * expansion
        for i in range(number):
            name = f"layer{stage + 1}.{i}"
            basic = ((before, inner, 3), (inner, after, 3))
            bottleneck = ((before, inner, 1), (inner, inner, 3), (inner, after, 1))
            for k, (a, b, side) in enumerate(basic if expansion == 1 else bottleneck, 1):
                shapes[f"{name}.conv{k}.weight"] = (b, a, side, side)
                shapes |= norm_shapes(f"{name}.bn{k}", b, running=True)
            if i == 0 and (stage > 0 or before != after):
                shapes[f"{name}.downsample.0.weight"] = (after, before, 1, 1)
                shapes |= norm_shapes(f"{name}.downsample.1", after, running=True)
            before = after
    return shapes | linear_shapes("fc", before, classes)


def small_shapes(name):
    cut, side = SMALL[name], SIDE[name]
    if name.startswith("vit"):
        return vit_shapes(cut["width"], cut["blocks"], 4, side // 4)
    return resnet_shapes(cut["width"], cut["blocks"], 4 if name == "resnet50" else 1)


def tensors_of_timm(name, seed=3):
    """Random weights for a small network. Variances are positive."""
    rng = np.random.default_rng(seed)
    return {
        key: rng.uniform(0.5, 1.5, shape).astype(np.float32)
        if key.endswith("running_var")
        else rng.normal(0.0, 0.4, shape).astype(np.float32)
        for key, shape in small_shapes(name).items()
    }


# The networks of timm 1.0.31, and the number of their tensors without num_batches_tracked.
FULL = {
    "vit_ti": (vit_shapes(192, 12, 16, 14, classes=1000), 152),
    "vit_s": (vit_shapes(384, 12, 16, 14, classes=1000), 152),
    "resnet18": (resnet_shapes(64, (2, 2, 2, 2), 1, classes=1000), 122 - 20),
    "resnet50": (resnet_shapes(64, (3, 4, 6, 3), 4, classes=1000), 320 - 53),
}


@every_model
def test_full_size_networks_load_half_precision(name, tmp_path):
    shapes, number = FULL[name]
    assert len(shapes) == number
    save_file({key: np.ones(shape, np.float16) for key, shape in shapes.items()}, tmp_path / "file")
    _, *old = structure(name, 224)
    new = load_pretrained(tmp_path / "file", name, *old)
    for before, after in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
    params, statistics = new
    assert params.pop("head") == old[0]["head"]  # which stays abstract
    arrays = map(np.asarray, jax.tree.leaves((params, statistics)))
    assert all(x.min() == 1 == x.max() for x in arrays)


@every_model
def test_saved_tensors_have_the_names_and_shapes_of_timm(name, tmp_path):
    save_pretrained(tmp_path / "file", name, *network(name))
    saved = load_file(tmp_path / "file")
    assert {key: x.shape for key, x in saved.items()} == small_shapes(name)
    assert {x.dtype for x in saved.values()} == {np.dtype(np.float32)}


@every_model
def test_a_saved_network_loads_again_but_for_the_head(name, tmp_path):
    saved, (params, statistics) = network(name, 1), network(name, 2)
    save_pretrained(tmp_path / "file", name, *saved)
    loaded = load_pretrained(tmp_path / "file", name, params, statistics)
    jax.tree.map(np.testing.assert_array_equal, loaded[0]["head"], params["head"])
    loaded[0]["head"] = saved[0]["head"]
    jax.tree.map(np.testing.assert_array_equal, list(loaded), saved)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(loaded))


def test_elements_of_a_vit_move_to_our_layout(tmp_path):
    tensors = tensors_of_timm("vit_ti")
    save_file(tensors, tmp_path / "file")
    params, _ = load_pretrained(tmp_path / "file", "vit_ti", *network("vit_ti"))
    ours, block = params["blocks"][1], "blocks.1"
    at = lambda key, *index: tensors[key][index]  # noqa: E731
    assert params["embed"]["kernel"][1, 2, 0, 7] == at("patch_embed.proj.weight", 7, 0, 1, 2)
    # Three heads of four numbers each: number 1 of head 2 is number 9 of its token.
    for i, part in enumerate(("query", "key", "value")):
        attention = ours["attention"][part]
        assert attention["kernel"][5, 2, 1] == at(f"{block}.attn.qkv.weight", 12 * i + 9, 5)
        assert attention["bias"][2, 1] == at(f"{block}.attn.qkv.bias", 12 * i + 9)
    assert ours["attention"]["out"]["kernel"][2, 1, 5] == at(f"{block}.attn.proj.weight", 5, 9)
    assert ours["expand"]["kernel"][3, 40] == at(f"{block}.mlp.fc1.weight", 40, 3)
    assert ours["contract"]["bias"][3] == at(f"{block}.mlp.fc2.bias", 3)
    assert ours["attention_norm"]["scale"][3] == at(f"{block}.norm1.weight", 3)
    assert ours["mlp_norm"]["bias"][3] == at(f"{block}.norm2.bias", 3)
    np.testing.assert_array_equal(params["positions"], tensors["pos_embed"])
    np.testing.assert_array_equal(params["class_token"], tensors["cls_token"])


def test_elements_of_a_resnet_move_to_our_layout(tmp_path):
    tensors = tensors_of_timm("resnet18")
    save_file(tensors, tmp_path / "file")
    params, statistics = load_pretrained(tmp_path / "file", "resnet18", *network("resnet18"))
    # Block 2 is the first of the second stage, and block 5 the second of the last.
    kernel = params["blocks"][5]["branch"]["layers"][3]["kernel"]
    assert kernel[0, 2, 30, 5] == tensors["layer4.1.conv2.weight"][5, 30, 0, 2]
    first = {**params["blocks"][2]["shortcut"]["layers"][1]}
    first |= statistics["blocks"][2]["shortcut"]["layers"][1]
    for ours, theirs in zip(
        ("scale", "bias", "mean", "var"),
        ("weight", "bias", "running_mean", "running_var"),
        strict=True,
    ):
        np.testing.assert_array_equal(first[ours], tensors[f"layer2.0.downsample.1.{theirs}"])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_every_float_becomes_float32(dtype, tmp_path):
    tensors = {key: x.astype(jnp.dtype(dtype)) for key, x in tensors_of_timm("vit_ti").items()}
    save_file(tensors, tmp_path / "file")
    params, _ = load_pretrained(tmp_path / "file", "vit_ti", *network("vit_ti"))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    kernel = tensors["blocks.0.mlp.fc1.weight"].T.astype(np.float32)
    np.testing.assert_array_equal(params["blocks"][0]["expand"]["kernel"], kernel)


def test_loaded_arrays_keep_the_sharding(tmp_path):
    params, statistics = network("vit_ti")
    sharding = jax.sharding.NamedSharding(jax.make_mesh((1,), ("data",)), jax.P())
    params = jax.device_put(params, sharding)
    save_pretrained(tmp_path / "file", "vit_ti", params, statistics)
    loaded, _ = load_pretrained(tmp_path / "file", "vit_ti", params, statistics)
    assert {x.sharding for x in jax.tree.leaves(loaded)} == {sharding}


# --- Position embeddings ---


def cubic(x):
    """The kernel of Keys with a = -1/2."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def resize_matrix(old, new):
    """One row for each new position, with weights that average where the grid shrinks."""
    ratio = old / new
    weights = np.array(
        [
            [cubic(((i + 0.5) * ratio - 0.5 - j) / max(ratio, 1.0)) for j in range(old)]
            for i in range(new)
        ]
    )
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("side", [20, 52])
def test_position_embeddings_are_resized_bicubically(side, tmp_path):
    """From 8 x 8 patches to fewer and to more."""
    new = side // 4
    tensors = tensors_of_timm("vit_ti")
    token, grid = np.split(np.float64(tensors["pos_embed"][0]), [1])
    matrix = resize_matrix(8, new)
    expected = np.einsum("ia,jb,abc->ijc", matrix, matrix, grid.reshape(8, 8, -1))
    save_file(tensors, tmp_path / "file")
    _, *old = structure("vit_ti", side, patch=4, **SMALL["vit_ti"])
    params, _ = load_pretrained(tmp_path / "file", "vit_ti", *filled(old))
    np.testing.assert_array_equal(params["positions"][0, :1], np.float32(token))
    np.testing.assert_allclose(
        params["positions"][0, 1:], expected.reshape(new**2, -1), rtol=1e-5, atol=1e-5
    )


# --- Errors ---


def error_of(tmp_path, name, tensors, side=None, model=None):
    """Returns the one line of an error, without the file."""
    file = tmp_path / "file"
    save_file(tensors, file)
    with pytest.raises(ValueError) as caught:
        load_pretrained(file, model or name, *network(name, side=side))
    text = str(caught.value)
    assert text.startswith(str(file)) or model
    assert "\n" not in text
    return text.removeprefix(str(file))


def test_models_without_weights_raise(tmp_path):
    message = "vgg11 has no pretrained weights: resnet18, resnet50, vit_mini, vit_ti, vit_s have"
    assert error_of(tmp_path, "vit_ti", {}, model="vgg11") == message
    with pytest.raises(ValueError, match="vgg11 has no pretrained weights"):
        save_pretrained(tmp_path / "other", "vgg11", *network("vit_ti"))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("file", "reason"), [("missing", "No such file"), (".", "Is a dir")])
def test_missing_files_raise(file, reason, tmp_path):
    with pytest.raises(OSError, match=f"{reason}.*{tmp_path}"):
        load_pretrained(tmp_path / file, "vit_ti", *network("vit_ti"))


def test_a_missing_folder_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        save_pretrained(tmp_path / "missing" / "file", "vit_ti", *network("vit_ti"))


@pytest.mark.parametrize("damage", ["empty", "cut", "pickle"])
def test_damaged_files_raise(damage, tmp_path):
    file = tmp_path / "file"
    save_pretrained(file, "vit_ti", *network("vit_ti"))
    whole = file.read_bytes()
    file.write_bytes({"empty": b"", "cut": whole[:-1], "pickle": b"PK\x03\x04" + whole}[damage])
    with pytest.raises(ValueError, match=r"is damaged, or not a safetensors file \(.+\)$"):
        load_pretrained(file, "vit_ti", *network("vit_ti"))


def test_missing_tensors_raise(tmp_path):
    tensors = tensors_of_timm("vit_ti")
    message = " does not fit vit_ti: missing tensors: 1 (cls_token)"
    del tensors["cls_token"]
    assert error_of(tmp_path, "vit_ti", tensors) == message
    tensors = {key: x for key, x in tensors.items() if "norm1" not in key and "attn" not in key}
    kinds = ("attn.proj.bias", "attn.proj.weight", "attn.qkv.bias", "attn.qkv.weight")
    listed = ", ".join(f"blocks.0.{kind}" for kind in kinds)
    message = f" does not fit vit_ti: missing tensors: 13 ({listed}, blocks.0.norm1.bias, ...)"
    assert error_of(tmp_path, "vit_ti", tensors) == message


def test_unknown_tensors_raise(tmp_path):
    """The tensors of DeiT's distilled networks."""
    tensors = tensors_of_timm("vit_ti")
    tensors |= {"dist_token": tensors["cls_token"], "head_dist.weight": tensors["head.weight"]}
    message = " does not fit vit_ti: unknown tensors: 2 (dist_token, head_dist.weight)"
    assert error_of(tmp_path, "vit_ti", tensors) == message


def test_the_file_of_another_network_raises(tmp_path):
    text = error_of(tmp_path, "vit_ti", tensors_of_timm("resnet18"))
    assert text.startswith(" does not fit vit_ti: missing tensors: 30 (blocks.0.attn")
    assert ", unknown tensors: 80 (bn1.bias, " in text


def test_heads_and_counters_are_ignored(tmp_path):
    tensors = tensors_of_timm("resnet18")
    del tensors["fc.weight"], tensors["fc.bias"]
    tensors |= {"bn1.num_batches_tracked": np.array(7), "head.fc.weight": np.ones((2, 3), int)}
    save_file(tensors, tmp_path / "file")
    load_pretrained(tmp_path / "file", "resnet18", *network("resnet18"))


def test_other_widths_raise(tmp_path):
    tensors = tensors_of_timm("vit_ti")
    tensors["norm.bias"] = np.ones(13, np.float32)
    message = (
        " does not fit vit_ti: norm.bias has the shape (13,) in the file and (12,) in the network"
    )
    assert error_of(tmp_path, "vit_ti", tensors) == message
    tensors["norm.weight"] = np.ones((12, 1), np.float32)
    others = error_of(tmp_path, "vit_ti", tensors).removeprefix(message)
    assert others == ", and 1 more differ: norm.weight"


@pytest.mark.parametrize("shape", [(1, 64, 12), (1, 0, 12), (1, 1, 12), (780,), (2, 50, 12)])
def test_position_embeddings_without_a_square_grid_raise(shape, tmp_path):
    tensors = tensors_of_timm("vit_ti") | {"pos_embed": np.ones(shape, np.float32)}
    text = error_of(tmp_path, "vit_ti", tensors)
    assert text.endswith(
        f": pos_embed has the shape {shape} in the file and (1, 65, 12) in the network"
    )


def test_stems_for_small_images_name_the_image_size(tmp_path):
    tensors = tensors_of_timm("resnet18")
    text = error_of(tmp_path, "resnet18", tensors, side=64)
    assert text == (
        " does not fit resnet18: conv1.weight has the shape (4, 3, 7, 7) in the file and "
        "(4, 3, 3, 3) in the network for small images: --image-size 224, or any over 64, gives "
        "that of the file"
    )
    tensors["layer1.0.bn1.bias"] = np.ones(5, np.float32)  # so that the size is not all
    text = error_of(tmp_path, "resnet18", tensors, side=64)
    assert text.endswith("in the network, and 1 more differ: layer1.0.bn1.bias")


def test_patches_for_small_images_name_the_image_size(tmp_path):
    tensors = tensors_of_timm("vit_ti")
    tensors["patch_embed.proj.weight"] = np.ones((12, 3, 16, 16), np.float32)
    text = error_of(tmp_path, "vit_ti", tensors)
    assert "(12, 3, 16, 16) in the file and (12, 3, 4, 4) in the network" in text
    assert text.endswith("--image-size 224, or any over 64, gives that of the file")
    tensors["patch_embed.proj.weight"] = np.ones((12, 3, 32, 32), np.float32)
    assert error_of(tmp_path, "vit_ti", tensors).endswith("(12, 3, 4, 4) in the network")


def write_raw(file, dtype, bytes_each):
    """Writes one tensor of a dtype that NumPy may lack."""
    header = {"cls_token": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4 * bytes_each]}}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4 * bytes_each))


@pytest.mark.parametrize(("dtype", "bytes_each"), [("F8_E4M3", 1), ("I64", 8), ("BOOL", 1)])
def test_other_dtypes_raise(dtype, bytes_each, tmp_path):
    write_raw(tmp_path / "file", dtype, bytes_each)
    with pytest.raises(ValueError, match=f"cls_token is {dtype}, not one of F64, F32, F16, BF16$"):
        load_pretrained(tmp_path / "file", "vit_ti", *network("vit_ti"))


# --- Logits ---


def vit_in_torch(torch, w, x, heads=3):
    functional = torch.nn.functional

    def linear(name, x):
        return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name, x):
        weight = w[f"{name}.weight"]
        return functional.layer_norm(x, weight.shape, weight, w[f"{name}.bias"], 1e-6)

    weight = w["patch_embed.proj.weight"]
    x = functional.conv2d(x, weight, w["patch_embed.proj.bias"], stride=weight.shape[-1])
    x = x.flatten(2).mT
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + w["pos_embed"]
    for i in range(sum(name.endswith("qkv.bias") for name in w)):
        qkv = linear(f"blocks.{i}.attn.qkv", norm(f"blocks.{i}.norm1", x))
        q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, 2))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + linear(f"blocks.{i}.attn.proj", mixed)
        hidden = linear(f"blocks.{i}.mlp.fc1", norm(f"blocks.{i}.norm2", x))
        x = x + linear(f"blocks.{i}.mlp.fc2", functional.gelu(hidden))
    return linear("head", norm("norm", x)[:, 0])


def resnet_in_torch(torch, w, x):
    functional = torch.nn.functional

    def conv_norm(conv, norm, x, stride=1):
        weight = w[f"{conv}.weight"]
        x = functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, var = w[f"{norm}.running_mean"], w[f"{norm}.running_var"]
        return functional.batch_norm(x, mean, var, w[f"{norm}.weight"], w[f"{norm}.bias"])

    x = functional.relu(conv_norm("conv1", "bn1", x, 2))
    x = functional.max_pool2d(x, 3, 2, 1)
    # Names in the order of the file, which is that of the network.
    for block in dict.fromkeys(name.rsplit(".conv", 1)[0] for name in w if ".conv" in name):
        last = 3 if f"{block}.conv3.weight" in w else 2
        stride = 2 if block.endswith(".0") and not block.startswith("layer1") else 1
        strided = 2 if last == 3 else 1  # a bottleneck strides in its second convolution
        y = x
        for k in range(1, last + 1):
            y = conv_norm(f"{block}.conv{k}", f"{block}.bn{k}", y, stride if k == strided else 1)
            y = functional.relu(y) if k < last else y
        if f"{block}.downsample.0.weight" in w:
            x = conv_norm(f"{block}.downsample.0", f"{block}.downsample.1", x, stride)
        x = functional.relu(x + y)
    return functional.linear(x.mean((2, 3)), w["fc.weight"], w["fc.bias"])


@pytest.mark.parametrize("name", ["vit_ti", "resnet18", "resnet50"])
def test_logits_are_those_of_torch(name, tmp_path):
    torch = pytest.importorskip("torch")
    tensors, side = tensors_of_timm(name), SIDE[name]
    images = np.random.default_rng(4).normal(size=(3, side, side, 3)).astype(np.float32)
    forward, head = (vit_in_torch, "head") if name.startswith("vit") else (resnet_in_torch, "fc")
    weights = {key: torch.from_numpy(x).double() for key, x in tensors.items()}
    expected = forward(torch, weights, torch.from_numpy(images).double().permute(0, 3, 1, 2))

    save_file(tensors, tmp_path / "file")
    graph, *old = structure(name, side, **SMALL[name])
    params, statistics = load_pretrained(tmp_path / "file", name, *filled(old))
    params["head"] = {"kernel": tensors[f"{head}.weight"].T, "bias": tensors[f"{head}.bias"]}
    logits = jax.jit(lambda x: nnx.merge(graph, params, statistics)(x))(images)
    # Float32 against float64.
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * abs(expected).max().item())


def test_gray_images_see_the_sum_of_the_colors(tmp_path):
    """A gray image as three equal colors has the same logits."""
    (color, first, _), (gray, second, _) = (
        structure("vit_ti", 16, channels, blocks=1, width=12) for channels in (3, 1)
    )
    first, second = filled(first, 1), filled(second, 2)
    save_pretrained(tmp_path / "weights", "vit_ti", first, {})
    params, _ = load_pretrained(tmp_path / "weights", "vit_ti", second, {})
    params["head"] = first["head"]
    image = np.random.default_rng(0).normal(size=(2, 16, 16, 1)).astype(np.float32)
    expected = jax.jit(lambda x: nnx.merge(color, first)(x))(image.repeat(3, axis=-1))
    found = jax.jit(lambda x: nnx.merge(gray, params)(x))(image)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# --- Training from a file ---


def narrow(monkeypatch):
    monkeypatch.setitem(
        MODELS, "resnet18", functools.partial(MODELS["resnet18"], blocks=(1, 1), width=4)
    )


def test_a_run_starts_from_the_weights_of_another(monkeypatch, tmp_path):
    """Here with a method whose state has a perturbation of the parameters."""
    narrow(monkeypatch)
    common = {"model": "resnet18", "train_size": 64, "batch_size": 32, "epochs": 1, "rho": 0.05}
    first = Config(**common, method="sgd", out=tmp_path / "first", seed=1)
    first = dataclasses.replace(first, rho=None)
    train(first, show=False)
    weights = tmp_path / "weights.safetensors"
    assert export.main([str(first.out), str(weights)]) == 0
    config = Config(**common, method="sampa", init=weights, out=tmp_path / "second")
    run = prepare(config)
    state, trained = run.program.start(run.traced), evaluate.restore(first.out).state
    own = run.program.init(run.traced)
    for name, leaf in state.params.items():
        expected = own.params if name == "head" else trained.params
        chex.assert_trees_all_equal(leaf, expected[name])
    chex.assert_trees_all_equal(state.statistics, trained.statistics)
    built = run.program._make_optimizer(run.traced).init(state.params)
    chex.assert_trees_all_close(state.opt_state, built)
    run.folder._lock.release()
    train(config, show=False)  # and trains
    weights.unlink()
    assert train(config, show=False)[-1]["epoch"] == 1  # a finished run needs no file


def test_weights_that_do_not_fit_are_one_line(monkeypatch, tmp_path, capsys):
    narrow(monkeypatch)
    words = ["--model", "mlp", "--epochs", "1", "--method", "sgd", "--out", str(tmp_path / "run")]
    assert entry.main([*words, "--init", str(tmp_path / "none.safetensors")]) == 2
    [line] = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("image_classification: error: ")
    assert "mlp has no pretrained weights" in line
    assert not (tmp_path / "run").exists()
