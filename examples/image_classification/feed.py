"""What a step is given: rows of indices into images on the device, or decoded images."""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from examples.image_classification.config import Config
from examples.image_classification.data import Dataset
from examples.image_classification.devices import Devices
from examples.image_classification.streaming import Images, Stream, schedule

PER_DISPATCH = 50  # steps in one call, where loops are as fast as what is in them
EVALUATION_BATCH = 1000
STREAMED_EVALUATION_BATCH = 250


class Shape(NamedTuple):
    """What the compiled program depends on."""

    image: tuple[int, ...]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    steps_per_epoch: int


class Feed:
    """The images of a run, on all devices.

    Data sets that fit lie on the device as bytes, and what a step is given is a row of indices;
    large ones are decoded while the model trains, and what a step is given is the images.

    Attributes:
      shape: what the compiled program depends on.
      arrays: of each split the images and labels on the device; None of one that is decoded.
    """

    def __init__(self, data: Dataset, config: Config, devices: Devices) -> None:
        splits = {"train": data.train, "validation": data.validation, "test": data.test}
        self._splits = {name: images for name, images in splits.items() if images is not None}
        check_batch_size(config.batch_size, _size(self._splits["train"]), devices.count)
        self._config, self._devices = config, devices
        self.shape = Shape(
            tuple(data.image_shape),
            data.num_classes,
            tuple(map(float, data.mean)),
            tuple(map(float, data.std)),
            _size(self._splits["train"]) // config.batch_size,
        )
        self.arrays = {name: self.place(images) for name, images in self._splits.items()}

    def place(self, images: Images | Stream) -> Images | None:
        """Returns images on all devices; None of those that are decoded."""
        if isinstance(images, Stream):
            return None
        return Images(*(self._devices.place(array, self._devices.replicated) for array in images))

    def images(self, split: str) -> Images | Stream:
        """Returns the images of a split, on the host."""
        return self._splits[split]

    def held_out(self, last: bool) -> list[str]:
        """Returns what to evaluate on: where there are validation images, the test waits."""
        names: list[str] = [name for name in self._splits if name != "train"]
        return names if last else names[:1]

    @staticmethod
    def batch(arrays: Images | None, row: Any) -> Images:
        """Returns the images of a row, with label -1 where it was only filled up."""
        if arrays is None:
            return row
        labels = jnp.where(row < 0, -1, arrays.labels[row])
        return Images(arrays.pixels[row], labels)

    def rows(self, epoch: int, first: int) -> Iterator[Any]:
        """Yields the rows of an epoch from its step `first` on, as many as go into one call.

        Where a run stopped is at the end of a call, so that it goes on with the same calls.
        """
        images, config = self._splits["train"], self._config
        steps = self.shape.steps_per_epoch
        asked = config.steps_per_dispatch
        if asked is None:
            looped = jax.default_backend() != "cpu" and not isinstance(images, Stream)
            asked = PER_DISPATCH if looped else 1
        size = math.ceil(steps / math.ceil(steps / asked))  # even, for few programs
        if isinstance(images, Stream):
            batches = images.batches(
                config.batch_size, seed=config.seed, epoch=epoch, start_step=first, **_process()
            )
            while several := list(itertools.islice(batches, size)):
                yield jax.tree.map(
                    self._devices.join_steps, Images(*map(np.stack, zip(*several, strict=True)))
                )
        else:
            order = schedule(_size(images), config.batch_size, config.seed, epoch).astype(np.int32)
            for start in range(first, steps, size):
                yield self._devices.place(order[start : start + size], self._devices.steps)

    def evaluation_rows(self, split: str) -> Iterator[Any]:
        """Yields the rows of a split in order, the last one filled up."""
        return self.rows_in_order(self._splits[split])

    def rows_in_order(self, images: Images | Stream) -> Iterator[Any]:
        """Yields the rows of any images in order, the last one filled up."""
        count = self._devices.count
        limit = STREAMED_EVALUATION_BATCH if isinstance(images, Stream) else EVALUATION_BATCH
        size = math.ceil(min(_size(images), limit) / count) * count
        if isinstance(images, Stream):
            for batch in images.batches(size, **_process()):
                yield jax.tree.map(self._devices.join_batch, batch)
        else:
            for row in schedule(_size(images), size, None, 0).astype(np.int32):
                yield self._devices.place(row, self._devices.batch)


def _size(images: Images | Stream) -> int:
    return images.size if isinstance(images, Stream) else len(images.labels)


def _process() -> dict[str, int]:
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def check_batch_size(batch_size: int, images: int, devices: int) -> None:
    """Raises ValueError where there is no such batch."""
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
