"""Optax's own test suites, read from the installed wheel and run over the methods in methods.py.

Each suite has a table of optimizers. Each method in turn replaces that table. `make test` runs the
quick cases over the representatives, `make test-optax` the rest.
"""

import ast
import functools
import importlib.util
import os
import pathlib
import subprocess
import sys
import types
import unittest
import warnings
from unittest import mock

import jax
import optax
import pytest
from devices import EIGHT_DEVICES
from methods import METHODS, REPRESENTATIVES

import xsam_jax

SHARDING = "optax._src.sharding_test"
# Cases are excluded if their name or their parameters contain one of these.
EXCLUDED = {
    "complex": "parameters must be real",
    "explicit_dtype": "tests arguments of Adam and SGD",
    "microbatch": "tests optax.microbatching",
    "wrap=True": "the same as wrap=False: the rows have no wrapper",
}
# Not in `make test`. They take longer than all others together, and those and
# test_optax_protocol.py test nearly the same. Of the targets of test_optimizers, Rosenbrock's
# function and two leaves of different shapes remain in it.
SLOW = (
    *("alias_test", "learning_rate_schedule", "state_shape_dtype", "gradient_accumulation"),
    *("test_optimizers0", "test_optimizers2"),
)

last_differentiated = []  # one function, or none yet


def remember(differentiate):
    """The suites do not pass `value_fn`, but most of them differentiate it just before."""

    @functools.wraps(differentiate)
    def wrapper(fn, *args, **kwargs):
        last_differentiated[:] = [fn]
        return differentiate(fn, *args, **kwargs)

    return wrapper


# The suites use this as `jax`. The version is for the sharding suite, which compares strings:
# "0.10.2" < "0.7.2", so it would skip itself.
JAX = types.SimpleNamespace(**vars(jax))
JAX.grad, JAX.value_and_grad = remember(jax.grad), remember(jax.value_and_grad)
JAX.__version__ = "1.0.0"


def squared_norm(params):
    return optax.tree.norm(params, squared=True)


def optimizer_factory(method):
    """Returns a factory of optimizers that need no `value_fn`, and its arguments."""
    # Radii of about 1e-4: the suites expect to end in the minimum of the loss, not in SAM's.
    numbers = {k: v / 3000 if "rho" in k else v for k, v in method.numbers.items()}
    if method.alias is xsam_jax.look_sam:
        # Its extra component does not shrink with rho. With 0.7, it never leaves the valley of
        # Rosenbrock's function, and neither does LookSAM in float64 NumPy.
        numbers["alpha"] = 0.1
    if method.alias is xsam_jax.lookbehind:
        # With two steps, the way through Rosenbrock's valley is unstable, and part of it too slow.
        numbers |= {"alpha": 1.0, "steps": 1}

    def factory(learning_rate: optax.ScalarOrSchedule, rho):
        last_differentiated.clear()  # of the previous test
        arguments, sgd = {**numbers, "rho": rho}, optax.sgd(learning_rate, momentum=0.9)
        if method.optimizer:
            if method.alias is xsam_jax.decoupled_wsam:
                arguments |= {"inner": sgd, "learning_rate": learning_rate}
            else:
                arguments["optimizer"] = sgd
            tx = method.make(**arguments)
        else:
            tx = optax.chain(method.make(**arguments), sgd)

        def update(updates, state, params=None, **extra_args):
            loss_fn = last_differentiated[0] if last_differentiated else squared_norm
            return tx.update(updates, state, params, **method.arguments(loss_fn), **extra_args)

        return optax.GradientTransformationExtraArgs(tx.init, update)

    return factory, {"learning_rate": 1e-3, "rho": numbers["rho"]}


def replacements(name, method):
    """For each suite, the globals that make it test this method."""
    factory, kwargs = optimizer_factory(method)
    row = {"opt_name": name, "opt_kwargs": kwargs}
    contrib_rows = ({**row, "wrapper_name": None, "wrapper_kwargs": None},)
    suites = {
        "optax._src.alias_test": {
            "_OPTIMIZERS_UNDER_TEST": (row,),
            "_get_opt": lambda test_case, opt_name: factory,
        },
        "optax.contrib._common_test": {
            "_MAIN_OPTIMIZERS_UNDER_TEST": contrib_rows,
            "_ALL_OPTIMIZERS_UNDER_TEST": contrib_rows,
            "_get_opt_factory": lambda opt_name: factory,
        },
        "optax._src.float64_test": {"ALL_MODULES": [(name, factory, kwargs)]},
    }
    if os.environ.items() >= EIGHT_DEVICES.items():
        suites[SHARDING] = {"OPTIMIZERS": {name: factory(**kwargs)}}
    return suites


@functools.cache
def statements(module):
    path = importlib.util.find_spec(module).origin
    nodes = ast.parse(pathlib.Path(path).read_text(encoding="utf-8")).body
    return [(node, compile(ast.Module([node], []), path, "exec")) for node in nodes]


def load_suite(module, replaced):
    """Executes a module up to its first test class, with some globals replaced before it."""
    namespace, replaced = {"__name__": module}, {**replaced, "jax": JAX}
    for node, code in statements(module):
        if isinstance(node, ast.ClassDef):  # turns the tables into test methods
            missing = replaced.keys() - namespace.keys()
            assert not missing, f"{module} has other tables now: {missing} not found"
            namespace.update(replaced)
            exec(code, namespace)
            return namespace[node.name]
        exec(code, namespace)
    raise AssertionError(f"{module} has no test class")


def cases():
    found = []
    for name, method in METHODS.items():
        for module, replaced in replacements(name, method).items():
            # Optax's own tables warn, and the sharding suite sets XLA_FLAGS.
            with warnings.catch_warnings(action="ignore"), mock.patch.dict(os.environ):
                suite = load_suite(module, replaced)
            for test in unittest.defaultTestLoader.getTestCaseNames(suite):
                case, case_id = suite(test), f"{name}: {module.split('.')[-1]}.{test}"
                if not any(part in case.id() for part in EXCLUDED):
                    slow = name not in REPRESENTATIVES or any(part in case_id for part in SLOW)
                    marks = [pytest.mark.optax_full] if slow else []
                    found.append(pytest.param(case, id=case_id, marks=marks))
    return found


@pytest.mark.parametrize("case", cases())
def test_optax_suite(case):
    try:
        case.debug()  # raises what a unittest runner would collect
    except unittest.SkipTest as skip:
        pytest.fail(f"the suite skips this case: {skip}")
    finally:
        jax.config.update("jax_enable_x64", False)  # a failed case of float64_test leaves it on


@pytest.mark.optax_full
def test_sharding_suite():
    """Runs the sharding suite in a process with eight devices, as test_devices.py does in part."""
    test = f"{__file__}::test_optax_suite"
    command = [sys.executable, "-m", "pytest", test, "-k", "sharding_test", "-m", "optax_full"]
    command += ["-q", "--tb=short", "-n", "0"]
    done = subprocess.run(command, env=os.environ | EIGHT_DEVICES, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
