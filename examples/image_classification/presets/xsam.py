"""The settings of "Revisiting Sharpness-Aware Minimization" (XSAM), ICLR 2026, table by table.

Names are `{dataset}-{model}-{method}`, with a suffix for differences from table 5.

- The paper's "WSAM", XSAM with a fixed alpha, is `slerp_sam` here.
- "SGD" is ambiguous. Table 5 gives it an alpha of 0 and no rho, and section 5.2 says that all
  methods take SAM's gradient scale. `-sgd` is plain SGD. `-slerp_sam-alpha0` is the direction of
  the first gradient at the length of SAM's, "SGD+" in the authors' code.
- Alpha is searched once per epoch among 21 values in [0, 2]. The text allows 20 to 40 values up to
  2 or 4, and the authors' code has these.
- The authors' code also flips images, applies CutOut to half of them, and crops at least 80 % of an
  image of Tiny-ImageNet. It trains on these images at 32 pixels (`--image-size 64` for all of
  them). It tests on the middle of enlarged images, whereas whole images are tested here.
- The authors' code lowers the learning rate after each epoch (`cosine_every`).
- Initial weights are those of `models.layers`. Images are normalized by the mean and deviation of
  the training images. An incomplete last batch is left out, but these batches divide the data.
- Tables 1, 2, 3, 15 and 16 are results of tables 5 and 9. The translation in table 9 is left out.
"""

from collections.abc import Iterator
from typing import Any

from examples.image_classification.presets.preset import CIFAR, IMAGENET, Row, row
from examples.training.presets import Preset

AUGMENTATION = {
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    "tiny_imagenet": ("resized_crop=0.8", "flip", "erasing"),
}
SGD = {"optimizer": "sgd", "momentum": 0.9}
PER_EPOCH = {"cosine_every": "epoch"}
STANDARD = SGD | PER_EPOCH
STANDARD |= {"epochs": 200, "batch_size": 125, "learning_rate": 0.05, "weight_decay": 1e-3}
SEARCH = {"probe_every": None, "alpha_max": 2.0, "num_alphas": 21}

# dataset, model: rho of all methods, rho_max of XSAM, alpha of the fixed direction.
TABLE_5 = {
    ("cifar10", "vgg11"): (0.15, 0.30, 0.75),
    ("cifar100", "vgg11"): (0.15, 0.30, 1.0),
    ("tiny_imagenet", "vgg11"): (0.20, 1.20, 1.0),
    ("cifar10", "resnet18"): (0.15, 0.25, 0.5),
    ("cifar100", "resnet18"): (0.15, 0.30, 1.25),
    ("tiny_imagenet", "resnet18"): (0.20, 0.25, 1.0),
    ("cifar10", "densenet121"): (0.05, 0.10, 1.25),
    ("cifar100", "densenet121"): (0.10, 0.20, 0.75),
    ("tiny_imagenet", "densenet121"): (0.20, 0.20, 0.75),
}
# rho: rho_max, alpha.
TABLE_6 = {0.10: (0.30, 1.57), 0.20: (0.30, 1.15), 0.30: (0.30, 0.92)}
TABLE_8 = {0.04: (0.30, 1.72), 0.08: (0.25, 1.15), 0.12: (0.20, 0.41)}
# dataset, model: the methods compared at k = 1, 2 and 4.
MULTI_STEP = {
    4: ("cifar100", "resnet18", ("sam", "lsam", "lsam+", "msam", "msam+", "xsam")),
    13: ("cifar100", "densenet121", ("lsam", "msam", "xsam")),
    14: ("cifar10", "resnet18", ("lsam", "msam", "xsam")),
}
# dataset, model: rho, rho_max, and the training.
TABLE_9: dict[tuple[str, str], tuple[float, float, dict[str, Any]]] = {
    ("imagenet2012", "resnet50"): (
        0.05,
        0.3,
        SGD
        | PER_EPOCH
        | {"epochs": 90, "batch_size": 512, "learning_rate": 0.2, "weight_decay": 1e-4}
        | {"label_smoothing": 0.0, "augmentation": IMAGENET},
    ),
    ("cifar100", "vit_ti"): (
        0.9,
        0.9,
        PER_EPOCH
        | {"optimizer": "adamw", "epochs": 300, "batch_size": 256, "learning_rate": 1e-3}
        | {"weight_decay": 0.3, "label_smoothing": 0.1, "augmentation": ("crop", "flip")},
    ),
}
# method: rho on CIFAR-100, and its arguments, by the official code of each.
TABLE_11: dict[str, tuple[float, dict[str, Any]]] = {
    "asam": (1.0, {"eta": 0.01, "biases": False}),
    "vasso": (0.2, {"theta": 0.9}),
    "decoupled_wsam": (0.05, {"gamma": 0.9}),
    "xsam+asam": (1.0, {"eta": 0.01, "biases": False}),
}


def standard(
    source: str,
    dataset: str,
    model: str,
    method: str,
    suffix: str = "",
    *,
    rho_max: float | None = None,
    **settings: Any,
) -> Row:
    """Returns a row with the training of table 5. Only XSAM has `rho_max`."""
    settings = STANDARD | {"augmentation": AUGMENTATION[dataset]} | settings
    if dataset == "tiny_imagenet":
        settings["image_size"] = 32
    if method.startswith("xsam"):
        settings = {"rho_max": rho_max} | SEARCH | settings
    return row(f"XSAM paper, {source}", dataset, model, method, suffix, **settings)


def table_5() -> Iterator[Row]:
    """Yields one step, by dataset, model and method."""
    for (dataset, model), (rho, rho_max, alpha) in TABLE_5.items():
        at = "table 5", dataset, model
        yield standard(*at, "sgd")
        source = "table 5, SGD read as alpha = 0 at SAM's gradient scale (section 5.2)"
        scaled = source, dataset, model, "slerp_sam", "-alpha0"
        yield standard(*scaled, rho=rho, method_args={"alpha": 0.0})
        yield standard(*at, "sam", rho=rho)
        yield standard(*at, "slerp_sam", rho=rho, method_args={"alpha": alpha})
        yield standard(*at, "xsam", rho=rho, rho_max=rho_max)


def table_6() -> Iterator[Row]:
    """Yields one step at other radii (figure 3b)."""
    for rho, (rho_max, alpha) in TABLE_6.items():
        at, suffix = ("table 6", "cifar100", "resnet18"), f"-rho{rho:g}"
        yield standard(*at, "sam", suffix, rho=rho)
        yield standard(*at, "slerp_sam", suffix, rho=rho, method_args={"alpha": alpha})
        yield standard(*at, "xsam", suffix, rho=rho, rho_max=rho_max)


def figure_3b() -> Iterator[Row]:
    """Yields the grid search of the fixed direction."""
    source = "figure 3b; the grid of alpha in section 5.2"
    for rho in TABLE_6:
        for alpha in (x / 4 for x in range(-4, 13)):
            at, suffix = ("cifar100", "resnet18", "slerp_sam"), f"-rho{rho:g}-alpha{alpha:g}"
            yield standard(source, *at, suffix, rho=rho, method_args={"alpha": alpha})


def table_7() -> Iterator[Row]:
    """Yields how often XSAM probes (figure 4), and how far (figure 14a)."""
    model, rho, rho_max = ("cifar100", "resnet18", "xsam"), 0.15, 0.30
    source = "table 7 and figure 4; steps between probes (ours): 1/10 to 10 epochs"
    for steps in (40, 200, 400, 2000, 4000):
        suffix = f"-probe_every{steps}"
        yield standard(source, *model, suffix, rho=rho, rho_max=rho_max, probe_every=steps)
    source = "table 7 and figure 14a; rho_max (ours): rho to 3 rho, the range of the text"
    for rho_max in (0.15, 0.225, 0.30, 0.375, 0.45):
        yield standard(source, *model, f"-rho_max{rho_max:g}", rho=rho, rho_max=rho_max)


def table_8() -> Iterator[Row]:
    """Yields three steps (figure 3c), and the methods that table 12 adds."""
    for rho, (rho_max, alpha) in TABLE_8.items():
        model, suffix = ("cifar100", "resnet18"), f"-k3-rho{rho:g}"
        steps: dict[str, Any] = {"rho": rho, "ascent_steps": 3}
        fixed = {"alpha": alpha, "between": "first"}
        yield standard("table 8", *model, "sam", suffix, **steps)
        yield standard("table 8", *model, "slerp_sam", suffix, **steps, method_args=fixed)
        yield standard("table 8", *model, "xsam", suffix, **steps, rho_max=rho_max)
        for method in ("lsam", "lsam+", "msam", "msam+"):
            yield standard("table 12, as in table 8", *model, method, suffix, **steps)


def tables_4_13_14() -> Iterator[Row]:
    """Yields one, two and four steps, with the radius of one step divided by their number."""
    for table, (dataset, model, methods) in MULTI_STEP.items():
        rho, rho_max, _ = TABLE_5[dataset, model]
        source = f"table {table}; rho_max as in table 5, since only rho is divided by k"
        for method in methods:
            # Otherwise they would take two steps at k = 1.
            sums = {"method_args": {"at_least": 1}} if method[:4] in ("lsam", "msam") else {}
            for k in (1, 2, 4):
                steps: dict[str, Any] = {"rho": round(rho / k, 6), "ascent_steps": k} | sums
                at = source, dataset, model, method, f"-k{k}"
                yield standard(*at, **steps, rho_max=rho_max)


def table_9() -> Iterator[Row]:
    """Yields ImageNet, and a vision transformer."""
    source = "XSAM paper, table 9; without columns in the text, rho_max read as 0.3 and 0.9"
    for model, (rho, rho_max, training) in TABLE_9.items():
        yield row(source, *model, "sam", rho=rho, **training)
        yield row(source, *model, "xsam", rho=rho, rho_max=rho_max, **SEARCH, **training)


def table_11() -> Iterator[Row]:
    """Yields other methods, and XSAM behind one of them (table 10)."""
    source = "tables 10 and 11; rho and arguments by the method's official code, not the paper"
    for model in ("resnet18", "densenet121"):
        _, rho_max, _ = TABLE_5["cifar100", model]
        for method, (rho, arguments) in TABLE_11.items():
            at = source, "cifar100", model, method
            yield standard(*at, rho=rho, rho_max=rho_max, method_args=arguments)


def figure_17() -> Iterator[Row]:
    """Yields the lengths of XSAM's update (appendix F)."""
    source = "figure 17; dataset and model are ours"
    for scale in ("first", "last", "mean", "max", "slope", "slope_max"):
        at, arguments = (source, "cifar100", "resnet18", "xsam"), {"scale": scale}
        yield standard(*at, f"-scale-{scale}", rho=0.15, rho_max=0.30, method_args=arguments)


PRESETS: dict[str, Preset] = {
    name: preset
    for table in (
        table_5,
        table_6,
        figure_3b,
        table_7,
        table_8,
        tables_4_13_14,
        table_9,
        table_11,
        figure_17,
    )
    for name, preset in table()
}
