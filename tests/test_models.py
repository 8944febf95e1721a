"""The networks of the image classification example: published sizes, shapes, dtypes, statistics."""

import functools
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import Literal, jaxprs_in_params

from examples.image_classification.models import MODELS, make_model, vit
from examples.image_classification.models.layers import (
    Layers,
    average_pool_2x2,
    max_pool_2x2,
)
from examples.image_classification.models.pyramidnet import PyramidBlock
from examples.image_classification.models.resnet import ResidualBlock, ZeroPadding, basic
from examples.image_classification.models.wide_resnet import PreActivationBlock
from examples.training.program import set_dropout_key

# Arguments that make each network narrow, with one block per stage.
SMALL = {
    "mlp": {"width": 8},
    "resnet8": {"width": 4},
    "resnet8_half": {"width": 4},
    "resnet20": {"blocks": (1, 1, 1), "width": 4},
    "resnet18": {"blocks": (1, 1, 1, 1), "width": 4},
    "resnet50": {"blocks": (1, 1, 1, 1), "width": 4},
    "vgg11": {"blocks": (1, 1, 1, 1, 1), "width": 4, "hidden": (8, 8)},
    "vgg16": {"blocks": (1, 1, 1, 1, 1), "width": 4, "hidden": (8, 8)},
    "densenet121": {"blocks": (1, 1, 1, 1), "growth": 4},
    "wrn28_10": {"blocks": 1, "widen": 1},
    "pyramidnet110": {"blocks": 1, "alpha": 12},
    "vit_ti": {"blocks": 1, "width": 12},
    "vit_s": {"blocks": 1, "width": 12},
    "vit_mini": {"blocks": 1, "width": 12},
}
# Equal to vgg11, resnet8, and vit_ti in this form.
ALIKE = {"vgg16", "resnet20", "vit_s", "vit_mini"}
# A group, since its tests share traces.
every_structure = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in sorted({*SMALL} - ALIKE)]
)

# One key for all layers, of a kind that compiles fast.
ONE_KEY = SimpleNamespace(params=functools.partial(jax.random.key, 0, impl="unsafe_rbg"))
DIGITS, MNIST, CIFAR, IMAGENET = (8, 8, 1), (28, 28, 1), (32, 32, 3), (224, 224, 3)


class Trace(NamedTuple):
    """A network's program, from parameters, statistics and an image to logits and statistics."""

    graphdef: nnx.GraphDef
    params: dict
    statistics: dict
    jaxpr: jax.extend.core.Jaxpr

    @property
    def logits(self):
        return self.jaxpr.outvars[0]

    @property
    def inputs(self):
        """The variables of parameters, of statistics, and of the image."""
        number = len(jax.tree.leaves(self.params))
        return self.jaxpr.invars[:number], self.jaxpr.invars[number:-1], self.jaxpr.invars[-1]


def build(name, image_shape, classes=10, **options):
    return make_model(name, num_classes=classes, image_shape=image_shape, rngs=ONE_KEY, **options)


def trace(name, image_shape, classes=10, train=False, dtype=jnp.float32, **cut):
    # Tracing random numbers would take a third of the time.
    layers = Layers(ONE_KEY, dtype, conv_init=nnx.initializers.zeros)
    model = nnx.eval_shape(lambda: MODELS[name](layers, image_shape, classes, **cut))
    model.train() if train else model.eval()
    graphdef, *variables = nnx.split(model, nnx.Param, nnx.BatchStat)

    def forward(params, statistics, image):
        model = nnx.merge(graphdef, params, statistics)
        set_dropout_key(model, ONE_KEY.params())
        return model(image[None]), nnx.as_pure(nnx.state(model, nnx.BatchStat))

    params, statistics = map(nnx.as_pure, variables)
    image = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    jaxpr = jax.make_jaxpr(forward)(params, statistics, image).jaxpr
    return Trace(nnx.graphdef(model), params, statistics, jaxpr)


@functools.cache
def small_training(name):
    """In half precision."""
    return trace(name, MNIST, train=True, dtype=jnp.bfloat16, **SMALL[name])


@functools.cache
def small_evaluation(name):
    """On 28 pixels, which halve twice only."""
    return trace(name, MNIST, **SMALL[name])


def needed_for(jaxpr, output):
    """Returns all variables of the program on which the output depends."""
    needed = {output}
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            needed.update(x for x in equation.invars if not isinstance(x, Literal))
    return needed


def products(jaxpr):
    """Returns the convolutions and matrix products, also those within calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


def multiplications(equation):
    left, right = (x.aval.shape for x in equation.invars)
    if equation.primitive.name == "conv_general_dilated":
        summed = right[:-1]
    else:
        summed = [left[axis] for axis in equation.params["dimension_numbers"][0][0]]
    return np.prod(equation.outvars[0].aval.shape) * np.prod(summed)


# Parameters, and 10^6 multiplications in convolutions and products where a source counts them.
KUANGLIU = 10, CIFAR  # https://github.com/kuangliu/pytorch-cifar, counted by thop
TORCHVISION = 1000, IMAGENET  # https://pytorch.org/vision/stable/models.html
VGG11_HEAD = 512 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 100 + 100
PUBLISHED = [
    ("mlp", 10, DIGITS, 64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10, None),
    # https://github.com/akamaster/pytorch_resnet_cifar10, of the paper's 0.27 M; weights by pixels.
    ("resnet20", 10, CIFAR, 269_722, (14_256 * 32**2 + 50_688 * 16**2 + 202_752 * 8**2) / 1e6),
    # Two blocks a stage less.
    ("resnet8", 10, CIFAR, 269_722 - sum(2 * (2 * 9 * w**2 + 4 * w) for w in (16, 32, 64)), None),
    # The same at half the resolution; 3 x 3 weights by pixels.
    ("resnet8_half", 10, CIFAR, 75_290, 9 * (560 * 16**2 + 1536 * 8**2 + 6144 * 4**2) / 1e6),
    ("resnet18", *KUANGLIU, 11_173_962, 556.65),
    ("resnet50", *KUANGLIU, 23_520_842, 1304.71),
    # Less the biases that BatchNorm subtracts, with the heads of the authors' codes: 28.5 M and
    # 15.25 M, for 100 and 10 classes.
    ("vgg11", 100, CIFAR, 9_231_114 - 2_752 - 5_130 + VGG11_HEAD, None),
    ("vgg16", 10, CIFAR, 14_728_266 - 4_224 + 2 * (512 * 512 + 512), None),
    ("densenet121", *KUANGLIU, 6_956_298, 898.06),
    # https://github.com/osmr/imgclsmob; 36.5 M and 28.3 M in the papers.
    ("wrn28_10", 10, CIFAR, 36_479_194, 5246.98),
    ("pyramidnet110", 10, CIFAR, 28_485_477, 4730.60),
    ("resnet18", *TORCHVISION, 11_689_512, 1810),
    ("resnet50", *TORCHVISION, 25_557_032, 4090),
    ("densenet121", *TORCHVISION, 7_978_856, 2830),
    # https://huggingface.co/timm, deit_tiny_patch16_224 (1.3 * 10^9, rounded) and deit_small.
    ("vit_ti", 1000, IMAGENET, 5_717_416, None),
    ("vit_s", 1000, IMAGENET, 22_050_664, 4600),
    # With patches of 4 x 4 x 3 in place of 16 x 16 x 3, 65 tokens for 197, 990 classes less.
    ("vit_ti", 10, CIFAR, 5_717_416 - 192 * (720 + 132) - 193 * 990, None),
    # Patches, class token, positions, four blocks (attention, network, norms), last norm and head.
    ("vit_mini", 10, CIFAR, 4704 + 96 + 6240 + 4 * (37_248 + 74_208 + 384) + 192 + 970, None),
]


@pytest.mark.parametrize(("name", "classes", "image_shape", "parameters", "millions"), PUBLISHED)
def test_models_have_the_published_size(name, classes, image_shape, parameters, millions):
    """Multiplications depend on strides and stem. Sources add those of BatchNorm, 1 %."""
    traced = trace(name, image_shape, classes)
    assert sum(leaf.size for leaf in jax.tree.leaves(traced.params)) == parameters
    if millions is not None:
        counted = sum(map(multiplications, products(traced.jaxpr))) / 1e6
        assert counted == pytest.approx(millions, rel=0.012)


@pytest.mark.parametrize(
    ("name", "parameters", "millions"),
    [("vgg11", 9_231_114 - 2_752, 153.22), ("vgg16", 14_728_266 - 4_224, 314.03)],
)
def test_vggs_without_hidden_layers_have_the_published_size(name, parameters, millions):
    traced = trace(name, CIFAR, hidden=())
    assert sum(leaf.size for leaf in jax.tree.leaves(traced.params)) == parameters
    counted = sum(map(multiplications, products(traced.jaxpr))) / 1e6
    assert counted == pytest.approx(millions, rel=0.012)


def test_the_heads_of_the_vggs_have_the_sizes_of_the_authors():
    counts = {name: parameters for name, _, _, parameters, _ in PUBLISHED}
    assert round(counts["vgg11"] / 1e6, 1) == 28.5
    assert round(counts["vgg16"] / 1e6, 2) == 15.25


@pytest.mark.parametrize(("name", "kinds"), [("vgg11", "LDLDL"), ("vgg16", "DLDLL")])
def test_the_heads_of_the_vggs_drop_units_where_the_authors_do(name, kinds):
    options = {"num_classes": 10, "image_shape": CIFAR, "rngs": nnx.Rngs(0), **SMALL[name]}
    layers = make_model(name, **options).head.layers
    found = [
        "L" if isinstance(layer, nnx.Linear) else "D" for layer in layers if layer is not nnx.relu
    ]
    assert "".join(found) == kinds


def test_every_model_has_a_published_size_and_a_small_form():
    assert {row[0] for row in PUBLISHED} == set(MODELS) == set(SMALL)


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
@pytest.mark.parametrize(("side", "stem_side"), [(64, 64), (96, 24)])
def test_only_large_images_shrink_in_the_stem(name, side, stem_side):
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    features = nnx.eval_shape(
        lambda images: build(name, images.shape[1:], **SMALL[name]).stem(images), images
    )
    assert features.shape[1:3] == (stem_side, stem_side)


@every_structure
def test_logits_depend_on_every_parameter(name):
    traced = small_evaluation(name)
    assert traced.logits.aval.shape == (1, 10)
    params, statistics, image = traced.inputs
    assert needed_for(traced.jaxpr, traced.logits) >= {*params, *statistics, image}


@every_structure
def test_half_precision_computes_all_but_the_head(name):
    jaxpr = small_training(name).jaxpr
    assert {x.aval.dtype for x in [*jaxpr.invars, *jaxpr.outvars]} == {jnp.dtype(jnp.float32)}
    *body, head = products(jaxpr)
    assert {x.aval.dtype for e in body for x in e.invars} == {jnp.dtype(jnp.bfloat16)}
    assert {x.aval.dtype for x in head.invars} == {jnp.dtype(jnp.float32)}


@every_structure
def test_batch_statistics_are_used_in_training_only(name):
    training, evaluation = small_training(name), small_evaluation(name)
    _, statistics, image = training.inputs
    assert needed_for(training.jaxpr, training.logits).isdisjoint(statistics)
    for old, new in zip(statistics, training.jaxpr.outvars[1:], strict=True):
        assert needed_for(training.jaxpr, new) >= {old, image}
    assert evaluation.jaxpr.outvars[1:] == evaluation.inputs[1]


@every_structure
def test_two_equal_models_have_one_structure(name):
    """Otherwise a second model would compile all programs anew."""
    again = nnx.eval_shape(lambda: build(name, MNIST, **SMALL[name]))
    again.eval()
    assert nnx.graphdef(again) == small_evaluation(name).graphdef


def test_an_unknown_model_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"'resnet19'; did you mean 'resnet18'.*vit_s"):
        build("resnet19", CIFAR)


def test_patches_that_do_not_tile_raise():
    with pytest.raises(ValueError, match="30 x 30, which patches of 4 do not tile"):
        build("vit_ti", (30, 30, 3))


LAYERS = Layers(ONE_KEY)
X = np.random.default_rng(0).normal(2.0, 1.0, (5, 4, 4, 3)).astype(np.float32)


def test_batch_norm_averages_biased_variances_with_momentum():
    norm = LAYERS.norm(3)
    norm(X)
    np.testing.assert_allclose(norm.mean[...], 0.1 * X.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * X.var((0, 1, 2)), rtol=1e-5)


def test_batch_norm_rounds_its_output_only():
    """At a running mean of 100.3, which bfloat16 rounds to 100.5."""
    norm = Layers(ONE_KEY, jnp.bfloat16).norm(1)
    norm.mean[...] = jnp.array([100.3])
    norm.eval()
    output = norm(jnp.full((1, 1, 1, 1), 100.0, jnp.bfloat16))
    assert output.dtype == jnp.bfloat16
    np.testing.assert_allclose(output.item(), -0.3, rtol=2**-8)


def test_the_sharding_of_traced_statistics_is_not_read(monkeypatch):
    """Reading it raises an error whose message searches the whole trace."""

    def asked(tracer):
        raise AssertionError

    monkeypatch.setattr(jax.core.Tracer, "sharding", property(asked))
    trace("vgg11", DIGITS, train=True, **SMALL["vgg11"])


def test_strided_convolutions_pad_all_sides_equally():
    convolution = LAYERS.conv(1, 1, stride=2)
    convolution.kernel[...] = jnp.ones((3, 3, 1, 1))
    sums = convolution(jnp.ones((1, 4, 4, 1)))[0, :, :, 0]
    np.testing.assert_array_equal(sums, [[4, 6], [6, 9]])


def test_pooling_rounds_up():
    column = jnp.array([-1.0, -3.0, -5.0]).reshape(1, 3, 1, 1)
    np.testing.assert_array_equal(max_pool_2x2(column).ravel(), [-1.0, -5.0])
    np.testing.assert_array_equal(average_pool_2x2(column).ravel(), [-2.0, -5.0])


def test_shortcuts_of_the_blocks():
    """With convolutions of zeros a block returns its shortcut."""
    layers = Layers(ONE_KEY, conv_init=nnx.initializers.zeros)
    residual = ResidualBlock(layers, 3, 5, 2, basic, ZeroPadding)
    wide, pyramid = PreActivationBlock(layers, 3, 3, 1), PyramidBlock(layers, 3, 5, 2)
    for block in (residual, wide, pyramid):
        block.eval()
    outputs = jax.jit(lambda x: (residual(-x), wide(-x), pyramid(x)))(X)
    padding = ((0, 0), (0, 0), (0, 0), (0, 2))
    np.testing.assert_array_equal(outputs[0], np.pad(np.maximum(-X, 0)[:, ::2, ::2], padding))
    np.testing.assert_array_equal(outputs[1], -X)
    means = X.reshape(5, 2, 2, 2, 2, 3).mean((2, 4))
    np.testing.assert_allclose(outputs[2], np.pad(means, padding), rtol=1e-6)


def test_initial_weights_are_he_normal_and_torch_uniform():
    """He normal over the outputs, and torch.nn.Linear with a zero bias, up to sampling errors."""
    convolution, head = LAYERS.conv(16, 64), LAYERS.head(64, 100)
    for kernel, deviation in (
        (convolution.kernel[...], (2 / (9 * 64)) ** 0.5),
        (head.kernel[...], (1 / (3 * 64)) ** 0.5),
        (vit.NORMAL(ONE_KEY.params(), (100, 100)), 0.02),
    ):
        assert abs(kernel.std() - deviation) < 4 * deviation / (2 * kernel.size) ** 0.5
    assert abs(head.kernel[...]).max() <= 1 / 8
    assert not head.bias[...].any()


def test_a_vit_classifies_by_the_class_token():
    """It depends on the image by attention alone."""
    model = build("vit_ti", (4, 4, 3), blocks=0, width=12)
    logits = jax.jit(lambda images: model(images))(X)
    assert np.ptp(logits, axis=0).max() == 0 < abs(logits).max()


def test_a_vit_draws_all_weights_but_biases_and_norms(monkeypatch):
    drawn = []

    def recorded(key, shape, *dtype, **metadata):
        drawn.append(np.prod(shape))
        return jnp.zeros(shape)

    monkeypatch.setattr(vit, "NORMAL", recorded)
    params = jax.tree.leaves_with_path(trace("vit_ti", CIFAR, **SMALL["vit_ti"]).params)
    others = ("['bias']", "['scale']")
    sizes = [leaf.size for path, leaf in params if not jax.tree_util.keystr(path).endswith(others)]
    assert sorted(drawn) == sorted(sizes)
