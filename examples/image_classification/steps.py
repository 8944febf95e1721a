"""The optimizer, the compiled training step, and the compiled evaluation."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from examples.image_classification.ascent_gradients import ascent_gradient
from examples.image_classification.augment import make_augmentation
from examples.image_classification.batches import DataSpec, Images, device_mesh, gather_batch
from examples.image_classification.config import Config
from examples.image_classification.first_pass import first_pass
from examples.image_classification.methods import (
    METHODS,
    Training,
    make_method,
    method_arguments,
)
from examples.image_classification.models import make_model, set_dropout_key
from xsam_jax import look_ahead, per_group
from xsam_jax.gating import every, gated

Metrics = dict[str, jax.Array]

# Logged at every step; the second line is in the state of the optimizer, with some methods.
METRICS = ("train_loss", "train_accuracy", "gradient_norm", "update_norm")
STATE_METRICS = ("sharp_gradient_norm", "alpha", "psi")
MIN_SHARDED = 1024  # elements; smaller arrays are replicated


# --- The optimizer ---


def make_schedule(config: Config, steps_per_epoch: int) -> optax.Schedule:
    """Returns the learning rate: a linear rise, then a cosine down to zero."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    total = config.epochs * steps_per_epoch
    cosine = optax.cosine_decay_schedule(config.learning_rate, max(total - warmup, 1))
    if config.cosine_every == "epoch":
        of_step = cosine
        cosine = lambda step: of_step(step // steps_per_epoch * steps_per_epoch)  # noqa: E731
    if not warmup:
        return cosine
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return optax.join_schedules([rise, cosine], [warmup])


def make_optimizer(
    config: Config, steps_per_epoch: int, key: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """Returns the method in front of the base optimizer, the only part in which methods differ."""
    schedule = make_schedule(config, steps_per_epoch)
    if config.optimizer == "sgd":
        decay = optax.add_decayed_weights(config.weight_decay)
        base = optax.chain(decay, optax.sgd(schedule, momentum=config.momentum))
    else:
        base = optax.adamw(schedule, weight_decay=config.weight_decay)
    search = {
        "probe_every": config.probe_every or max(1, steps_per_epoch // config.sharp_every),
        "alpha_max": config.alpha_max,
        "num_alphas": config.num_alphas,
        "search": config.search,
        "probe_batch_size": config.probe_batch_size,
    }
    training = Training(config.rho_max, config.ascent_steps, search, base, schedule, key)
    method = make_method(config.method, config.rho, training, **config.method_args)
    if config.sharp_every > 1:
        method = gated(method, every(config.sharp_every))
    if config.groups > 1:
        loop = "unrolled" if jax.default_backend() == "cpu" else "map"
        method = per_group(method, evaluation=loop if config.accumulate > 1 else "vmap")
    return method if METHODS[config.method].has_base else optax.chain(method, record_norm(), base)


def sharp_period(config: Config) -> int:
    """Returns the number of steps from one sharpness-aware step to the next."""
    return read_number(config, "every") if config.method == "look_sam" else config.sharp_every


def read_number(config: Config, argument: str) -> int:
    """Returns an argument of the method, an integer, for the trainer's own use."""
    return int({**method_arguments(config.method), **config.method_args}[argument])


def record_norm() -> optax.GradientTransformation:
    """Returns the identity, which keeps the norm of the sharpness-aware gradient for the log."""

    def init_fn(params: optax.Params) -> dict[str, jax.Array]:
        del params
        return {"sharp_gradient_norm": jnp.zeros(())}

    def update_fn(updates: optax.Updates, state: Any, params: Any = None) -> tuple[Any, Any]:
        del state, params
        return updates, {"sharp_gradient_norm": optax.tree.norm(updates).astype(jnp.float32)}

    return optax.GradientTransformation(init_fn, update_fn)


# --- The compiled programs ---


class State(NamedTuple):
    """Everything the next step needs, and the sums of the metrics over the epoch so far."""

    step: jax.Array
    params: Any
    statistics: Any  # of BatchNorm
    opt_state: Any
    sums: Metrics


class TracedSettings(NamedTuple):
    """Arguments of the compiled program, so that runs that differ in them share one program."""

    key: jax.Array
    rho: Any
    rho_max: Any
    learning_rate: Any
    weight_decay: Any

    @classmethod
    def of(cls, config: Config) -> "TracedSettings":
        """Returns the traced settings of a run."""
        numbers = (getattr(config, name) for name in cls._fields[1:])
        return cls(jax.random.key(config.seed), *numbers)


class Program:
    """The compiled functions of a run.

    Attributes:
      abstract_state: Shapes, dtypes and shardings of the state, for restoring it.
      init: `init(traced)` returns the state before the first step.
      train_steps: `train_steps(state, arrays, rows, traced, sharp)` takes a step for each row and
        returns the new state and the metrics of each step. `sharp`, static, says whether the steps
        are sharpness-aware. With None the program decides.
      pass_over: `pass_over(state, arrays, row)` returns the running statistics after a pass over
        one batch in training mode, at the parameters of the state.
      predict: `predict(state, arrays, row)` returns logits and labels of one batch in evaluation
        mode. A label of -1 marks padding.
      evaluate: `evaluate(state, arrays, row)` returns sums over one batch in evaluation mode.

    `loss` is not compiled, since its callers differentiate it.
    """

    def __init__(self, config: Config, spec: DataSpec) -> None:
        self._config, self._spec = config, spec
        self._augment = make_augmentation(config.augmentation)
        model = nnx.eval_shape(lambda: self._make_model(nnx.Rngs(0)))
        model.train()
        self._train_graph = nnx.graphdef(model)
        model.eval()
        self._eval_graph = nnx.graphdef(model)

        mesh = device_mesh()
        replicated = NamedSharding(mesh, P())
        self._batch_sharding = NamedSharding(mesh, P("data"))
        abstract_state = jax.eval_shape(self._init, TracedSettings.of(config))
        shardings = jax.tree.map(
            lambda leaf: choose_sharding(leaf.shape, config.fsdp), abstract_state
        )
        self.abstract_state = jax.tree.map(
            lambda leaf, sharding: leaf.update(sharding=sharding), abstract_state, shardings
        )
        self.init = jax.jit(self._init, out_shardings=shardings)
        self.train_steps = jax.jit(
            self._train_steps,
            donate_argnums=0,
            static_argnums=4,
            out_shardings=(shardings, replicated),
        )
        self.pass_over = jax.jit(self._pass_over, out_shardings=shardings.statistics)
        self.predict = jax.jit(self._predict, out_shardings=replicated)
        self.evaluate = jax.jit(self._evaluate, out_shardings=replicated)

    def _make_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return make_model(
            self._config.model,
            num_classes=self._spec.num_classes,
            image_shape=self._spec.image_shape,
            rngs=rngs,
            dtype=jnp.bfloat16 if self._config.bf16 else jnp.float32,
        )

    def _make_optimizer(self, traced: TracedSettings) -> optax.GradientTransformationExtraArgs:
        numbers = {name: getattr(traced, name) for name in traced._fields[1:]}
        config = dataclasses.replace(self._config, **numbers)
        key = jax.random.fold_in(traced.key, 1)
        return make_optimizer(config, self._spec.steps_per_epoch, key)

    def _init(self, traced: TracedSettings) -> State:
        # The default generator compiles for a second per shape on CPU, this one for a fifth of it.
        seed = jax.random.bits(jax.random.fold_in(traced.key, 0), (4,))
        model = self._make_model(nnx.Rngs(jax.random.wrap_key_data(seed, impl="rbg")))
        params = nnx.as_pure(nnx.state(model, nnx.Param))
        statistics = nnx.as_pure(nnx.state(model, nnx.BatchStat))
        opt_state = self._make_optimizer(traced).init(params)
        sums = {name: jnp.zeros(()) for name in (*METRICS, *state_metrics(opt_state))}
        return State(jnp.zeros((), jnp.int32), params, statistics, opt_state, sums)

    def _training_model(self, params: Any, statistics: Any, key: jax.Array) -> nnx.Module:
        """Returns the network in training mode. All passes of a step drop the same units."""
        model = nnx.merge(self._train_graph, params, statistics)
        set_dropout_key(model, key)
        return model

    def _prepare(self, images: jax.Array) -> jax.Array:
        """Resizes images to those that the network sees, if they differ."""
        shape = (len(images), *self._spec.image_shape)
        if images.shape == shape:
            return images
        precision = jax.lax.Precision.HIGHEST  # GPUs and TPUs would lose half of the digits
        return jax.image.resize(images, shape, "bilinear", precision=precision)

    def _normalize(self, pixels: jax.Array) -> jax.Array:
        mean, std = jnp.array(self._spec.mean), jnp.array(self._spec.std)
        return (pixels / jnp.float32(255) - mean) / std

    def _train_step(
        self,
        state: State,
        arrays: Any,
        row: Any,
        traced: TracedSettings,
        sharp: bool | None,
    ) -> tuple[State, Metrics]:
        batch = gather_batch(arrays, row)
        batch = jax.lax.with_sharding_constraint(batch, self._batch_sharding)
        step_key = jax.random.fold_in(jax.random.fold_in(traced.key, 2), state.step)
        images = self._prepare(self._augment(step_key, self._normalize(batch.pixels)))
        dropout_key = jax.random.fold_in(jax.random.fold_in(traced.key, 3), state.step)

        def losses_fn(params: Any, part: Any) -> tuple[jax.Array, Any]:
            images, labels = part
            model = self._training_model(params, state.statistics, dropout_key)
            logits = model(images)
            targets = jax.nn.one_hot(labels, self._spec.num_classes)
            targets = optax.smooth_labels(targets, self._config.label_smoothing)
            accuracy = 100 * jnp.mean(logits.argmax(axis=-1) == labels)
            statistics = nnx.as_pure(nnx.state(model, nnx.BatchStat))
            return optax.softmax_cross_entropy(logits, targets), (accuracy, statistics)

        # Only this pass updates the running statistics of BatchNorm.
        sizes = self._config.groups, self._config.accumulate
        method = METHODS[self._config.method]
        point = look_ahead(state.opt_state, state.params) if method.looks_ahead else state.params
        clean = first_pass(losses_fn, point, (images, batch.labels), *sizes)
        accuracy, statistics = clean.aux
        if method.ascends_along:
            ascent = self._ascent_gradient(losses_fn, clean.gradient, state, arrays, row, traced)
            clean = clean._replace(updates=ascent)
        decided = {} if sharp is None else {"sharp": sharp}
        updates, opt_state = self._make_optimizer(traced).update(
            clean.updates, state.opt_state, state.params, **clean.arguments, **decided
        )
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "train_loss": clean.loss,
            "train_accuracy": accuracy,
            "gradient_norm": optax.tree.norm(clean.gradient),
            "update_norm": optax.tree.norm(updates),
            **state_metrics(opt_state),
        }
        metrics = {name: jnp.float32(value) for name, value in metrics.items()}
        sums = jax.tree.map(jnp.add, state.sums, metrics)
        return State(state.step + 1, params, statistics, opt_state, sums), metrics

    def _ascent_gradient(
        self,
        losses_fn: Callable[[Any, Any], tuple[jax.Array, Any]],
        gradient: Any,
        state: State,
        arrays: Any,
        row: Any,
        traced: TracedSettings,
    ) -> Any:
        """Returns another gradient than that of the batch for the ascent (F-SAM's section 4)."""
        if arrays is None:
            raise ValueError(
                f"{self._config.method} needs all images in memory: use a smaller data set"
            )

        def gradient_of_row(row: jax.Array, key: jax.Array) -> Any:
            batch = gather_batch(arrays, row)
            part = self._prepare(self._augment(key, self._normalize(batch.pixels))), batch.labels
            is_image = batch.labels >= 0  # not padding

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
            key=jax.random.fold_in(jax.random.fold_in(traced.key, 4), state.step),
        )

    def _train_steps(
        self,
        state: State,
        arrays: Any,
        rows: Any,
        traced: TracedSettings,
        sharp: bool | None = None,
    ) -> tuple[State, Metrics]:
        def step(state: State, row: Any) -> tuple[State, Metrics]:
            return self._train_step(state, arrays, row, traced, sharp)

        if len(jax.tree.leaves(rows)[0]) > 1:
            return jax.lax.scan(step, state, rows)
        # On CPU a convolution's gradient is thirty times slower inside a loop, even of one step.
        state, metrics = step(state, jax.tree.map(lambda leaf: leaf[0], rows))
        return state, jax.tree.map(lambda leaf: leaf[None], metrics)

    def _pass_over(self, state: State, arrays: Any, row: Any) -> Any:
        batch = jax.lax.with_sharding_constraint(gather_batch(arrays, row), self._batch_sharding)
        key = jax.random.key(state.step)
        images = self._prepare(self._augment(key, self._normalize(batch.pixels)))
        model = self._training_model(state.params, state.statistics, key)
        model(images)
        return nnx.as_pure(nnx.state(model, nnx.BatchStat))

    def _predict(self, state: State, arrays: Any, row: Any) -> tuple[jax.Array, jax.Array]:
        batch = gather_batch(arrays, row)
        batch = jax.lax.with_sharding_constraint(batch, self._batch_sharding)
        model = nnx.merge(self._eval_graph, state.params, state.statistics)
        return model(self._prepare(self._normalize(batch.pixels))), batch.labels

    def loss(self, params: Any, batch: tuple[Any, Images]) -> jax.Array:
        """Returns the mean loss of a batch in evaluation mode, as a function of the parameters.

        Args:
          params: Parameters of the model.
          batch: Running statistics of BatchNorm, which stay fixed, and images.
        """
        statistics, images = batch
        images = jax.lax.with_sharding_constraint(images, self._batch_sharding)
        model = nnx.merge(self._eval_graph, params, statistics)
        logits = model(self._prepare(self._normalize(images.pixels)))
        return optax.softmax_cross_entropy_with_integer_labels(logits, images.labels).mean()

    def _evaluate(self, state: State, arrays: Any, row: Any) -> Metrics:
        logits, labels = self._predict(state, arrays, row)
        is_image = labels >= 0  # not padding
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {
            "loss": jnp.sum(jnp.where(is_image, losses, 0.0)),
            "accuracy": 100.0 * jnp.sum(logits.argmax(axis=-1) == labels),
            "count": jnp.sum(is_image),
        }


def state_metrics(opt_state: Any) -> Metrics:
    """Returns the metrics that the method keeps in the state of the optimizer."""
    found = {name: optax.tree.get(opt_state, name) for name in STATE_METRICS}
    found |= optax.tree.get(opt_state, "diagnostics") or {}
    return {name: value for name, value in found.items() if value is not None}


def choose_sharding(shape: tuple[int, ...], fsdp: bool, mesh: Mesh | None = None) -> NamedSharding:
    """Returns the sharding of an array of the state, on all devices unless there is a `mesh`.

    With `fsdp` it is divided along its longest axis that is a multiple of the number of devices.
    """
    mesh = device_mesh() if mesh is None else mesh
    axes = [axis for axis, size in enumerate(shape) if size % mesh.size == 0]
    if not fsdp or not axes or math.prod(shape) < MIN_SHARDED:
        return NamedSharding(mesh, P())
    longest = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(mesh, P(*[None] * longest, "data"))


def make_program(config: Config, spec: DataSpec) -> Program:
    """Returns the program of a run. Runs that compile the same share one."""
    general = dataclasses.replace(
        config, preset=None, seed=0, label_noise=0.0, data_dir=None, out=None
    )
    # Traced, so any value will do, but None compiles another program.
    general = dataclasses.replace(general, learning_rate=1.0, weight_decay=1.0)
    general = dataclasses.replace(general, rho=config.rho and 1.0, rho_max=config.rho_max and 1.0)
    return _shared_program(general, spec)


@functools.lru_cache(maxsize=4)
def _shared_program(config: Config, spec: DataSpec) -> Program:
    return Program(config, spec)
