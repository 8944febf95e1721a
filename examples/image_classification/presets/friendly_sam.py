"""The settings of "Friendly Sharpness-Aware Minimization" (F-SAM), CVPR 2024, table by table.

Names are `fsam-{dataset}-{model}-{method}`, with a suffix for differences from tables 1 and 2.
Section 6.1 omits the batch size on CIFAR and the eta of ASAM, which are those of the authors' code.
Table 5 fine-tunes a pretrained network, which `--init` names. The learning rate falls in every
step, as in the authors' code. Departures from that code: initial weights are those of
`models.layers`. The incomplete last batch of an epoch is left out, 80 of 50,000 images. Images are
normalized by their own mean and deviation, while the code divides both CIFARs by 0.2023, 0.1994 and
0.2010. Crops reach beyond the image into its mean color, not into black. The code renews
BatchNorm's statistics before its last test (`evaluate --renew-statistics`).
"""

from collections.abc import Iterator
from typing import Any

from examples.image_classification.presets.preset import CIFAR, IMAGENET, Row, row
from examples.training.presets import Preset

SOURCE = "F-SAM paper, "
STANDARD = {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9, "batch_size": 128}
SECTION_6_1 = "; batch size from the authors' code"

# Section 6.1. F-SAM has the radius of SAM, F-ASAM the radius of ASAM.
RADII = {
    "cifar10": {"asam": 2.0, "fisher_sam": 0.1, "sam": 0.1},
    "cifar100": {"asam": 4.0, "fisher_sam": 0.1, "sam": 0.2},
}
# model: epochs, decay of F-SAM.
MODELS = {
    "vgg16": (200, 0.6),
    "resnet18": (200, 0.6),
    "wrn28_10": (200, 0.9),
    "pyramidnet110": (300, 0.9),
}


def arguments(method: str, decay: float) -> dict[str, Any]:
    """Returns the arguments of a method beside its radius. Sigma is always 1."""
    friendly = {"decay": decay, "sigma": 1.0} if method.startswith("friendly") else {}
    return friendly | ({"eta": 0.0} if method.endswith("asam") else {})


def friendly_row(source: str, *at: str, **settings: Any) -> Row:
    """Returns a row of this paper."""
    name, preset = row(SOURCE + source, *at, **settings)
    return f"fsam-{name}", preset


def cifar(
    source: str, dataset: str, model: str, method: str, suffix: str = "", **settings: Any
) -> Row:
    """Returns a row with the training of section 6.1."""
    epochs, decay = MODELS[model]
    training = STANDARD | {
        "epochs": epochs,
        "weight_decay": 5e-4 if method == "sgd" else 1e-3,
        "augmentation": CIFAR,
        "rho": RADII[dataset].get(method.replace("friendly_", "")),
        "method_args": arguments(method, decay),
    }
    return friendly_row(source + SECTION_6_1, dataset, model, method, suffix, **training | settings)


def tables_1_and_2() -> Iterator[Row]:
    """Yields CIFAR-10 and CIFAR-100, by model and method."""
    for table, dataset in enumerate(RADII, start=1):
        for model in MODELS:
            for method in ("sgd", "asam", "fisher_sam", "sam", "friendly_sam"):
                yield cifar(f"table {table}", dataset, model, method)


def table_3() -> Iterator[Row]:
    """Yields F-SAM in the geometry of ASAM."""
    source = "table 3; radius of ASAM and decay of F-SAM, which it does not give"
    for dataset in RADII:
        for model in ("resnet18", "wrn28_10"):
            yield cifar(source, dataset, model, "friendly_asam")


def table_4() -> Iterator[Row]:
    """Yields ImageNet."""
    training = STANDARD | {"epochs": 90, "weight_decay": 1e-4, "augmentation": IMAGENET}
    for method in ("sgd", "asam", "sam", "friendly_sam"):
        rho, method_args = None if method == "sgd" else 0.075, arguments(method, 0.95)
        own = {"rho": rho, "method_args": method_args}
        yield friendly_row("table 4", "imagenet2012", "resnet50", method, **training, **own)


def table_5() -> Iterator[Row]:
    """Yields fine-tuning of DeiT-S on other data sets."""
    training = {
        **{"optimizer": "adamw", "epochs": 10, "batch_size": 128, "weight_decay": 1e-5},
        **{"learning_rate": 1e-4, "image_size": 224, "normalization": "imagenet"},
    }
    for dataset in ("cifar10", "cifar100", "cars196", "oxford_iiit_pet", "oxford_flowers102"):
        augmentation = ("crop", "flip") if dataset.startswith("cifar") else IMAGENET
        for method in ("sgd", "sam", "friendly_sam"):
            own = {
                "rho": None if method == "sgd" else 0.075,
                "method_args": arguments(method, 0.95),
                "augmentation": augmentation,
            }
            source = "table 5; augmentation and decay of F-SAM are ours; needs --init"
            yield friendly_row(source, dataset, "vit_s", method, **training, **own)


def table_6() -> Iterator[Row]:
    """Yields wrong labels."""
    # New labels among all ten classes leave a tenth right. `Config.label_noise` counts wrong ones.
    source = "table 6; the authors' code draws new labels among all classes: a tenth stay right"
    for rate in (0.2, 0.6, 0.7, 0.8):
        for method in ("sgd", "sam", "friendly_sam"):
            at = source, "cifar10", "resnet18", method, f"-noise{rate:g}"
            yield cifar(*at, label_noise=round(0.9 * rate, 6))


def figure_3() -> Iterator[Row]:
    """Yields other radii."""
    source = (
        "figure 3; radii half, once and twice those of tables 1 and 2 (ours: the text has twice)"
    )
    for dataset, radii in RADII.items():
        for method in ("sam", "friendly_sam"):
            for factor in (0.5, 1.0, 2.0):
                rho = factor * radii["sam"]
                yield cifar(source, dataset, "resnet18", method, f"-rho{rho:g}", rho=rho)


def figure_4() -> Iterator[Row]:
    """Yields other batch sizes."""
    for batch_size in (128, 512, 2048):
        for method in ("sgd", "sam", "friendly_sam"):
            source = "figure 4; dataset and model are ours"
            at = source, "cifar100", "resnet18", method, f"-batch{batch_size}"
            yield cifar(*at, batch_size=batch_size)


def figures_1_and_2() -> Iterator[Row]:
    """Yields ascents along parts of the gradient, and along those of other batches (section 4)."""
    source = "figures 1 and 2; radius of SAM in tables 1 and 2, model of figure 2c"
    for dataset in RADII:
        radius: dict[str, Any] = {"rho": RADII[dataset]["sam"], "method_args": {}}
        for method in ("sam_full", "sam_noise", "sam_noise_eq8", "sam_db"):
            yield cifar(source, dataset, "resnet18", method, **radius)
    for batches in range(2, 11):
        own: dict[str, Any] = {"rho": RADII["cifar100"]["sam"]}
        own["method_args"] = {"batches": batches}
        at = source, "cifar100", "resnet18", "sam_larger_batch", f"-batches{batches}"
        yield cifar(*at, **own)


def equation_11() -> Iterator[Row]:
    """Yields F-SAM with sigma the cosine of average and gradient, which the paper replaces by 1."""
    for dataset in RADII:
        arguments = {"decay": 0.6, "sigma": "cosine"}
        at = "equation 11", dataset, "resnet18", "friendly_sam", "-cosine"
        yield cifar(*at, method_args=arguments)


PRESETS: dict[str, Preset] = {
    name: preset
    for table in (
        tables_1_and_2,
        table_3,
        table_4,
        table_5,
        table_6,
        figure_3,
        figure_4,
        figures_1_and_2,
        equation_11,
    )
    for name, preset in table()
}
