"""The compiled programs of image classification: model, augmentation and loss."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from examples.image_classification.augment import make_augmentation
from examples.image_classification.batches import DataSpec, Images, gather_batch
from examples.image_classification.config import Config
from examples.image_classification.models import make_model
from examples.image_classification.pretrained import load_pretrained
from examples.training.ascent_gradients import ascent_gradient
from examples.training.methods import METHODS
from examples.training.optimizer import read_number
from examples.training.program import Losses, Metrics, Program, State


class ImageProgram(Program):
    """The compiled functions of a run that classifies images.

    Attributes:
      pass_over: `pass_over(state, arrays, row)` returns the running statistics after a pass over
        one batch in training mode, at the parameters of the state.
      predict: `predict(state, arrays, row)` returns logits and labels of one batch in evaluation
        mode. A label of -1 marks padding.

    `loss` is not compiled, since its callers differentiate it.
    """

    _config: Config
    _spec: DataSpec

    def __init__(self, config: Config, spec: DataSpec) -> None:
        self._augment = make_augmentation(config.augmentation)
        super().__init__(config, spec)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        self.pass_over = jax.jit(self._pass_over, out_shardings=shardings.statistics)
        self.predict = jax.jit(self._predict, out_shardings=self._replicated)

    def make_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the network, with new weights."""
        return make_model(
            self._config.model,
            num_classes=self._spec.num_classes,
            image_shape=self._spec.image_shape,
            rngs=rngs,
            dtype=jnp.bfloat16 if self._config.bf16 else jnp.float32,
        )

    def gather(self, arrays: Any, row: Any) -> Images:
        """Returns the images of a row."""
        return gather_batch(arrays, row)

    def augment(self, batch: Images, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns augmented images of the network's size, and their labels."""
        return self._resize(self._augment(key, self._normalize(batch.pixels))), batch.labels

    def losses(self, model: Any, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Returns the cross-entropies with smoothed labels, and the accuracy in percent."""
        images, labels = part
        logits = model(images)
        targets = jax.nn.one_hot(labels, self._spec.num_classes)
        targets = optax.smooth_labels(targets, self._config.label_smoothing)
        accuracy = 100 * jnp.mean(logits.argmax(axis=-1) == labels)
        return optax.softmax_cross_entropy(logits, targets), accuracy

    def sums(self, model: Any, batch: Images) -> Metrics:
        """Returns sums of cross-entropy and accuracy over the images, and their number."""
        logits, labels = model(self._as_seen(batch)), batch.labels
        is_image = labels >= 0  # not padding
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {
            "loss": jnp.sum(jnp.where(is_image, losses, 0.0)),
            "accuracy": 100.0 * jnp.sum(logits.argmax(axis=-1) == labels),
            "count": jnp.sum(is_image),
        }

    def loss(self, params: Any, batch: tuple[Any, Images]) -> jax.Array:
        """Returns the mean loss of a batch in evaluation mode, as a function of the parameters.

        Args:
          params: Parameters of the model.
          batch: Running statistics of BatchNorm, which stay fixed, and images.
        """
        statistics, images = batch
        images = self.place(images)
        model = self.evaluation_model(params, statistics)
        logits = model(self._as_seen(images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, images.labels).mean()

    def pretrained(self, params: Any, statistics: Any) -> tuple[Any, Any]:
        """Returns the weights of the file `init`, but for the head."""
        if self._config.init is None:
            return params, statistics
        return load_pretrained(self._config.init, self._config.model, params, statistics)

    def ascent_gradient(
        self, losses_fn: Losses, gradient: Any, state: Any, arrays: Any, row: Any, key: jax.Array
    ) -> Any:
        """Returns another gradient than that of the batch (F-SAM's section 4)."""
        if arrays is None:
            raise ValueError(
                f"{self._config.method} needs all images in memory: use a smaller data set"
            )

        def gradient_of_row(row: jax.Array, key: jax.Array) -> Any:
            part = self.augment(self.gather(arrays, row), key)
            is_image = part[1] >= 0  # not padding

            def total(params: Any) -> jax.Array:
                return jnp.where(is_image, losses_fn(params, part)[0], 0.0).sum()

            return jax.grad(total)(state.params)

        kind = METHODS[self._config.method].ascends_along
        assert kind is not None
        return ascent_gradient(
            kind,
            gradient,
            gradient_of_row,
            size=len(arrays.labels),
            batch=row,
            batches=read_number(self._config, "batches") if kind == "larger_batch" else 1,
            key=key,
        )

    def _resize(self, images: jax.Array) -> jax.Array:
        """Resizes images to those that the network sees, if they differ."""
        shape = (len(images), *self._spec.image_shape)
        if images.shape == shape:
            return images
        precision = jax.lax.Precision.HIGHEST  # GPUs and TPUs would lose half of the digits
        return jax.image.resize(images, shape, "bilinear", precision=precision)

    def _normalize(self, pixels: jax.Array) -> jax.Array:
        mean, std = jnp.array(self._spec.mean), jnp.array(self._spec.std)
        return (pixels / jnp.float32(255) - mean) / std

    def _as_seen(self, images: Images) -> jax.Array:
        """Returns what the network sees of images in evaluation mode."""
        return self._resize(self._normalize(images.pixels))

    def _pass_over(self, state: State, arrays: Any, row: Any) -> Any:
        key = jax.random.key(state.step)
        images, _ = self.augment(self.place(self.gather(arrays, row)), key)
        model = self.training_model(state.params, state.statistics, key)
        model(images)
        return nnx.as_pure(nnx.state(model, nnx.BatchStat))

    def _predict(self, state: State, arrays: Any, row: Any) -> tuple[jax.Array, jax.Array]:
        batch = self.place(self.gather(arrays, row))
        model = self.evaluation_model(state.params, state.statistics)
        return model(self._as_seen(batch)), batch.labels
