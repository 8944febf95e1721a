"""Images that are decoded while the model trains, since all of them do not fit into memory."""

import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image


class Images(NamedTuple):
    """Images with their labels, all of them or a batch.

    Attributes:
        pixels: uint8, (images, height, width, channels).
        labels: int32, (images,); -1 where a batch is only filled up.
    """

    pixels: Any
    labels: Any

    def select(self, indices: np.ndarray) -> "Images":
        return Images(self.pixels[indices], self.labels[indices])

    def shift_labels(self, shifts: np.ndarray, num_classes: int) -> "Images":
        return self._replace(labels=(self.labels + shifts) % num_classes)


@dataclass(frozen=True)
class Stream:
    """What `Images` are where they do not fit into memory: encoded images, decoded batch by batch.

    Where a run stands is its epoch and the step within, and nothing else: `batches` begins there.

    Attributes:
        records: encoded images and labels at random access, as `{"image": bytes, "label": int}`.
        indices: of the records that belong to this split.
        shifts: what is added to the label of each, modulo the number of classes.
        num_classes: of the labels.
        side: of the square images that come out.
    """

    records: Sequence[Mapping[str, Any]]
    indices: np.ndarray
    shifts: np.ndarray
    num_classes: int
    side: int = 224

    @property
    def size(self) -> int:
        return len(self.indices)

    def select(self, indices: np.ndarray) -> "Stream":
        return replace(self, indices=self.indices[indices], shifts=self.shifts[indices])

    def shift_labels(self, shifts: np.ndarray, num_classes: int) -> "Stream":
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
        """Yields the batches of one epoch, or this process's part of each.

        With a seed it is for training: in random order, without the rest that fills no batch, and
        augmented as for ImageNet. Order and augmentation are functions of seed and epoch, so that
        a run that was interrupted goes on with the same images, on any number of processes.
        Without one it is for evaluation: in order, the last batch filled up with labels of -1.

        Args:
            batch_size: of all processes together.
            seed: of order and augmentation; None to evaluate.
            epoch: counted from 0.
            start_step: the step within the epoch to begin with.
            process_index: which part of every batch to yield.
            process_count: the parts of a batch.

        Raises:
            ValueError: if the processes do not divide the batch, or it exceeds the images.
        """
        rows = schedule(self.size, batch_size, seed, epoch)
        if batch_size % process_count:
            raise ValueError(
                f"batch_size must be a multiple of the {process_count} processes, got {batch_size}"
            )
        return self._decoded(
            np.split(rows[start_step:], process_count, axis=1)[process_index], seed, epoch
        )

    def _decoded(self, rows: np.ndarray, seed: int | None, epoch: int) -> Iterator[Images]:
        import grain  # takes seconds, and no other data need it

        def read(position: int) -> Images:
            if position < 0:
                return Images(np.zeros((self.side, self.side, 3), np.uint8), np.int32(-1))
            record = self.records[int(self.indices[position])]
            label = (record["label"] + self.shifts[position]) % self.num_classes
            with Image.open(io.BytesIO(record["image"])) as encoded:
                image = encoded.convert("RGB")
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


def schedule(size: int, batch_size: int, seed: int | None, epoch: int) -> np.ndarray:
    """Returns the images of each step of an epoch, (steps, batch), as in `Stream.batches`."""
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
    """Returns a random part of an image, mirrored half the time, as a square of that side.

    It has 8 to 100 % of the area and a ratio of width to height of 3/4 to 4/3, uniform in its
    logarithm. Where none of ten draws fits into the image, it is the largest such part in the
    middle.

    References:
        Szegedy et al., `Going Deeper with Convolutions <https://arxiv.org/abs/1409.4842>`_, 2015;
        the defaults are those of torchvision's RandomResizedCrop.
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
    """Returns the middle of an image as a square: 7/8 of its shorter side, 224 of 256 pixels."""
    length = min(image.size) * 7 / 8
    left, top = (image.width - length) / 2, (image.height - length) / 2
    box = (left, top, left + length, top + length)
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box))
