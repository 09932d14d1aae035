"""Strict settings for every test: no rank promotion, shapes checked at every call, warnings are errors."""

import gc
import os
import sys
import tempfile
from importlib.metadata import version

# Before anything imports JAX or a hub client.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("FFALORA_TEST_CACHE", tempfile.mkdtemp(prefix="ffalora-tests-"))
os.environ["FFALORA_CACHE"] = os.environ["FFALORA_TEST_CACHE"]
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Tiny programs run in no time and are compiled for long: the same operations, compiled in half the time.
# The emitters' option is not known any more from 0.11 on, and what is not known ends the process.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
)

from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401

_hook = install_import_hook("ffalora_jax", "tests.typecheck.typechecked")

import jax  # noqa: E402
import psutil  # noqa: E402
import pytest  # noqa: E402

from ffalora_jax import rng  # noqa: E402
from tests.refusals import refused  # noqa: E402, F401
from tests.simple_accountant import simple  # noqa: E402, F401

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", os.path.join(os.environ["FFALORA_CACHE"], "xla"))
jax.config.update(
    "jax_persistent_cache_min_compile_time_secs", 0.02
)  # many files need the same small ones


MOST_BYTES = 5 * 2**29
"""Of a worker, before it lets go of its programs."""

# What was imported is never garbage, and tracing makes many objects that live on: looked through less often.
gc.freeze()
gc.set_threshold(50_000, 20, 50)


@pytest.fixture
def key():
    """A key for draws that a test makes itself."""
    return rng.public_root(1234)


@pytest.fixture(autouse=True, scope="module")
def _let_go():
    """Frees prepared runs after each file, and compiled programs once they take gigabytes."""
    yield
    helpers = sys.modules.get("tests.helpers")
    if helpers is not None:
        helpers.let_go()
    if psutil.Process().memory_info().rss > MOST_BYTES:
        jax.clear_caches()
        gc.collect()


LONGEST = ("test_methods.py", "test_round.py", "test_mesh.py")
"""Files that take minutes: begun first, so that no worker is left with one of them at the end."""


def pytest_collection_modifyitems(items):
    """Orders the files by how long they take, where that matters."""
    items.sort(key=lambda item: next((i for i, x in enumerate(LONGEST) if item.path.name == x), 9))
