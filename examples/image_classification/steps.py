"""One training step, several of them, and an evaluation: all that is compiled."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from examples.image_classification.augment import make_augmentation
from examples.image_classification.config import Config
from examples.image_classification.devices import Devices
from examples.image_classification.feed import Feed, Shape
from examples.image_classification.models import make_model
from examples.image_classification.optimizer import make_optimizer
from examples.image_classification.streaming import Images

Metrics = dict[str, jax.Array]

# Logged every step; those of the second line are in the optimizer's state, with some methods.
METRICS = ("train_loss", "train_accuracy", "gradient_norm", "update_norm")
OF_METHODS = ("sharp_gradient_norm", "alpha", "psi")


class State(NamedTuple):
    """All that the next step needs, and sums over the epoch so far of what is logged."""

    step: jax.Array
    params: Any
    statistics: Any  # of BatchNorm
    opt_state: Any
    sums: Metrics


class Inputs(NamedTuple):
    """What is no part of the compiled program, so that runs which differ in it share one."""

    key: jax.Array
    rho: Any
    rho_max: Any

    @classmethod
    def of(cls, config: Config) -> "Inputs":
        """Returns those of a run."""
        return cls(jax.random.key(config.seed), config.rho, config.rho_max)


class Program:
    """The compiled parts of a run.

    Attributes:
      abstract_state: shapes, types and places of the state, to restore it by.
      init: `init(inputs)` returns the state before the first step.
      train_steps: `train_steps(state, arrays, rows, inputs)` takes a step for each of the rows, and
        returns the new state and the metrics of each step.
      predict: `predict(state, arrays, row)` returns logits and labels of one batch, in evaluation
        mode; a label is -1 where the batch was only filled up.
      evaluate: `evaluate(state, arrays, row)` returns sums over one batch, in evaluation mode.

    `loss` alone is not compiled: who differentiates it compiles what comes of it.
    """

    def __init__(self, config: Config, shape: Shape) -> None:
        self._config, self._shape = config, shape
        self._devices = Devices()
        self._augment = make_augmentation(config.augmentation)
        model = nnx.eval_shape(lambda: self._new_model(nnx.Rngs(0)))
        model.train()
        self._train_graph = nnx.graphdef(model)
        model.eval()
        self._eval_graph = nnx.graphdef(model)
        abstract_state = jax.eval_shape(self._init, Inputs.of(config))
        self._shardings = self._devices.shardings(abstract_state, config.fsdp)
        self.abstract_state = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            abstract_state,
            self._shardings,
        )
        copy = self._devices.replicated
        self.init = jax.jit(self._init, out_shardings=self._shardings)
        self.train_steps = jax.jit(
            self._train_steps, donate_argnums=0, out_shardings=(self._shardings, copy)
        )
        self.predict = jax.jit(self._predict, out_shardings=copy)
        self.evaluate = jax.jit(self._evaluate, out_shardings=copy)

    def _new_model(self, rngs: nnx.Rngs) -> nnx.Module:
        config, shape = self._config, self._shape
        dtype = jnp.bfloat16 if config.bf16 else jnp.float32
        return make_model(
            config.model, num_classes=shape.classes, image_shape=shape.image, rngs=rngs, dtype=dtype
        )

    def _optimizer(self, inputs: Inputs) -> optax.GradientTransformationExtraArgs:
        config = dataclasses.replace(self._config, rho=inputs.rho, rho_max=inputs.rho_max)
        key = jax.random.fold_in(inputs.key, 1)
        return make_optimizer(config, self._shape.steps_per_epoch, key)

    def _init(self, inputs: Inputs) -> State:
        # The default generator compiles for a second per shape on CPU, this one for a fifth of it.
        seed = jax.random.bits(jax.random.fold_in(inputs.key, 0), (4,))
        model = self._new_model(nnx.Rngs(jax.random.wrap_key_data(seed, impl="rbg")))
        params = nnx.as_pure(nnx.state(model, nnx.Param))
        statistics = nnx.as_pure(nnx.state(model, nnx.BatchStat))
        opt_state = self._optimizer(inputs).init(params)
        names = [*METRICS, *(name for name in OF_METHODS if _has(opt_state, name))]
        sums = {name: jnp.zeros(()) for name in names}
        return State(jnp.zeros((), jnp.int32), params, statistics, opt_state, sums)

    def _images(self, pixels: jax.Array) -> jax.Array:
        mean, std = jnp.array(self._shape.mean), jnp.array(self._shape.std)
        return (pixels / jnp.float32(255) - mean) / std

    def _train_step(self, state: State, batch: Images, inputs: Inputs) -> tuple[State, Metrics]:
        batch = jax.lax.with_sharding_constraint(batch, self._devices.batch)
        step_key = jax.random.fold_in(jax.random.fold_in(inputs.key, 2), state.step)
        images = self._augment(step_key, self._images(batch.pixels))
        classes = jax.nn.one_hot(batch.labels, self._shape.classes)
        classes = optax.smooth_labels(classes, self._config.label_smoothing)

        def forward(params: Any) -> tuple[jax.Array, Any]:
            model = nnx.merge(self._train_graph, params, state.statistics)
            logits = model(images)
            statistics = nnx.as_pure(nnx.state(model, nnx.BatchStat))
            return optax.softmax_cross_entropy(logits, classes), (logits, statistics)

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            losses, aux = forward(params)
            return losses.mean(), aux

        # The clean pass; it alone advances the statistics of BatchNorm.
        (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        logits, statistics = aux
        updates, opt_state = self._optimizer(inputs).update(
            grads,
            state.opt_state,
            state.params,
            value_fn=lambda params: loss_fn(params)[0],
            losses_fn=lambda params: forward(params)[0],  # ESAM compares samples
            value=loss,
        )
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "train_loss": loss,
            "train_accuracy": 100 * jnp.mean(logits.argmax(axis=-1) == batch.labels),
            "gradient_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
        }
        metrics |= {n: optax.tree.get(opt_state, n) for n in OF_METHODS if _has(opt_state, n)}
        metrics = {name: jnp.float32(value) for name, value in metrics.items()}
        sums = jax.tree.map(jnp.add, state.sums, metrics)
        return State(state.step + 1, params, statistics, opt_state, sums), metrics

    def _train_steps(
        self, state: State, arrays: Any, rows: Any, inputs: Inputs
    ) -> tuple[State, Metrics]:
        def step(state: State, row: Any) -> tuple[State, Metrics]:
            return self._train_step(state, Feed.batch(arrays, row), inputs)

        if len(jax.tree.leaves(rows)[0]) > 1:
            return jax.lax.scan(step, state, rows)
        # On CPU a convolution's gradient is thirty times slower inside a loop, even of one step.
        state, metrics = step(state, jax.tree.map(lambda leaf: leaf[0], rows))
        return state, jax.tree.map(lambda leaf: leaf[None], metrics)

    def _predict(self, state: State, arrays: Any, row: Any) -> tuple[jax.Array, jax.Array]:
        batch = jax.lax.with_sharding_constraint(Feed.batch(arrays, row), self._devices.batch)
        model = nnx.merge(self._eval_graph, state.params, state.statistics)
        return model(self._images(batch.pixels)), batch.labels

    def loss(self, params: Any, batch: tuple[Any, Images]) -> jax.Array:
        """Returns the mean loss of a batch in evaluation mode, as a function of the parameters.

        Args:
          params: of the model.
          batch: the statistics of BatchNorm, which stay as they are, and images.
        """
        statistics, images = batch
        images = jax.lax.with_sharding_constraint(images, self._devices.batch)
        model = nnx.merge(self._eval_graph, params, statistics)
        logits = model(self._images(images.pixels))
        return optax.softmax_cross_entropy_with_integer_labels(logits, images.labels).mean()

    def _evaluate(self, state: State, arrays: Any, row: Any) -> Metrics:
        logits, labels = self._predict(state, arrays, row)
        counted = labels >= 0  # the last batch is filled up with -1
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {
            "loss": jnp.sum(jnp.where(counted, losses, 0.0)),
            "accuracy": 100.0 * jnp.sum(logits.argmax(axis=-1) == labels),
            "count": jnp.sum(counted),
        }


def _has(opt_state: Any, name: str) -> bool:
    return optax.tree.get(opt_state, name) is not None


@functools.lru_cache(maxsize=4)
def _shared_program(config: Config, shape: Shape) -> Program:
    return Program(config, shape)


def make_program(config: Config, shape: Shape) -> Program:
    """Returns the program; runs that differ in nothing compiled share one."""
    general = dataclasses.replace(
        config, preset=None, seed=0, label_noise=0.0, data_dir=None, out=None
    )
    # Any radius will do, but whether there is one does not.
    general = dataclasses.replace(general, rho=config.rho and 1.0, rho_max=config.rho_max and 1.0)
    return _shared_program(general, shape)
