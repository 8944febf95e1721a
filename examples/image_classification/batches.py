"""Images in memory or decoded on the way, and their batches on all devices."""

import io
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from examples.image_classification.check_data import check_finite, check_labels, naming_damage
from examples.image_classification.config import Config
from examples.training.devices import device_mesh, join, place

FORMATS = ("PNG", "JPEG")  # of the datasets; Pillow's other decoders are left alone
EVALUATION_BATCH = 1000
STREAMED_EVALUATION_BATCH = 250


class Images(NamedTuple):
    """Images with their labels, a whole split or a batch.

    Attributes:
      pixels: uint8, (images, height, width, channels).
      labels: int32, (images,). A label of -1 marks padding at the end of the last batch.
    """

    pixels: Any
    labels: Any

    @property
    def size(self) -> int:
        """The number of images."""
        return len(self.labels)

    def select(self, indices: np.ndarray) -> "Images":
        """Returns the images at these indices."""
        return Images(self.pixels[indices], self.labels[indices])

    def shift_labels(self, shifts: np.ndarray, num_classes: int) -> "Images":
        """Adds to the labels, modulo the number of classes."""
        return self._replace(labels=(self.labels + shifts) % num_classes)


@dataclass(frozen=True)
class Stream:
    """Encoded images that do not fit into memory, decoded batch by batch.

    Its only position is the epoch and the step within, from which `batches` starts.

    Attributes:
      records: Encoded images and labels at random access, as `{"image": bytes, "label": int}`.
      indices: The records of this split.
      shifts: Added to the labels, modulo the number of classes.
      num_classes: Number of classes.
      side: Height and width of the decoded images.
      name: The records, for error messages.
    """

    records: Sequence[Mapping[str, Any]]
    indices: np.ndarray
    shifts: np.ndarray
    num_classes: int
    side: int = 224
    name: str = "stream"

    @property
    def size(self) -> int:
        """The number of images."""
        return len(self.indices)

    def select(self, indices: np.ndarray) -> "Stream":
        """Returns the images at these indices."""
        return replace(self, indices=self.indices[indices], shifts=self.shifts[indices])

    def shift_labels(self, shifts: np.ndarray, num_classes: int) -> "Stream":
        """Adds to the labels, modulo the number of classes."""
        return replace(self, shifts=(self.shifts + shifts) % num_classes)

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Images]:
        """Yields this process's part of the batches of one epoch.

        With a seed the batches are for training: in random order, without the incomplete last
        batch, and augmented as for ImageNet. Order and augmentation are functions of seed and
        epoch, so an interrupted run resumes with the same images on any number of processes.
        Without a seed they are for evaluation: in order, the last batch padded with labels of -1.

        Args:
          batch_size: Images per batch, of all processes together.
          seed: Seed of order and augmentation, or None to evaluate.
          epoch: Epoch, counted from 0.
          start_step: First step within the epoch.
          process_index: Which part of every batch to yield.
          process_count: Number of parts.

        Raises:
          ValueError: The processes do not divide the batch, or it exceeds the images.
        """
        rows = schedule_rows(self.size, batch_size, seed, epoch)
        if batch_size % process_count:
            raise ValueError(
                f"batch_size must be a multiple of the {process_count} processes, got {batch_size}"
            )
        return self._decode(
            np.split(rows[start_step:], process_count, axis=1)[process_index], seed, epoch
        )

    def _decode(self, rows: np.ndarray, seed: int | None, epoch: int) -> Iterator[Images]:
        import grain  # takes seconds, and no other data need it

        def read(position: int) -> Images:
            if position < 0:
                return Images(np.zeros((self.side, self.side, 3), np.uint8), np.int32(-1))
            index = int(self.indices[position])
            with naming_damage(f"{self.name}, record {index}"):
                record = self.records[index]
                check_labels(np.array(record["label"]), self.num_classes, "label")
                with Image.open(io.BytesIO(record["image"]), formats=FORMATS) as encoded:
                    image = encoded.convert("RGB")
            label = (record["label"] + self.shifts[position]) % self.num_classes
            if seed is None:
                view = center_crop(image, self.side)
            else:
                # Seeds do not see trailing zeros: without the 1, image 0 would repeat the order.
                rng = np.random.default_rng((seed, epoch, int(position), 1))
                view = random_resized_crop(image, self.side, rng)
            return Images(view, np.int32(label))

        # Pillow decodes and resizes without the interpreter's lock, so that threads suffice.
        options = grain.ReadOptions(os.cpu_count() or 1, prefetch_buffer_size=2 * rows.shape[1])
        images = grain.MapDataset.source(rows.ravel()).map(read).to_iter_dataset(options)
        yield from images.batch(rows.shape[1])


class Dataset(NamedTuple):
    """Splits of a dataset with its constants.

    Attributes:
      train: Training images, as `Images` or a `Stream`.
      test: Test images, alike.
      mean: Mean of pixels between 0 and 1, a number per channel.
      std: Standard deviation of pixels between 0 and 1, a number per channel.
      num_classes: Number of classes.
      image_shape: Height, width and channels.
      validation: Validation images, alike, or None.
    """

    train: Any
    test: Any
    mean: np.ndarray
    std: np.ndarray
    num_classes: int
    image_shape: tuple[int, int, int]
    validation: Any = None


class DataSpec(NamedTuple):
    """Constants of the data that the compiled program depends on, with the network's images."""

    image_shape: tuple[int, ...]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    steps_per_epoch: int


class Batches:
    """The batches of a dataset, divided over all devices.

    Images that fit into memory lie on every device as bytes, and a batch is a row of indices.
    Larger datasets are decoded during training, and a batch is the images themselves.

    Attributes:
      spec: Constants that the compiled program depends on.
      arrays: Images of each split on the devices, or None for a split that is decoded on the way.
      examples_per_step: The number of images of a batch.
      files: Texts to be kept in the folder of the run, of which there are none.
    """

    def __init__(self, data: Dataset, config: Config) -> None:
        splits = {"train": data.train, "validation": data.validation, "test": data.test}
        self._splits = {name: images for name, images in splits.items() if images is not None}
        for split, images in self._splits.items():
            if isinstance(images, Images):
                check_labels(images.labels, data.num_classes, f"{split} labels")
                check_finite(images.pixels, f"{split} pixels")
        check_finite(data.mean, "mean")
        check_finite(1 / np.where(data.std == 0, np.nan, data.std), "1 / std")
        check_batch_size(config.batch_size, data.train.size, jax.device_count())
        self._config = config
        mesh = device_mesh()
        self._replicated = NamedSharding(mesh, P())
        self._batch = NamedSharding(mesh, P("data"))
        self._steps = NamedSharding(mesh, P(None, "data"))  # the first axis is the step
        side = config.image_size
        self.spec = DataSpec(
            (side, side, data.image_shape[-1]) if side else tuple(data.image_shape),
            data.num_classes,
            tuple(map(float, data.mean)),
            tuple(map(float, data.std)),
            data.train.size // config.batch_size,
        )
        self.examples_per_step = float(config.batch_size)
        self.files: dict[str, str] = {}
        self.arrays = {name: self.place(images) for name, images in self._splits.items()}

    def place(self, images: Images | Stream) -> Images | None:
        """Copies images to every device, or returns None for a stream."""
        if isinstance(images, Stream):
            return None
        return Images(*(place(array, self._replicated) for array in images))

    def split(self, name: str) -> Images | Stream:
        """Returns the images of a split on the host."""
        return self._splits[name]

    def evaluated_splits(self, is_last: bool) -> list[str]:
        """Returns the splits to evaluate. With validation images the test is for the last epoch."""
        names: list[str] = [name for name in self._splits if name != "train"]
        return names if is_last else names[:1]

    def training_rows(self, epoch: int, start_step: int, seed: int | None = None) -> Iterator[Any]:
        """Yields the rows of an epoch, several steps at a time, for one call each.

        A run stops at the end of a call, so that it resumes with the same calls. The order is that
        of `config.seed`, unless another seed is given.
        """
        images, config = self._splits["train"], self._config
        seed = config.seed if seed is None else seed
        steps = self.spec.steps_per_epoch
        requested = config.steps_per_dispatch
        if requested is None:
            # On CPU the gradient of a convolution is thirty times slower inside a loop.
            on_cpu = jax.default_backend() == "cpu"
            has_loop = not isinstance(images, Stream) and (not on_cpu or config.model == "mlp")
            requested = (20 if on_cpu else 50) if has_loop else 1
        size = math.ceil(steps / math.ceil(steps / requested))  # even, for few programs
        if isinstance(images, Stream):
            batches = images.batches(
                config.batch_size, seed=seed, epoch=epoch, start_step=start_step, **_part()
            )
            while several := list(itertools.islice(batches, size)):
                stacked = Images(*map(np.stack, zip(*several, strict=True)))
                yield join(stacked, self._steps)
        else:
            rows = schedule_rows(images.size, config.batch_size, seed, epoch)
            for start in range(start_step, steps, size):
                yield place(rows[start : start + size].astype(np.int32), self._steps)

    def evaluation_rows(self, images: Images | Stream) -> Iterator[Any]:
        """Yields the rows of any images in order, the last one padded with -1."""
        limit = STREAMED_EVALUATION_BATCH if isinstance(images, Stream) else EVALUATION_BATCH
        count = jax.device_count()
        size = math.ceil(min(images.size, limit) / count) * count
        if isinstance(images, Stream):
            for batch in images.batches(size, **_part()):
                yield join(batch, self._batch)
        else:
            for row in schedule_rows(images.size, size, None, 0).astype(np.int32):
                yield place(row, self._batch)


def gather_batch(arrays: Images | None, row: Any) -> Images:
    """Returns the images of a row on the device, with labels of -1 for padding."""
    if arrays is None:
        return row
    return Images(arrays.pixels[row], jnp.where(row < 0, -1, arrays.labels[row]))


def _part() -> dict[str, int]:
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def check_batch_size(batch_size: int, images: int, devices: int) -> None:
    """Raises ValueError where a batch exceeds the images, or the devices do not divide it."""
    if batch_size > images:
        raise ValueError(
            f"batch_size {batch_size} is more than there are training images: {images}"
        )
    if batch_size % devices:
        below = batch_size // devices * devices
        near = f"{below} or {below + devices}" if below else f"{devices}"
        raise ValueError(
            f"batch_size {batch_size} cannot be divided over {devices} devices: take {near}"
        )


def schedule_rows(size: int, batch_size: int, seed: int | None, epoch: int) -> np.ndarray:
    """Returns the indices of each step of an epoch, (steps, batch), as in `Stream.batches`."""
    if seed is None:
        steps = math.ceil(size / batch_size)
        order = np.concatenate([np.arange(size), np.full(steps * batch_size - size, -1)])
        return order.reshape(steps, batch_size)
    steps = size // batch_size
    if not steps:
        raise ValueError(
            f"batch_size must be at most {size}, the training images, got {batch_size}"
        )
    order = np.random.default_rng((seed, epoch)).permutation(size)
    return order[: steps * batch_size].reshape(steps, batch_size)


def random_resized_crop(image: Image.Image, side: int, rng: np.random.Generator) -> np.ndarray:
    """Returns a random part of an image as a square of that side, mirrored half the time.

    The part has 8 to 100 % of the area and a ratio of width to height of 3/4 to 4/3, uniform in
    its logarithm, the defaults of torchvision's RandomResizedCrop. Where none of ten draws fits
    into the image, the largest part in the middle with such a ratio is taken.

    References:
      Szegedy et al., `Going Deeper with Convolutions <https://arxiv.org/abs/1409.4842>`_, 2015
    """
    width, height = image.size
    areas = width * height * rng.uniform(0.08, 1.0, 10)
    ratios = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), 10))
    sizes = np.rint(np.sqrt([areas * ratios, areas / ratios])).astype(int).T
    fitting = sizes[np.all((sizes > 0) & (sizes <= image.size), axis=1)]
    if len(fitting):
        w, h = map(int, fitting[0])
        left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    else:
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
    part = image.crop((left, top, left + w, top + h))
    pixels = np.asarray(part.resize((side, side), Image.Resampling.BILINEAR))
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def center_crop(image: Image.Image, side: int) -> np.ndarray:
    """Returns the middle of an image as a square, 7/8 of its shorter side (224 of 256 pixels)."""
    length = min(image.size) * 7 / 8
    left, top = (image.width - length) / 2, (image.height - length) / 2
    box = (left, top, left + length, top + length)
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box))
