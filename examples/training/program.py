"""The compiled training step and evaluation. A training program adds its model and its loss."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from examples.training.devices import choose_sharding, device_mesh
from examples.training.first_pass import first_pass
from examples.training.methods import METHODS
from examples.training.optimizer import make_optimizer, state_metrics
from examples.training.settings import Settings, defaults
from xsam_jax import look_ahead

Metrics = dict[str, jax.Array]
Losses = Callable[[Any, Any], tuple[jax.Array, Any]]

# Logged at every step.
METRICS = ("train_loss", "train_accuracy", "gradient_norm", "update_norm")


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
    def of(cls, config: Settings) -> "TracedSettings":
        """Returns the traced settings of a run."""
        numbers = (getattr(config, name) for name in cls._fields[1:])
        return cls(jax.random.key(config.seed), *numbers)


class Program:
    """The compiled functions of a run, given the methods of a subclass.

    Attributes:
      abstract_state: Shapes, dtypes and shardings of the state, for restoring it.
      init: `init(traced)` returns the state before the first step.
      train_steps: `train_steps(state, arrays, rows, traced, sharp)` takes a step for each row and
        returns the new state and the metrics of each step. `sharp`, static, says whether the steps
        are sharpness-aware. With None the program decides.
      evaluate: `evaluate(state, arrays, row)` returns sums over one batch in evaluation mode.
    """

    def __init__(self, config: Any, spec: Any) -> None:
        """Compiles nothing yet.

        Args:
          config: The settings, of the program's own class.
          spec: Constants of the data, hashable, `steps_per_epoch` among them.
        """
        self._config, self._spec = config, spec
        model = nnx.eval_shape(lambda: self.make_model(nnx.Rngs(0)))
        model.train()
        self._train_graph = nnx.graphdef(model)
        model.eval()
        self._eval_graph = nnx.graphdef(model)

        mesh = device_mesh()
        self._replicated = NamedSharding(mesh, P())
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
            out_shardings=(shardings, self._replicated),
        )
        self.evaluate = jax.jit(self._evaluate, out_shardings=self._replicated)

    # --- The parts of a training program ---

    def make_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the network, with new weights."""
        raise NotImplementedError

    def gather(self, arrays: Any, row: Any) -> Any:
        """Returns the batch of a row, a pytree of arrays along whose first axis parts are made."""
        raise NotImplementedError

    def augment(self, batch: Any, key: jax.Array) -> Any:
        """Returns the inputs and targets of a batch in training, with the same first axis."""
        raise NotImplementedError

    def losses(self, model: nnx.Module, part: Any) -> tuple[jax.Array, jax.Array]:
        """Returns the training losses of a part, one an example, and its accuracy in percent."""
        raise NotImplementedError

    def sums(self, model: nnx.Module, batch: Any) -> Metrics:
        """Returns sums of loss and accuracy over a batch in evaluation mode, and their count."""
        raise NotImplementedError

    def measure(self, state: Any, batches: Any, split: str) -> dict[str, float]:
        """Returns further metrics of a split, which no single batch has."""
        del state, batches, split
        return {}

    def pretrained(self, params: Any, statistics: Any) -> tuple[Any, Any]:
        """Returns the parameters and statistics before the first step, given new ones."""
        return params, statistics

    def ascent_gradient(
        self, losses_fn: Losses, gradient: Any, state: Any, arrays: Any, row: Any, key: jax.Array
    ) -> Any:
        """Returns another gradient than that of the batch for the ascent."""
        raise ValueError(f"{self._config.method} is for image_classification")

    # --- Common to all ---

    def _make_optimizer(self, traced: TracedSettings) -> optax.GradientTransformationExtraArgs:
        numbers = {name: getattr(traced, name) for name in traced._fields[1:]}
        config = dataclasses.replace(self._config, **numbers)
        key = jax.random.fold_in(traced.key, 1)
        return make_optimizer(config, self._spec.steps_per_epoch, key)

    def _init(self, traced: TracedSettings) -> State:
        # The default generator compiles for a second per shape on CPU, this one for a fifth of it.
        seed = jax.random.bits(jax.random.fold_in(traced.key, 0), (4,))
        model = self.make_model(nnx.Rngs(jax.random.wrap_key_data(seed, impl="rbg")))
        params = nnx.as_pure(nnx.state(model, nnx.Param))
        statistics = nnx.as_pure(nnx.state(model, nnx.BatchStat))
        opt_state = self._make_optimizer(traced).init(params)
        sums = {name: jnp.zeros(()) for name in (*METRICS, *state_metrics(opt_state))}
        return State(jnp.zeros((), jnp.int32), params, statistics, opt_state, sums)

    def start(self, traced: TracedSettings) -> State:
        """Returns the state before the first step, with weights from a file if there is one."""
        state = self.init(traced)
        params, statistics = self.pretrained(state.params, state.statistics)
        # The state of no method depends on the values of the first parameters.
        return state._replace(params=params, statistics=statistics)

    def training_model(self, params: Any, statistics: Any, key: jax.Array) -> Any:
        """Returns the network in training mode. All passes of a step drop the same units."""
        model = nnx.merge(self._train_graph, params, statistics)
        set_dropout_key(model, key)
        return model

    def evaluation_model(self, params: Any, statistics: Any) -> Any:
        """Returns the network in evaluation mode."""
        return nnx.merge(self._eval_graph, params, statistics)

    def place(self, batch: Any) -> Any:
        """Divides a batch over the devices."""
        return jax.lax.with_sharding_constraint(batch, self._batch_sharding)

    def _train_step(
        self,
        state: State,
        arrays: Any,
        row: Any,
        traced: TracedSettings,
        sharp: bool | None,
    ) -> tuple[State, Metrics]:
        def key_of(purpose: int) -> jax.Array:
            return jax.random.fold_in(jax.random.fold_in(traced.key, purpose), state.step)

        examples = self.augment(self.place(self.gather(arrays, row)), key_of(2))

        dropout_key = key_of(3)

        def losses_fn(params: Any, part: Any, key: Any = dropout_key) -> tuple[jax.Array, Any]:
            model = self.training_model(params, state.statistics, key)
            losses, accuracy = self.losses(model, part)
            return losses, (accuracy, nnx.as_pure(nnx.state(model, nnx.BatchStat)))

        def losses_of_part(params: Any, numbered: Any) -> tuple[jax.Array, Any]:
            part, numbers = numbered
            return losses_fn(params, part, jax.random.fold_in(dropout_key, numbers[0]))

        # Only this pass updates the running statistics of BatchNorm.
        sizes = self._config.groups, self._config.accumulate
        method = METHODS[self._config.method]
        point = look_ahead(state.opt_state, state.params) if method.looks_ahead else state.params
        if max(sizes) == 1:
            clean = first_pass(losses_fn, point, examples, *sizes)
        else:  # each part drops units of its own, the same in all of its passes
            numbers = jnp.arange(len(jax.tree.leaves(examples)[0]))
            clean = first_pass(losses_of_part, point, (examples, numbers), *sizes)
        accuracy, statistics = clean.aux
        if method.ascends_along:
            ascent = self.ascent_gradient(losses_fn, clean.gradient, state, arrays, row, key_of(4))
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

    def _evaluate(self, state: State, arrays: Any, row: Any) -> Metrics:
        model = self.evaluation_model(state.params, state.statistics)
        return self.sums(model, self.place(self.gather(arrays, row)))


def set_dropout_key(model: nnx.Module, key: jax.Array) -> None:
    """Sets the random keys of all Dropout layers, which then drop the same units in every pass."""
    for i, (_, module) in enumerate(nnx.iter_modules(model)):
        if isinstance(module, nnx.Dropout):
            module.rngs = jax.random.fold_in(key, i)


def share_program(kind: Callable[[Any, Any], Program], config: Settings, spec: Any) -> Any:
    """Returns the program of a run. Runs that compile the same share one."""
    default = defaults(type(config))
    general = dataclasses.replace(config, preset=None, seed=0, out=None)
    general = dataclasses.replace(general, **{name: default[name] for name in config.of_data})
    # Traced, so any value will do, but None compiles another program.
    general = dataclasses.replace(general, learning_rate=1.0, weight_decay=1.0)
    general = dataclasses.replace(general, rho=config.rho and 1.0, rho_max=config.rho_max and 1.0)
    return _shared_program(kind, general, spec)


@functools.lru_cache(maxsize=4)
def _shared_program(kind: Callable[[Any, Any], Program], config: Settings, spec: Any) -> Program:
    return kind(config, spec)
