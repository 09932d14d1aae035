"""How many clients at once: what fits, why, and what happens when it does not after all."""

import jax
import numpy as np
import pytest

from ffalora_jax import chunking
from ffalora_jax.chunking import CPU_BLOCK, GIB, arrange, choose, residual_bytes
from ffalora_jax.engine import Engine
from ffalora_jax.errors import InputError
from ffalora_jax.prepare import prepare
from tests.helpers import keys
from tests.tiny_runs import tiny

SMALL, LARGE = ({"kernel": np.zeros(size, "float32")} for size in (10, 100_000))


@pytest.mark.parametrize(
    ("setting", "slots", "backbone", "backend", "free", "chunk"),
    [
        ("auto", 64, LARGE, "cpu", 100, 1),
        ("auto", 64, SMALL, "cpu", 100, 64),
        ("auto", 64, LARGE, "gpu", 100, 64),
        ("auto", 64, LARGE, "gpu", 50, 32),
        ("auto", 63, LARGE, "tpu", 50, 32),
        ("auto", 10, LARGE, "gpu", 10, 5),
        ("auto", 64, LARGE, "gpu", 0.1, 1),
        ("3", 64, LARGE, "gpu", 0.1, 3),
        ("100", 64, SMALL, "cpu", 100, 64),
    ],
)
def test_as_many_as_fit_in_chunks_of_like_size(setting, slots, backbone, backend, free, chunk):
    found = choose(setting, slots, backbone, lambda: GIB, backend, int(free * GIB))
    assert found.chunk == chunk
    if setting == "auto" and backend != "cpu":
        assert f"{chunk} of {slots}: 1.00 GiB estimated" in found.reason


@pytest.fixture(scope="module")
def run():
    return prepare(tiny(client_chunk="4", packing=False))


def test_the_estimate_counts_what_one_example_keeps(run):
    facts = run.model, run.task, run.frozen, run.state.adapters, run.encoded
    one = residual_bytes(*facts)
    tokens, features, layers = run.encoded.inputs["input_ids"].shape[1], 32, 2
    assert one > layers * tokens * features * 4
    longer = {n: np.repeat(x, 2, axis=1) for n, x in run.encoded.inputs.items()}
    twice = residual_bytes(*facts[:4], run.encoded._replace(inputs=longer))
    assert 1.9 < twice / one < 3  # attention grows with the square


@pytest.mark.parametrize(
    ("chunk", "free", "expected", "examples"),
    [
        (4, 1000, 9, 11),  # the capacity
        (1, 48, 4, 5),  # 4 + 2.5 sqrt(4) = 9, in two parts of at most 8
        (2, 48, 4, 3),
        (4, 1, 4, 1),
    ],
)
def test_on_an_accelerator_a_full_draw_fills_like_blocks_of_a_sixth_of_what_is_free(
    run, chunk, free, expected, examples
):
    """GiB an example at once: 1."""
    full = run.encoded.inputs["input_ids"].shape[1]
    facts = run.model, 11, expected, chunk, lambda: GIB, "gpu", int(free * GIB)
    short = run.encoded._replace(lengths=np.full_like(run.encoded.lengths, full // 4))
    assert arrange(short, *facts)[0] == (examples, (full,))
    assert arrange(short, *facts)[1].rows <= examples
    long = run.encoded._replace(lengths=np.full_like(run.encoded.lengths, full))
    assert arrange(long, *facts) == ((examples, (full,)), None)


def test_on_a_cpu_blocks_are_small_where_clients_run_one_at_a_time(run):
    blocks, packing = arrange(run.encoded, run.model, 40, 16, 1, lambda: 1, "cpu")
    assert blocks == (CPU_BLOCK, run.encoded.widths)
    assert packing is not None
    blocks, packing = arrange(run.encoded, run.model, 40, 16, 4, lambda: 1, "cpu")
    assert blocks == (40, run.encoded.widths[-1:])
    assert packing is None


def after_a_round(engine):
    state, infos = engine(keys(engine.run), engine.run.state, 1)
    return jax.tree.map(np.asarray, state.adapters), infos


class Exhausted:
    """A program for which the device has no memory."""

    def __call__(self, *arguments):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate"
        )


@pytest.mark.thorough
def test_out_of_memory_halves_the_chunk_and_gives_the_same_numbers(run):
    said = []
    whole, _ = after_a_round(Engine(run))
    engine = Engine(run, said.append)
    engine._call = Exhausted()
    halved, _ = after_a_round(engine)
    assert engine.run.settings.chunk == 2
    assert "2 at a time" in said[0]
    pairs = zip(jax.tree.leaves(whole), jax.tree.leaves(halved), strict=True)
    assert max(float(np.abs(a - b).max()) for a, b in pairs) < 1e-6


def test_another_error_and_one_client_that_does_not_fit_are_raised(run):
    engine = Engine(run._replace(settings=run.settings._replace(chunk=1)))
    engine._call = Exhausted()
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        after_a_round(engine)


@pytest.mark.thorough
def test_a_program_that_does_not_fit_is_compiled_with_fewer_clients_or_refused(run, monkeypatch):
    needed = Engine(run).compiled_bytes
    assert needed > 0
    said = []
    free = iter([needed - 1])
    monkeypatch.setattr("ffalora_jax.engine.free_bytes", lambda: next(free))
    engine = Engine(run, said.append)
    assert engine.run.settings.chunk < 4
    assert engine.compiled_bytes < needed
    assert "did not fit" in said[0]
    monkeypatch.setattr("ffalora_jax.engine.free_bytes", lambda: 1000)
    with pytest.raises(InputError, match=r"0\.0 GiB are free: lower batch_size"):
        Engine(run)


def test_only_a_device_s_own_words_count_as_out_of_memory():
    assert chunking.is_out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: ..."))
    assert not chunking.is_out_of_memory(RuntimeError("INTERNAL: something else"))
