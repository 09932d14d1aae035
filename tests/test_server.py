"""The server's optimiser on the mean update, and FedProx at the clients: against their formulas."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from ffalora_jax.errors import InputError
from ffalora_jax.prepare import prepare
from tests.helpers import prepared, run_rounds


def changed(settings, **sizes):
    return prepare(prepared(**sizes).experiment.replace(**settings))


def after(run, rounds=1):
    return run_rounds(run, rounds)[0].adapters


def assert_close(one, other):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_plain_descent_at_rate_one_is_the_average():
    sgd = changed({"server.optimizer": "sgd", "server.learning_rate": 1.0})
    assert_close(after(sgd, 2), after(prepared(), 2))


def test_half_the_rate_goes_half_the_way():
    half = changed({"server.optimizer": "sgd", "server.learning_rate": 0.5})
    start = half.state.adapters
    whole = after(prepared())
    assert_close(after(half), jax.tree.map(lambda s, w: s + 0.5 * (w - s), start, whole))


@pytest.mark.thorough
def test_fedadam_is_adam_on_the_negative_mean_update_and_remembers_its_moments():
    """Reddi et al. 2021, algorithm 2; the second mean is a plain round's from the first's end."""
    rate = 0.01
    run = changed({"server.optimizer": "adam", "server.learning_rate": rate})
    plain = prepared()
    optimizer = optax.adam(rate)
    here, memory, state = plain.state.adapters, optimizer.init(plain.state.adapters), plain.state
    for _ in range(2):
        mean = run_rounds(plain._replace(state=state), 1)[0]
        gradient = jax.tree.map(lambda old, new: old - new, here, mean.adapters)
        change, memory = optimizer.update(gradient, memory, here)
        here = optax.apply_updates(here, change)
        state = dataclasses.replace(mean, adapters=here)
    assert_close(after(run, 2), here)


def test_an_optimiser_beside_a_method_that_reads_every_upload_is_refused():
    with pytest.raises(InputError, match="reads each client's upload"):
        changed({"server.optimizer": "adam"}, method="fedex_lora")


@pytest.mark.parametrize("method", ["fedsvd", "fedask"])
def test_an_optimiser_with_a_memory_is_refused_where_the_factors_are_turned(method):
    settings = {"server.optimizer": "sgd", "server.learning_rate": 0.5}
    changed(settings, method=method)
    for remembers in ({"server.optimizer": "adam"}, {"server.options": {"momentum": 0.9}}):
        with pytest.raises(InputError, match=f"{method}.*turns its factors"):
            changed(settings | remembers, method=method)


@pytest.mark.thorough
def test_fedprox_pulls_the_second_step_back_by_mu_times_the_first():
    """W2 = w1 - rate (g2 + mu (w1 - w0)); without noise g2 is that of a run without the pull."""
    mu, rate = 0.3, 0.4
    plain, pulled = (
        changed({"optimizer.proximal": mu_}, mechanism="none", learning_rate=rate)
        for mu_ in (0.0, mu)
    )
    one = prepare(plain.experiment.replace(local_steps=1))
    start = plain.state.adapters
    expected = jax.tree.map(
        lambda w2, w1, w0: w2 - rate * mu * (w1 - w0), after(plain), after(one), start
    )
    assert_close(after(pulled), expected)
