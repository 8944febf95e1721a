"""Presets against numbers typed from the papers' tables, and methods with arguments."""

import collections
import dataclasses
import re
import typing
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import xsam_jax as sx
from examples.image_classification.config import Config
from examples.image_classification.models import MODELS
from examples.image_classification.presets import (
    BASES,
    PRESETS,
    configure,
    find_preset,
    settings_for,
)
from examples.training.methods import (
    METHODS,
    Training,
    find_method,
    in_asams_metric,
    make_method,
    method_arguments,
)

CIFAR = ("crop", "flip", "cutout=0.5")

# --- Every preset ---


def fits(value, kind):
    """Returns whether a value is of an annotated type; an int is no float, and a bool no int."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        return type(value) is tuple and all(fits(item, arguments[0]) for item in value)
    if origin is dict:
        return type(value) is dict and all(
            fits(item, str) for pair in value.items() for item in pair
        )
    return any(fits(value, one) for one in arguments) if arguments else type(value) is kind


TYPES = typing.get_type_hints(Config)


def test_presets_fit_the_config():
    # Presets do not depend on the defaults of the trainer, which may change.
    explicit = {"dataset", "model", "method", "augmentation", "epochs", "batch_size", "optimizer"}
    explicit |= {"learning_rate", "weight_decay", "rho"}
    for name, (source, settings) in PRESETS.items():
        assert source
        assert explicit <= set(settings), name
        assert set(settings) <= set(TYPES), name
        assert not [key for key, value in settings.items() if not fits(value, TYPES[key])], name
        config = Config(**settings)
        assert config.model in MODELS, name
        assert (config.rho is None) == (config.method == "sgd"), name
        assert (config.rho_max is not None) == config.method.startswith("xsam"), name
        assert config.ascent_steps == 1 or METHODS[config.method].steps, name


def test_fits_distinguishes_types():
    assert fits(None, float | None)
    assert not fits(1, float | None)
    assert not fits(True, int)
    assert not fits(["crop"], tuple[str, ...])
    assert not fits({"alpha": 1.0}, dict[str, str])
    assert not fits("adam", typing.Literal["sgd", "adamw"])


def test_every_preset_makes_its_method():
    key = jax.random.key(0)
    for name, preset in PRESETS.items():
        config = Config(**preset.settings)
        search = {"probe_every": 3, "alpha_max": config.alpha_max, "num_alphas": config.num_alphas}
        training = Training(config.rho_max, config.ascent_steps, search, optax.sgd(0.1), 0.1, key)
        tx = make_method(config.method, config.rho, training, **config.method_args)
        assert isinstance(tx, optax.GradientTransformation), name


def test_names_of_presets_match_their_settings():
    for name, preset in PRESETS.items():
        s = preset.settings
        if name.startswith("demo-"):
            assert name == f"demo-{s['method']}"
        else:
            prefix = "fsam-" if preset.source.startswith("F-SAM") else ""
            stem = f"{prefix}{s['dataset']}-{s['model']}-{s['method']}"
            assert name == stem or name.startswith(stem + "-"), name


def test_tables_have_the_number_of_rows_of_the_papers():
    counts = collections.Counter()
    for preset in PRESETS.values():
        paper, _, rest = preset.source.partition(" paper, ")
        counts[paper, rest.split(";")[0].split(",")[0]] += 1
    assert counts == {
        ("XSAM", "table 5"): 3 * 3 * 5,  # SGD by both of its readings
        ("XSAM", "table 6"): 3 * 3,
        ("XSAM", "figure 3b"): 3 * 17,
        ("XSAM", "table 7 and figure 4"): 5,
        ("XSAM", "table 7 and figure 14a"): 5,
        ("XSAM", "table 8"): 3 * 3,
        ("XSAM", "table 12"): 3 * 4,  # beside those of table 8
        ("XSAM", "table 4"): 6 * 3,
        ("XSAM", "table 13"): 3 * 3,
        ("XSAM", "table 14"): 3 * 3,
        ("XSAM", "table 9"): 2 * 2,
        ("XSAM", "tables 10 and 11"): 4 * 2,  # beside SAM and XSAM of table 5
        ("XSAM", "figure 17"): 6,
        ("F-SAM", "table 1"): 4 * 5,
        ("F-SAM", "table 2"): 4 * 5,
        ("F-SAM", "table 3"): 2 * 2,  # beside ASAM of tables 1 and 2
        ("F-SAM", "table 4"): 4,
        ("F-SAM", "table 5"): 5 * 3,
        ("F-SAM", "table 6"): 4 * 3,
        ("F-SAM", "figure 3"): 2 * 2 * 3,
        ("F-SAM", "figure 4"): 3 * 3,
        ("F-SAM", "figures 1 and 2"): 2 * 4 + 9,
        ("F-SAM", "equation 11"): 2,
        ("examples/01_noisy_digits.py, at one radius and with a wider network", ""): 3,
    }


# --- The numbers, as they stand in the papers ---

PUBLISHED = {
    # XSAM, table 5: one row of each model, and each dataset.
    "cifar10-vgg11-xsam": {
        "epochs": 200,
        "batch_size": 125,
        "learning_rate": 0.05,
        "momentum": 0.9,
        "weight_decay": 0.001,
        "rho": 0.15,
        "rho_max": 0.30,
        "probe_every": None,
        "alpha_max": 2.0,
        "num_alphas": 21,
        "augmentation": CIFAR,
        "optimizer": "sgd",
        "ascent_steps": 1,
        "label_smoothing": 0.0,
        "warmup_epochs": 0.0,
        "cosine_every": "epoch",  # in the authors' code
        "image_size": None,
    },
    "cifar10-densenet121-slerp_sam-alpha0": {"rho": 0.05, "method_args": {"alpha": "0.0"}},
    "cifar10-vgg11-slerp_sam": {"rho": 0.15, "method_args": {"alpha": "0.75"}},
    "tiny_imagenet-vgg11-xsam": {
        "rho": 0.20,
        "rho_max": 1.20,
        "image_size": 32,  # in the authors' code
        "augmentation": ("resized_crop=0.8", "flip", "erasing"),
    },
    "cifar10-resnet18-xsam": {"rho": 0.15, "rho_max": 0.25},
    "cifar10-resnet18-slerp_sam": {"rho": 0.15, "method_args": {"alpha": "0.5"}},
    "cifar100-resnet18-sgd": {"rho": None, "weight_decay": 0.001, "method_args": {}},
    "cifar100-resnet18-sam": {"rho": 0.15, "batch_size": 125},
    "cifar100-resnet18-xsam": {"rho": 0.15, "rho_max": 0.30},
    "cifar100-resnet18-slerp_sam": {"method_args": {"alpha": "1.25"}},
    "tiny_imagenet-resnet18-xsam": {"rho": 0.20, "rho_max": 0.25},
    "cifar10-densenet121-xsam": {"rho": 0.05, "rho_max": 0.10},
    "cifar100-densenet121-xsam": {"rho": 0.10, "rho_max": 0.20},
    "tiny_imagenet-densenet121-xsam": {"rho": 0.20, "rho_max": 0.20},
    "tiny_imagenet-densenet121-slerp_sam": {"rho": 0.20, "method_args": {"alpha": "0.75"}},
    # Table 6 and figure 3b.
    "cifar100-resnet18-xsam-rho0.1": {"rho": 0.10, "rho_max": 0.30},
    "cifar100-resnet18-slerp_sam-rho0.1": {"method_args": {"alpha": "1.57"}},
    "cifar100-resnet18-slerp_sam-rho0.3": {"rho": 0.30, "method_args": {"alpha": "0.92"}},
    "cifar100-resnet18-slerp_sam-rho0.2-alpha-0.75": {
        "rho": 0.20,
        "method_args": {"alpha": "-0.75"},
    },
    "cifar100-resnet18-slerp_sam-rho0.1-alpha3": {"rho": 0.10, "method_args": {"alpha": "3.0"}},
    # Table 7.
    "cifar100-resnet18-xsam-probe_every40": {"rho": 0.15, "rho_max": 0.30, "probe_every": 40},
    "cifar100-resnet18-xsam-rho_max0.45": {"rho": 0.15, "rho_max": 0.45, "probe_every": None},
    # Tables 8 and 12.
    "cifar100-resnet18-xsam-k3-rho0.04": {"rho": 0.04, "rho_max": 0.30, "ascent_steps": 3},
    "cifar100-resnet18-xsam-k3-rho0.08": {"rho": 0.08, "rho_max": 0.25, "ascent_steps": 3},
    "cifar100-resnet18-xsam-k3-rho0.12": {"rho": 0.12, "rho_max": 0.20, "ascent_steps": 3},
    "cifar100-resnet18-slerp_sam-k3-rho0.12": {
        "ascent_steps": 3,
        "method_args": {"alpha": "0.41", "between": "first"},
    },
    "cifar100-resnet18-lsam+-k3-rho0.04": {"rho": 0.04, "ascent_steps": 3},
    # Tables 4, 13 and 14: rho is that of one step, divided by k.
    "cifar100-resnet18-xsam-k2": {"rho": 0.075, "rho_max": 0.30, "ascent_steps": 2},
    "cifar100-resnet18-sam-k4": {"rho": 0.0375, "ascent_steps": 4},
    "cifar100-resnet18-msam+-k1": {"rho": 0.15, "method_args": {"at_least": "1"}},
    "cifar100-densenet121-lsam-k4": {"rho": 0.025, "ascent_steps": 4},
    "cifar10-resnet18-xsam-k4": {"rho": 0.0375, "rho_max": 0.25, "ascent_steps": 4},
    # Table 9.
    "imagenet2012-resnet50-xsam": {
        "epochs": 90,
        "batch_size": 512,
        "learning_rate": 0.2,
        "momentum": 0.9,
        "weight_decay": 0.0001,
        "label_smoothing": 0.0,
        "rho": 0.05,
        "rho_max": 0.3,
        "augmentation": (),
    },
    "cifar100-vit_ti-xsam": {
        "optimizer": "adamw",
        "epochs": 300,
        "batch_size": 256,
        "learning_rate": 0.001,
        "weight_decay": 0.3,
        "label_smoothing": 0.1,
        "rho": 0.9,
        "rho_max": 0.9,
        "augmentation": ("crop", "flip"),
    },
    "cifar100-vit_ti-sam": {"optimizer": "adamw", "rho": 0.9},
    # Tables 10 and 11: each method's official code.
    "cifar100-resnet18-asam": {"rho": 1.0, "method_args": {"eta": "0.01", "biases": "False"}},
    "cifar100-resnet18-xsam+asam": {"rho": 1.0, "rho_max": 0.30},
    "cifar100-densenet121-xsam+asam": {"rho": 1.0, "rho_max": 0.20},
    "cifar100-densenet121-vasso": {"rho": 0.2, "method_args": {"theta": "0.9"}},
    "cifar100-resnet18-decoupled_wsam": {"rho": 0.05, "method_args": {"gamma": "0.9"}},
    # Figure 17.
    "cifar100-resnet18-xsam-scale-slope_max": {"method_args": {"scale": "slope_max"}},
    # F-SAM, tables 1 to 3.
    "fsam-cifar10-resnet18-sgd": {
        "epochs": 200,
        "batch_size": 128,
        "learning_rate": 0.05,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "rho": None,
        "augmentation": CIFAR,
        "label_noise": 0.0,
    },
    "fsam-cifar10-resnet18-sam": {"rho": 0.1, "weight_decay": 0.001, "cosine_every": "step"},
    # Figures 1 and 2, and equation 11.
    "fsam-cifar100-resnet18-sam_noise": {"rho": 0.2, "batch_size": 128, "method_args": {}},
    "fsam-cifar100-resnet18-sam_larger_batch-batches10": {
        "rho": 0.2,
        "method_args": {"batches": "10"},
    },
    "fsam-cifar10-resnet18-friendly_sam-cosine": {
        "rho": 0.1,
        "method_args": {"decay": "0.6", "sigma": "cosine"},
    },
    "fsam-cifar10-resnet18-asam": {"rho": 2.0, "method_args": {"eta": "0.0"}},
    "fsam-cifar10-pyramidnet110-fisher_sam": {"rho": 0.1, "epochs": 300},
    "fsam-cifar100-vgg16-friendly_sam": {
        "rho": 0.2,
        "weight_decay": 0.001,
        "method_args": {"decay": "0.6", "sigma": "1.0"},
    },
    "fsam-cifar100-resnet18-friendly_sam": {"method_args": {"decay": "0.6", "sigma": "1.0"}},
    "fsam-cifar100-wrn28_10-friendly_sam": {
        "epochs": 200,
        "method_args": {"decay": "0.9", "sigma": "1.0"},
    },
    "fsam-cifar10-pyramidnet110-friendly_sam": {
        "rho": 0.1,
        "epochs": 300,
        "method_args": {"decay": "0.9", "sigma": "1.0"},
    },
    "fsam-cifar100-wrn28_10-asam": {"rho": 4.0},
    "fsam-cifar100-resnet18-fisher_sam": {"rho": 0.1},
    "fsam-cifar100-wrn28_10-friendly_asam": {
        "rho": 4.0,
        "method_args": {"decay": "0.9", "sigma": "1.0", "eta": "0.0"},
    },
    # Table 4.
    "fsam-imagenet2012-resnet50-friendly_sam": {
        "epochs": 90,
        "batch_size": 128,
        "learning_rate": 0.05,
        "weight_decay": 0.0001,
        "rho": 0.075,
        "method_args": {"decay": "0.95", "sigma": "1.0"},
        "augmentation": (),
    },
    "fsam-imagenet2012-resnet50-asam": {"rho": 0.075, "weight_decay": 0.0001},
    "fsam-imagenet2012-resnet50-sgd": {"rho": None, "weight_decay": 0.0001},
    # Table 6: of so many new labels among ten, nine in ten are wrong.
    "fsam-cifar10-resnet18-friendly_sam-noise0.8": {"rho": 0.1, "label_noise": 0.72},
    "fsam-cifar10-resnet18-sam-noise0.2": {"label_noise": 0.18, "weight_decay": 0.001},
    "fsam-cifar10-resnet18-sgd-noise0.7": {"label_noise": 0.63, "weight_decay": 0.0005},
    # Figures 3 and 4.
    "fsam-cifar100-resnet18-sam-rho0.4": {"rho": 0.4},
    "fsam-cifar10-resnet18-friendly_sam-rho0.05": {"rho": 0.05},
    "fsam-cifar100-resnet18-sgd-batch2048": {"batch_size": 2048, "learning_rate": 0.05},
    "fsam-cifar100-resnet18-sam-batch512": {"batch_size": 512, "rho": 0.2},
    # The demo.
    "demo-sgd": {"rho": None, "label_noise": 0.4, "validation_size": 297, "train_size": 1000},
    "demo-xsam": {"rho": 0.3, "rho_max": 0.6, "label_noise": 0.4, "alpha_max": 4.0},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_numbers(name):
    config = dataclasses.asdict(Config(**PRESETS[name].settings))
    assert {key: config[key] for key in PUBLISHED[name]} == PUBLISHED[name]


# Of SAM, the fixed direction and XSAM: rho, rho_max, and alpha of the fixed direction.
RADII = {
    # Table 5.
    "cifar10-vgg11-{}": (0.15, 0.30, "0.75"),
    "cifar100-vgg11-{}": (0.15, 0.30, "1.0"),
    "tiny_imagenet-vgg11-{}": (0.20, 1.20, "1.0"),
    "cifar10-resnet18-{}": (0.15, 0.25, "0.5"),
    "cifar100-resnet18-{}": (0.15, 0.30, "1.25"),
    "tiny_imagenet-resnet18-{}": (0.20, 0.25, "1.0"),
    "cifar10-densenet121-{}": (0.05, 0.10, "1.25"),
    "cifar100-densenet121-{}": (0.10, 0.20, "0.75"),
    "tiny_imagenet-densenet121-{}": (0.20, 0.20, "0.75"),
    # Tables 6 and 8.
    "cifar100-resnet18-{}-rho0.1": (0.10, 0.30, "1.57"),
    "cifar100-resnet18-{}-rho0.2": (0.20, 0.30, "1.15"),
    "cifar100-resnet18-{}-rho0.3": (0.30, 0.30, "0.92"),
    "cifar100-resnet18-{}-k3-rho0.04": (0.04, 0.30, "1.72"),
    "cifar100-resnet18-{}-k3-rho0.08": (0.08, 0.25, "1.15"),
    "cifar100-resnet18-{}-k3-rho0.12": (0.12, 0.20, "0.41"),
}


@pytest.mark.parametrize("name", RADII)
def test_presets_have_every_radius_and_alpha_of_the_xsam_paper(name):
    rho, rho_max, alpha = RADII[name]
    found = {m: PRESETS[name.format(m)].settings for m in ("sam", "slerp_sam", "xsam")}
    assert [settings["rho"] for settings in found.values()] == [rho] * 3
    assert found["xsam"]["rho_max"] == rho_max
    assert found["slerp_sam"]["method_args"]["alpha"] == alpha


# F-SAM, tables 1 and 2: epochs, and lambda of F-SAM. The radii are in its text.
TRAINED = {"vgg16": (200, "0.6"), "resnet18": (200, "0.6")}
TRAINED |= {"wrn28_10": (200, "0.9"), "pyramidnet110": (300, "0.9")}
FSAM_RADII = {"sam": (0.1, 0.2), "friendly_sam": (0.1, 0.2), "asam": (2.0, 4.0)}
FSAM_RADII |= {"fisher_sam": (0.1, 0.1), "sgd": (None, None)}


@pytest.mark.parametrize("model", TRAINED)
def test_presets_have_every_number_of_tables_1_and_2_of_the_fsam_paper(model):
    epochs, decay = TRAINED[model]
    for method, radii in FSAM_RADII.items():
        for dataset, rho in zip(("cifar10", "cifar100"), radii, strict=True):
            settings = PRESETS[f"fsam-{dataset}-{model}-{method}"].settings
            expected = (epochs, rho, 5e-4 if method == "sgd" else 1e-3)
            config = Config(**settings)
            assert (config.epochs, config.rho, config.weight_decay) == expected
            if method == "friendly_sam":
                assert config.method_args["decay"] == decay


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "cars196", "oxford_iiit_pet"])
def test_presets_fine_tune_as_section_6_2_of_the_fsam_paper(dataset):
    for method, rho in {"sgd": None, "sam": 0.075, "friendly_sam": 0.075}.items():
        config = configure(f"fsam-{dataset}-vit_s-{method}")
        assert (config.optimizer, config.epochs, config.batch_size) == ("adamw", 10, 128)
        assert (config.weight_decay, config.learning_rate, config.rho) == (1e-5, 1e-4, rho)
        assert (config.image_size, config.normalization) == (224, "imagenet")


def test_the_page_of_the_papers_has_every_table_and_figure_and_valid_presets():
    text = (Path(__file__).parents[1] / "docs" / "papers.md").read_text()
    _, xsam, friendly = text.split("\n## ")
    for section, figures, tables in ((xsam, 17, 16), (friendly, 4, 6)):
        found = collections.defaultdict(set)
        for row in re.findall(r"^\| ([^|]*) \|", section, re.MULTILINE):
            for kind, numbers in re.findall(
                r"(figure|table)s? ((?:\d+\w?(?:, | and | to )?)+)", row
            ):
                for first, last in re.findall(r"(\d+)\w?(?: to (\d+))?", numbers):
                    found[kind].update(range(int(first), int(last or first) + 1))
        assert found == {"figure": {*range(1, figures + 1)}, "table": {*range(1, tables + 1)}}
    names = re.findall(r"`((?:fsam-)?(?:cifar|imagenet)[^`]*)`", text)
    assert len(names) > 25
    assert set(names) <= set(PRESETS)


def test_an_unknown_preset_suggests_the_nearest_three():
    with pytest.raises(ValueError) as error:
        find_preset("cifar100-resnet-xsam")
    names = ["cifar100-resnet18-xsam", "cifar100-resnet18-sam", "cifar10-resnet18-xsam"]
    nearest = " or ".join(map(repr, names))
    message = f"unknown preset 'cifar100-resnet-xsam'; did you mean {nearest}? "
    assert str(error.value) == message + f"{len(PRESETS)} are valid (--preset list)"
    with pytest.raises(ValueError, match=r"^unknown preset '%'; \d+ are valid \(--preset list\)$"):
        find_preset("%")


# --- Default settings ---


def test_settings_of_a_preset_are_copies():
    name = "cifar100-resnet18-slerp_sam"
    settings = settings_for(name, "digits", "mlp", "sgd")
    assert settings == PRESETS[name].settings
    settings["method_args"]["alpha"] = "9"
    assert settings_for(None, "cifar100", "resnet18", "slerp_sam") == PRESETS[name].settings
    settings_for(None, "cifar100", "resnet18", "slerp_sam")["method_args"].clear()
    assert PRESETS[name].settings["method_args"] == {"alpha": "1.25"}


def test_settings_without_a_preset_are_those_of_the_dataset():
    settings = settings_for(None, "cifar10", "wrn28_10", "gsam")
    assert (settings["model"], settings["method"], settings["rho"]) == ("wrn28_10", "gsam", 0.15)
    assert (settings["epochs"], settings["augmentation"]) == (200, CIFAR)
    assert settings_for(None, "cifar10", "resnet18", "gam")["rho"] == 0.45  # not 3 * 0.15
    assert settings_for(None, "imagenet2012", "resnet18", "xsam")["rho_max"] == 0.1
    assert "flip" not in settings_for(None, "mnist", "mlp", "sam")["augmentation"]


@pytest.mark.parametrize(
    ("method", "rho", "rho_max"),
    [
        ("sgd", None, None),
        ("sam", 0.3, None),
        ("xsam", 0.3, 0.6),
        ("wsam", 0.06, None),
        ("asam", 3.0, None),
        ("xsam+asam", 3.0, 0.6),
    ],
)
def test_radius_without_a_preset_suits_the_method(method, rho, rho_max):
    settings = settings_for(None, "digits", "mlp", method)
    assert settings["rho"] == rho
    assert settings.get("rho_max") == rho_max
    assert settings["label_noise"] == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_dataset_has_settings(method):
    for dataset in BASES:
        for model in ("resnet18", "mlp"):
            settings = settings_for(None, dataset, model, method)
            assert all(fits(value, TYPES[key]) for key, value in settings.items())
            config = Config(**settings)
            assert (config.dataset, config.model, config.method) == (dataset, model, method)


def test_datasets_are_those_of_the_config():
    text = "digits, cifar10, cifar100, mnist, fashion_mnist, tiny_imagenet, imagenet2012, cars196"
    text += ", oxford_flowers102, oxford_iiit_pet"
    assert set(BASES) == set(text.split(", "))


def test_settings_of_unknown_names_raise():
    with pytest.raises(ValueError, match="unknown preset"):
        settings_for("demo", "digits", "mlp", "sam")
    with pytest.raises(ValueError, match=r"unknown dataset 'cifar'; did you mean 'cifar1.*digits"):
        settings_for(None, "cifar", "mlp", "sam")
    with pytest.raises(ValueError, match=r"unknown method 'xsm'; did you mean 'xsam'\? valid:"):
        settings_for(None, "digits", "mlp", "xsm")


# --- The methods and their arguments ---

PARAMS = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([0.5])}
SEARCH = {"probe_every": 1, "alpha_max": 3.2, "num_alphas": 9}
KEY = jax.random.key(0)
BASE = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))


def value_fn(params):
    return jnp.sum(jnp.array([1.0, 3.0]) * params["kernel"] ** 2) + 7 * params["bias"][0] ** 2


def losses_fn(params):
    return jnp.sin(params["kernel"][0] * jnp.arange(1.0, 5.0)) + params["bias"] ** 2


def program(tx):
    """Returns two updates as the text of a program. Compiling them all would take a minute.

    The second update starts from the state of the first.
    """

    def two_updates(params):
        state, extra_args = tx.init(params), {"value_fn": value_fn, "losses_fn": losses_fn}
        for _ in range(2):
            grads = jax.grad(value_fn)(params)
            updates, state = tx.update(grads, state, params, **extra_args)
            params = optax.apply_updates(params, updates)
        return params

    return str(jax.make_jaxpr(two_updates)(PARAMS))


def training(steps=1, **search):
    return Training(0.6, steps, SEARCH | search, BASE, 0.1, KEY)


def weights(params):
    return {"kernel": True, "bias": False}


def xsam_along(*direction, **options):
    return sx.xsam(0.3, 0.6, direction=optax.chain(*direction), **SEARCH, **options)


radius, unit = sx.ascent.scale_by_radius(0.3), sx.ascent.normalize()
direct = sx.ascent

# Name, ascent steps, arguments as on a command line: the same by the library.
OVERRIDDEN = [
    ("gsam", 1, {"alpha": "0.1"}, lambda: sx.gsam(0.3, 0.1)),
    ("xsam", 2, {"scale": "first"}, lambda: sx.xsam(0.3, 0.6, steps=2, scale="first", **SEARCH)),
    ("slerp_sam", 1, {"alpha": "0.5"}, lambda: sx.slerp_sam(0.3, 0.5)),
    (
        "slerp_sam",
        3,
        {"alpha": "-0.5", "between": "first"},
        lambda: sx.slerp_sam(0.3, -0.5, steps=3, between="first"),
    ),
    ("asam", 2, {"eta": "0.5"}, lambda: sx.asam(0.3, 0.5, steps=2)),
    ("asam", 1, {"biases": "false"}, lambda: sx.asam(0.3, mask=weights)),
    ("fisher_sam", 1, {"eta": "3"}, lambda: sx.fisher_sam(0.3, 3.0)),
    ("friendly_sam", 1, {"sigma": "cosine"}, lambda: sx.friendly_sam(0.3, sigma="cosine")),
    (
        "friendly_sam",
        1,
        {"decay": "0.6", "sigma": "0.5", "convention": "official"},
        lambda: sx.friendly_sam(0.3, 0.6, 0.5, convention="official"),
    ),
    (
        "friendly_asam",
        1,
        {"decay": "0.6", "sigma": "0.5", "eta": "0", "biases": "False"},
        lambda: sx.friendly_asam(0.3, 0.6, 0.5, 0.0, mask=weights),
    ),
    ("vasso", 1, {"theta": "0.9"}, lambda: sx.vasso(0.3, 0.9)),
    ("wsam", 1, {"gamma": "0.5"}, lambda: sx.wsam(0.3, 0.5)),
    (
        "decoupled_wsam",
        1,
        {"gamma": "0.6"},
        lambda: sx.decoupled_wsam(BASE, 0.1, 0.3, 0.6),
    ),
    (
        "momentum_sam",
        1,
        {"convention": "official"},
        lambda: sx.momentum_sam(BASE, 0.3, convention="official"),
    ),
    (
        "lookbehind",
        3,
        {"alpha": "0.3", "at_least": "1"},
        lambda: sx.lookbehind(BASE, 0.3, 3, 0.3),
    ),
    (
        "lookbehind",
        1,
        {"convention": "official"},
        lambda: sx.lookbehind(BASE, 0.3, 2, "adaptive", convention="official"),
    ),
    (
        "sampa",
        1,
        {"weight": "0.4", "convention": "official"},
        lambda: sx.sampa(BASE, 0.1, 0.3, 0.4, convention="official"),
    ),
    ("async_sam", 1, {"reuse": "false"}, lambda: sx.async_sam(BASE, 0.3, reuse=False)),
    (
        "gradient_norm_penalty",
        1,
        {"alpha": "0.6", "convention": "official"},
        lambda: sx.gradient_norm_penalty(0.3, 0.6, convention="official"),
    ),
    ("msam+", 1, {"at_least": "1"}, lambda: sx.msam(0.3, 1, include_first=True)),
    ("msam+", 1, {}, lambda: sx.msam(0.3, 2, include_first=True)),
    ("lsam", 3, {"at_least": "1"}, lambda: sx.lsam(0.3, 3)),
    ("cr_sam", 1, {"gamma": "0.3", "beta": "0.2"}, lambda: sx.cr_sam(0.3, 0.3, 0.2)),
    (
        "gam",
        1,
        {"ratio": "3", "beta_0": "0.2", "beta_1": "0.3", "gamma": "0.4", "convention": "paper"},
        lambda: sx.gam(0.3, 0.1, 0.2, 0.3, 0.4, convention="paper"),
    ),
    ("eigen_sam", 1, {"alpha": "0.3", "every": "2"}, lambda: sx.eigen_sam(0.3, 0.3, 2)),
    ("look_sam", 1, {"alpha": "0.3", "every": "2"}, lambda: sx.look_sam(0.3, 0.3, 2)),
    (
        "esam",
        1,
        {"beta": "0.3", "gamma": "0.75", "convention": "official"},
        lambda: sx.esam(0.3, 0.3, 0.75, KEY, convention="official"),
    ),
    (
        "xsam+asam",
        2,
        {"eta": "0.5", "biases": "false", "scale": "max"},
        lambda: xsam_along(direct.scale_by_magnitude(0.5, mask=weights), steps=2, scale="max"),
    ),
    (
        "xsam+asam_metric",
        2,
        {"eta": "0.5", "biases": "false", "scale": "max"},
        lambda: in_asams_metric(sx.xsam(0.3, 0.6, steps=2, scale="max", **SEARCH), 0.5, False),
    ),
    (
        "xsam+friendly_sam",
        1,
        {"decay": "0.6", "sigma": "0.5", "scale": "first"},
        lambda: xsam_along(direct.subtract_ema(0.6, 0.5), unit, scale="first"),
    ),
    (
        "xsam+vasso",
        1,
        {"theta": "0.2", "scale": "first"},
        lambda: xsam_along(direct.ema_of_gradients(0.2), unit, scale="first"),
    ),
]


@pytest.mark.parametrize(("name", "steps", "arguments", "make"), OVERRIDDEN)
def test_arguments_reach_the_method(name, steps, arguments, make):
    made = program(make_method(name, 0.3, training(steps), **arguments))
    assert made == program(make())
    if arguments and name != "lsam":  # at least one step changes nothing in three
        assert made != program(make_method(name, 0.3, training(steps)))


def test_every_row_with_arguments_is_overridden_above():
    assert {name for name, *_ in OVERRIDDEN} >= {
        name for name in METHODS if method_arguments(name)
    } - {"msam", "lsam+", "sam_larger_batch"}  # as msam+ and lsam; read by the trainer


def test_the_search_reaches_xsam(monkeypatch):
    seen = []
    monkeypatch.setattr(sx, "xsam", lambda *args, **options: seen.append(options["search"]))
    for name in ("xsam", "xsam+asam", "xsam+vasso", "xsam+friendly_sam"):
        make_method(name, 0.3, training(search="section"))
    assert seen == ["section"] * 4


def test_arguments_have_published_defaults():
    assert method_arguments("sam") == {}
    assert method_arguments("friendly_sam") == {"decay": 0.9, "sigma": 1.0, "convention": "paper"}
    assert method_arguments("msam") == {"at_least": 2}


def test_sam_is_asam_in_asams_metric():
    grads = jax.grad(value_fn)(PARAMS)

    def update(tx, **functions):
        return tx.update(grads, tx.init(PARAMS), PARAMS, value_fn=value_fn, **functions)[0]

    for mask, biases in ((None, True), (weights, False)):
        # As with gradients that are accumulated.
        for functions in ({}, {"grad_fn": jax.grad(value_fn)}):
            chex.assert_trees_all_close(
                update(in_asams_metric(sx.sam(0.3), 0.01, biases), **functions),
                update(sx.asam(0.3, 0.01, mask=mask), **functions),
                rtol=1e-5,
            )


def test_xsam_in_asams_metric_probes_there():
    def flat(params):
        return np.float64([*params["kernel"], *params["bias"]])

    curvature = np.array([1.0, 3.0, 7.0])
    theta = flat(PARAMS)
    size = np.abs(theta) + 0.01
    g_0 = 2 * curvature * theta
    g_1 = 2 * curvature * (theta + 0.3 * size * size * g_0 / np.linalg.norm(size * g_0))
    v_0, v_1 = (size * g / np.linalg.norm(size * g) for g in (g_0, g_1))
    psi = np.arccos(v_0 @ v_1)
    alphas = np.linspace(0, 3.2, 9)
    directions = [
        (np.sin((1 - a) * psi) * v_0 + np.sin(a * psi) * v_1) / np.sin(psi) for a in alphas
    ]
    losses = [curvature @ (theta + 0.6 * size * v) ** 2 for v in directions]
    best = int(np.argmax(losses))
    assert best > 0  # not SGD's direction
    expected = directions[best] / size * np.linalg.norm(size * g_1)

    tx = make_method("xsam+asam_metric", 0.3, training())
    update, state = tx.update(
        jax.grad(value_fn)(PARAMS), tx.init(PARAMS), PARAMS, value_fn=value_fn
    )
    np.testing.assert_allclose(optax.tree.get(state, "alpha"), alphas[best], rtol=1e-6)
    np.testing.assert_allclose(flat(update), expected, rtol=1e-4)


def test_an_argument_changes_the_update():
    params, grads = PARAMS, jax.grad(value_fn)(PARAMS)

    def update(tx):
        updates, _ = tx.update(grads, tx.init(params), params, value_fn=value_fn)
        return np.concatenate([updates["bias"], updates["kernel"]])

    expected = update(sx.gsam(0.3, 0.1))
    np.testing.assert_array_equal(
        update(make_method("gsam", 0.3, training(), alpha="0.1")), expected
    )
    np.testing.assert_array_equal(update(make_method("gsam", 0.3, training(), alpha=0.1)), expected)
    assert np.max(np.abs(update(make_method("gsam", 0.3, training())) - expected)) > 0.01


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "friendly_sam",
            {"deacy": "0.6"},
            r"^friendly_sam has no argument 'deacy'; did you mean 'decay'\? "
            "valid: decay, sigma, convention$",
        ),
        ("gsam", {"rho": "0.1"}, "^gsam has no argument 'rho'; valid: alpha$"),
        ("sam", {"alpha": "1"}, "^sam takes no arguments, but 'alpha' was given; leave it out$"),
        ("gsam", {"alpha": "much"}, "^alpha must be a number, not 'much'$"),
        ("look_sam", {"every": "2.5"}, "^every must be an integer, not '2.5'$"),
        ("asam", {"biases": "no"}, "^biases must be true or false, not 'no'$"),
        ("xsam", {"scale": "longest"}, "scale"),
        ("gsm", {}, r"^unknown method 'gsm'; did you mean 'gsam'\? valid: sgd, sam, xsam, "),
        ("lbfgs", {}, r"^unknown method 'lbfgs'; valid: sgd, .*, xsam\+vasso$"),
    ],
)
def test_wrong_arguments_raise_errors_of_one_line(name, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        make_method(name, 0.3, training(), **arguments)
    assert "\n" not in str(error.value)


def test_find_method_returns_the_row():
    assert find_method("decoupled_wsam").has_base
    assert find_method("sgd").scale is None
