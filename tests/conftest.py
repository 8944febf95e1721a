"""Fixtures for float64, and settings for quick compilations with one cache for the whole run."""

import gc
import os
import pathlib

import jax
import pytest

os.environ["MPLBACKEND"] = "Agg"  # no windows

_CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "jax"

# Workers compile many equal programs. One of them compiles, and the others read.
jax.config.update(
    "jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
# One process may read an entry that another one is writing. It then warns and compiles for itself:
# here for subprocesses, in pyproject.toml for pytest.
os.environ["PYTHONWARNINGS"] = "ignore:Error reading persistent compilation cache entry"
# Most of the time would go into good machine code for programs that run for milliseconds. Compiling
# without takes a quarter of it. HLO and its passes stay, and with them FLOPs and memory: equal to
# 0.1 % on the models of test_cost.py. `XLA_FLAGS= make test` has the code that users have.
# Set before the first computation, which reads them. Workers and subprocesses inherit
# them. A jaxlib that does not know a flag aborts, so only where these have been tried.
_QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if jax.__version__.startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", _QUICK)
jax.config.update("jax_disable_most_optimizations", os.environ.get("XLA_FLAGS") == _QUICK)
# Most of the rest goes into tracing small programs, to which these two add a fifth.
jax.config.update("jax_traceback_in_locations_limit", 0)
gc.set_threshold(1_000_000, 50, 100)


def pytest_collection_finish():
    """What the imports and the collection made stays, and need not be looked through again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def x64():
    """Runs the test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=[False, True], ids=["float32", "float64"])
def precision(request):
    """Runs the test in float32 and in float64. Its value is the relative rounding error."""
    with jax.enable_x64(request.param):
        yield 2.0**-52 if request.param else 2.0**-23


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A run that nothing interrupts, long enough to be interrupted in the middle."""
    from runs import digits, train_with_few_checkpoints

    config = digits(tmp_path_factory.mktemp("whole") / "run", epochs=40, evaluate_every=4)
    return config, train_with_few_checkpoints(config)
