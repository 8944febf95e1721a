"""The datasets by name: reading, splits, and label noise.

Datasets that fit into memory are `Images`. The splits of ImageNet are a `Stream` each, which
decodes batches of `Images` on the way.
"""

import hashlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from examples.image_classification.batches import FORMATS, Dataset, Images, Stream
from examples.image_classification.check_data import check_labels, naming_damage
from examples.image_classification.config import Config
from examples.training.check_name import check_name

_NOISE = 0x6E6F697365  # "noise": wrong labels are independent of the order of the images


class Source(NamedTuple):
    """The reader and the constants of a dataset.

    Attributes:
      read: Maps the name and the data folder to all training images and all test images.
      num_classes: Number of classes.
      image_shape: Height, width and channels.
      mean: Mean of the training pixels, scaled to lie between 0 and 1, a number per channel.
      std: Their standard deviation, a number per channel.
    """

    read: Callable[[str, Path], tuple[Any, Any]]
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load(config: Config) -> Dataset:
    """Loads the dataset of a run, with its splits and label noise.

    A shuffle of the training images that is the same for every seed puts the images to train on
    first and the images for validation last. A smaller `train_size` is thus part of a larger one.
    Only the images to train on have label noise, which depends on `config.seed`.

    Args:
      config: Its `dataset`, `data_dir`, `train_size`, `validation_size`, `label_noise` and `seed`.

    Raises:
      ValueError: The dataset is unknown, a size or rate is out of range, or a label is no class.
      OSError: The data are missing or damaged.
    """
    check_name("dataset", config.dataset, DATASETS)
    source = DATASETS[config.dataset]
    train, test = source.read(config.dataset, data_folder(config))
    for split, images in (("training", train), ("test", test)):
        if isinstance(images, Images):
            # Label noise takes a remainder, which would hide a wrong label.
            check_labels(images.labels, source.num_classes, f"{split} labels of {config.dataset}")
    chosen, held_out = split_indices(train.size, config.train_size, config.validation_size)
    shifts = label_shifts(len(chosen), config.label_noise, source.num_classes, config.seed)
    of_dataset = source.mean, source.std
    mean, std = {"dataset": of_dataset, "half": HALF, "imagenet": IMAGENET}[config.normalization]
    return Dataset(
        train=train.select(chosen).shift_labels(shifts, source.num_classes),
        test=test,
        mean=np.array(mean, np.float32),
        std=np.array(std, np.float32),
        num_classes=source.num_classes,
        image_shape=source.image_shape,
        validation=train.select(held_out) if len(held_out) else None,
    )


def data_folder(config: Config) -> Path:
    """Returns the folder of the data."""
    folder = config.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(folder).expanduser().resolve()


def split_indices(
    total: int, train_size: int | None, validation_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of the images for training and for validation."""
    if validation_size < 0:
        raise ValueError(f"validation_size must be at least 0, got {validation_size}")
    left = total - validation_size
    if left < 1:
        raise ValueError(
            f"validation_size must leave some of the {total} training images, got {validation_size}"
        )
    size = left if train_size is None else train_size
    if not 1 <= size <= left:
        beside = f" beside {validation_size} for validation" if validation_size else ""
        raise ValueError(f"train_size must be between 1 and {left}{beside}, got {train_size}")
    order = np.random.default_rng(0).permutation(total)
    return order[:size], order[left:]


def label_shifts(size: int, rate: float, num_classes: int, seed: int) -> np.ndarray:
    """Returns symmetric label noise, to be added to labels modulo the number of classes.

    Exactly `round(rate * size)` shifts are not 0. Each of the other classes is equally likely.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"label_noise must be between 0 and 1, got {rate}")
    rng = np.random.default_rng((_NOISE, seed))
    shifts = np.zeros(size, np.int32)
    wrong = rng.choice(size, round(rate * size), replace=False)
    shifts[wrong] = rng.integers(1, num_classes, wrong.size)
    return shifts


# --- Readers ---


@lru_cache(maxsize=1)  # many seeds read the same
def read_digits(name: str, directory: Path) -> tuple[Images, Images]:
    """Reads the digits of scikit-learn. The last 500 of a fixed shuffle are the test images."""
    from sklearn.datasets import load_digits

    del name, directory
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    pixels = np.rint(digits.images[order, ..., None] * (255 / 16)).astype(np.uint8)
    labels = digits.target[order].astype(np.int32)
    return Images(pixels[:-500], labels[:-500]), Images(pixels[-500:], labels[-500:])


def read_tfds(name: str, directory: Path) -> tuple[Images, Images]:
    """Reads all images of a dataset that TensorFlow Datasets has prepared."""
    version = _tfds_version(name, directory)
    files = [path for path in version.iterdir() if path.is_file()]

    def read(split: str) -> Images:
        with naming_damage(version):
            records = _tfds_records(version, split)
            pixels = np.empty((len(records), *DATASETS[name].image_shape), np.uint8)
            labels = np.empty(len(records), np.int32)
            for start in range(0, len(records), 1000):
                rows = range(start, min(start + 1000, len(records)))
                for row, record in zip(rows, records.__getitems__(rows), strict=True):
                    pixels[row] = _decode(io.BytesIO(record["image"])).reshape(pixels.shape[1:])
                    labels[row] = record["label"]
            return Images(pixels, labels)

    train, test = (cached(f"{name}-{s}", files, partial(read, s)) for s in ("train", "test"))
    return train, test


# Where TensorFlow Datasets has other names than the authors of CIFAR-10-C.
TFDS_CORRUPTIONS = {"glass_blur": "frosted_glass_blur", "elastic_transform": "elastic"}


def read_corrupted(config: Config, corruption: str, severity: int) -> Images | None:
    """Returns test images as published in CIFAR-10-C, or None if they have not been prepared.

    They are `cifar10_corrupted` of TensorFlow Datasets.
    """
    kind = f"{TFDS_CORRUPTIONS.get(corruption, corruption)}_{severity}"
    name = f"{config.dataset}_corrupted/{kind}"
    if config.dataset != "cifar10" or not (data_folder(config) / name).is_dir():
        return None
    version = _tfds_version(name, data_folder(config))
    with naming_damage(version):
        records = _tfds_records(version, "test")
        rows = records.__getitems__(range(len(records)))
        pixels = np.stack([_decode(io.BytesIO(row["image"])) for row in rows])
        return Images(pixels, np.array([row["label"] for row in rows], np.int32))


def read_photographs(name: str, directory: Path, test: str = "test") -> tuple[Stream, Stream]:
    """Opens images of any size as prepared by TensorFlow Datasets.

    Args:
      name: The name of the dataset.
      directory: The data folder.
      test: The split whose images are the test.
    """
    version = _tfds_version(name, directory)

    def stream(split: str) -> Stream:
        with naming_damage(version):
            records = _tfds_records(version, split)
        size, classes = len(records), DATASETS[name].num_classes
        shifts = np.zeros(size, np.int32)
        return Stream(records, np.arange(size), shifts, classes, name=f"{version}, {split}")

    return stream("train"), stream(test)


def read_tiny_imagenet(name: str, directory: Path) -> tuple[Images, Images]:
    """Reads the folder of tiny-imagenet-200.zip, with its validation images as the test."""
    folder = directory / "tiny-imagenet-200"
    annotations = folder / "val" / "val_annotations.txt"
    if not annotations.exists():
        raise FileNotFoundError(
            f"{name} is not in {directory}: there is no {annotations.relative_to(directory)}. "
            "Unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip there, or pass --data-dir"
        )
    folders = sorted(path for path in (folder / "train").iterdir() if path.is_dir())
    classes = {path.name: i for i, path in enumerate(folders)}

    def train() -> Images:
        paths = sorted((folder / "train").glob("*/images/*.JPEG"))
        return _read_files([(path, classes[path.parent.parent.name]) for path in paths])

    def validation() -> Images:
        images = folder / "val" / "images"
        with naming_damage(annotations):
            rows = [line.split("\t") for line in annotations.read_text().splitlines()]
            files = [(images / row[0], classes[row[1]]) for row in rows]
        return _read_files(files)

    files = [annotations, *(path / "images" for path in folders)]
    return cached(f"{name}-train", files, train), cached(f"{name}-test", files, validation)


def _read_files(files: list[tuple[Path, int]]) -> Images:
    def decode(path: Path) -> np.ndarray:
        with naming_damage(path):
            return _decode(path, "RGB")

    pixels = np.stack([decode(path) for path, _ in files])
    return Images(pixels, np.array([label for _, label in files], np.int32))


def _decode(file: Any, mode: str | None = None) -> np.ndarray:
    with Image.open(file, formats=FORMATS) as image:
        return np.asarray(image.convert(mode))


def _tfds_version(name: str, directory: Path) -> Path:
    """Returns the folder of the newest version in array_record format."""
    found = [
        path.parent
        for path in (directory / name).glob("*/dataset_info.json")
        if read_format(path) == "array_record"
    ]
    if not found:
        raise FileNotFoundError(
            f"{name} is not in {directory} as array_record files. Pass --data-dir, or prepare it, "
            "which needs the internet and tensorflow: "
            "python -c 'import tensorflow_datasets as tfds; "
            f'tfds.builder("{name}", data_dir="{directory}", file_format="array_record")'
            ".download_and_prepare()'"
        )
    return max(found, key=lambda path: [int(part) for part in path.name.split(".")])


def read_format(path: Path) -> str | None:
    """Returns the format of the files beside a dataset_info.json."""
    with naming_damage(path):
        return json.loads(path.read_text()).get("fileFormat")


def _tfds_records(version: Path, split: str) -> Any:
    """Opens a split at random access without decoding its images."""
    import tensorflow_datasets as tfds  # takes a second

    builder = tfds.builder_from_directory(version)
    # Masks and the like are not decoded either.
    images = [
        name for name, f in builder.info.features.items() if isinstance(f, tfds.features.Image)
    ]
    decoders = {name: tfds.decode.SkipDecoding() for name in images}
    return builder.as_data_source(split=split, decoders=decoders)


def cached(name: str, files: Iterable[Path], read: Callable[[], Images]) -> Images:
    """Reads images through the user's cache, anew where one of the files has changed.

    A cache that cannot be read or written is not an error.
    """
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files)]
    key = hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "xsam_jax"
    paths = [folder / f"{name}-{key}-{field}.npy" for field in Images._fields]
    try:
        return Images(*(np.load(path, mmap_mode="r") for path in paths))
    except (OSError, ValueError, EOFError):
        print(f"decoding {name}, once: up to a minute", file=sys.stderr)
        images = read()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            for path, array in zip(paths, images, strict=True):
                np.save(Path(temporary) / path.name, array)
                # Another process may be reading, or writing the same.
                os.replace(Path(temporary) / path.name, path)
    except OSError:
        pass
    return images


# Means and standard deviations over all training pixels. ImageNet's are those of torchvision, which
# fine-tuning on other photographs keeps.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5,) * 3, (0.5,) * 3
DATASETS: dict[str, Source] = {
    "digits": Source(read_digits, 10, (8, 8, 1), (0.0,), (1.0,)),  # not normalized
    "cifar10": Source(
        read_tfds, 10, (32, 32, 3), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    ),
    "cifar100": Source(
        read_tfds, 100, (32, 32, 3), (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    ),
    "mnist": Source(read_tfds, 10, (28, 28, 1), (0.1307,), (0.3081,)),
    "fashion_mnist": Source(read_tfds, 10, (28, 28, 1), (0.2860,), (0.3530,)),
    "tiny_imagenet": Source(
        read_tiny_imagenet, 200, (64, 64, 3), (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
    ),
    "imagenet2012": Source(
        partial(read_photographs, test="validation"), 1000, (224, 224, 3), *IMAGENET
    ),
    "cars196": Source(read_photographs, 196, (224, 224, 3), *IMAGENET),
    "oxford_flowers102": Source(read_photographs, 102, (224, 224, 3), *IMAGENET),
    "oxford_iiit_pet": Source(read_photographs, 37, (224, 224, 3), *IMAGENET),
}
