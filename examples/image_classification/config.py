"""The settings of image classification."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from examples.training.check_name import check_name
from examples.training.settings import Settings, defaults


@dataclass(frozen=True)
class DataSettings:
    """The settings of the images."""

    dataset: str = "digits"
    """digits, cifar10, cifar100, mnist, fashion_mnist, tiny_imagenet, imagenet2012, cars196,
    oxford_flowers102, oxford_iiit_pet."""
    train_size: int | None = None
    """Number of training images; None is all that are not for validation."""
    validation_size: int = 0
    """Number of training images kept for validation; the test then waits for the last epoch."""
    label_noise: float = 0.0
    """Share of training labels replaced by another class at random."""
    image_size: int | None = None
    """Side to which the network resizes images, after augmentation; None is theirs."""
    augmentation: tuple[str, ...] = ()
    """In the order given: crop, flip, cutout, resized_crop, erasing. cutout=0.5 erases in half of
    the images, resized_crop=0.8 keeps at least that share of the area. ImageNet is always cropped
    and flipped, like all photographs of other sizes."""
    normalization: Literal["dataset", "imagenet", "half"] = "dataset"
    """Mean and deviation of each channel to normalize images by: the dataset's, those of ImageNet
    for weights of DeiT and ResNets (`--init`), or 0.5 for other vision transformers of timm."""
    batch_size: int = 64
    """Images per step, on all devices together."""


@dataclass(frozen=True)
class Config(Settings, DataSettings):
    """Trains an image classifier, or resumes an interrupted run."""

    program: ClassVar = "image_classification"
    identity: ClassVar = ("dataset", *Settings.identity)
    of_data: ClassVar = ("data_dir", "label_noise")

    model: str = "mlp"
    """A model by name; `--model list` lists them."""
    init: Path | None = None
    """Weights to start from, but for the head: a .safetensors file with timm's names, for vit_mini,
    vit_ti, vit_s, resnet18 and resnet50."""

    ranges: ClassVar = (
        ("validation_size", lambda value: value >= 0, "at least 0"),
        ("train_size image_size batch_size", lambda value: value >= 1, "at least 1"),
        ("label_noise", lambda value: 0 <= value < 1, "at least 0 and below 1"),
    )

    def __post_init__(self) -> None:
        """Converts paths and the augmentation to what the command line has."""
        super().__post_init__()
        if isinstance(self.init, str | Path):
            object.__setattr__(self, "init", Path(self.init).expanduser())
        if isinstance(self.augmentation, str):
            object.__setattr__(self, "augmentation", tuple(self.augmentation.split()))
        elif isinstance(self.augmentation, list):
            object.__setattr__(self, "augmentation", tuple(self.augmentation))

    def data_name(self) -> str:
        """Returns the name of the dataset."""
        return self.dataset

    def has_validation(self) -> bool:
        """Returns whether there are validation images."""
        return self.validation_size > 0

    def for_evaluation(self) -> "Config":
        """Returns settings with the same images and their right labels, alike for all methods."""
        names = "dataset train_size validation_size batch_size image_size normalization data_dir"
        return Config(**{name: getattr(self, name) for name in names.split()})

    def loss_batches(self, number: int, size: int) -> list[Any]:
        """Returns the first images of training with the labels of training, in batches.

        Raises:
          ValueError: There are too few, or they are decoded as they are read.
        """
        from examples.image_classification import batches, data

        train = data.load(self).train
        if isinstance(train, batches.Stream):
            raise ValueError("images that are decoded as they are read take too long")
        if number > train.size:
            raise ValueError(f"it was trained on {train.size} images: lower --images")
        return [train.select(slice(start, start + size)) for start in range(0, number, size)]

    def trains_together(self) -> bool:
        """Returns whether several seeds are faster in one program."""
        from examples.image_classification.many_runs import is_worthwhile

        return is_worthwhile(self)

    def load(self) -> Any:
        """Returns the images as `Batches`."""
        # Readers and models take a second to import, and need this class.
        from examples.image_classification import batches, data
        from examples.image_classification.presets import PRESETS

        if self.preset is not None:  # it is part of the name of the folder
            check_name("preset", self.preset, PRESETS, " (--preset list)")
        return batches.Batches(data.load(self), self)

    def make_program(self, spec: Any) -> Any:
        """Returns the compiled `ImageProgram`."""
        from examples.image_classification.program import ImageProgram
        from examples.training.program import share_program

        return share_program(ImageProgram, self, spec)

    def own_ignored_settings(self) -> dict[str, tuple[str, str]]:
        """Returns the data folder where the images need none."""
        if self.dataset != "digits":
            return {}
        return {"data_dir": (self.dataset, "scikit-learn includes the images")}

    def check_own(self) -> None:
        """Raises ValueError where groups or parts do not divide the batch."""
        for name in ("groups", "accumulate"):
            if self.batch_size % (parts := getattr(self, name)):
                raise ValueError(f"{name} {parts} must divide the batch_size {self.batch_size}")


DEFAULTS = defaults(Config)
