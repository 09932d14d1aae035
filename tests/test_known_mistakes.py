"""Errors that public implementations of federated LoRA have made, each as a test that it is not made here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffalora_jax import registry
from ffalora_jax.cohort import Cohort
from ffalora_jax.errors import InputError
from ffalora_jax.methods.la_lora import smoothed
from ffalora_jax.prepare import prepare
from ffalora_jax.run_facts import message_bytes
from tests.helpers import compiled, keys, prepared

AVERAGED = ["ffa_lora", "fedavg_lora", "fed_sb", "vera", "bitfit", "la_lora"]


def after(run, clients):
    """The state after a round in which these clients take part, in this order."""
    cohort = Cohort(jnp.asarray(clients), jnp.ones(len(clients), bool))
    step = compiled(run, "round_step")
    return step(keys(run), run.state, run.frozen, run.data, run.numbers, None, cohort)[0]


def assert_near(one, other, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4), one, other)


def weighed(states, shares):
    trees = [state.adapters for state in states]
    return jax.tree.map(lambda *x: sum(p * y for p, y in zip(shares, x, strict=True)), *trees)


@pytest.mark.parametrize(
    "method",
    [x if x == "fedavg_lora" else pytest.param(x, marks=pytest.mark.slow) for x in AVERAGED],
)
def test_every_sent_leaf_is_averaged_the_trained_head_too(method):
    run = prepared(method=method)
    alone = [after(run, [client]) for client in range(4)]
    together = after(run, range(4))
    assert_near(together.adapters, weighed(alone, [0.25] * 4))
    moved = together.adapters["head"]["head_kernel"] - run.state.adapters["head"]["head_kernel"]
    assert np.abs(moved).max() > 1e-4


@pytest.mark.parametrize("chunk", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_no_client_begins_with_what_another_one_left(chunk):
    """B of client k leaking into client k + 1: then the order of the clients would show."""
    run = prepared(method="fedavg_lora", chunk=chunk, weighted=True)
    assert_near(after(run, [0, 1, 2, 3]).adapters, after(run, [3, 1, 0, 2]).adapters)


@pytest.mark.parametrize("weighted", [True, False])
def test_means_are_by_size_or_uniform_and_in_all_leaves_the_same(weighted):
    run = prepared(method="fedavg_lora", weighted=weighted)
    sizes = np.asarray(run.data.sizes, float)
    assert len(set(sizes)) > 1
    shares = sizes / sizes.sum() if weighted else np.full(4, 0.25)
    alone = [after(run, [client]) for client in range(4)]
    assert_near(after(run, range(4)).adapters, weighed(alone, shares))


@pytest.mark.parametrize(
    "method",
    [
        *("flora", "fedsvd"),
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("fedex_lora", "flexlora", "fedask")),
    ],
)
def test_one_clients_model_comes_back_from_the_server_as_it_was_sent(method):
    """Alpha over r lost in a stack, or the roots of the singular values, would change it."""
    run, plain = prepared(method=method), prepared(method="fedavg_lora")
    if method in ("fedsvd", "fedask"):
        plain = prepared(method="ffa_lora")
    ours, sent = after(run, [1]), after(plain, [1])
    for layer, adapted in run.model.adapted.items():
        x = jnp.eye(run.model.shapes[layer]["lora_a"][0])
        assert adapted.scaling == 8
        came = run.model.detour.apply(ours.adapters[layer], x, adapted.scaling)
        leaves = {**plain.frozen.adapters.get(layer, {}), **sent.adapters[layer]}
        went = plain.model.detour.apply(leaves, x, adapted.scaling)
        assert np.abs(went).max() > 1e-3
        np.testing.assert_allclose(came, went, atol=2e-6, rtol=1e-3)


@pytest.mark.parametrize("init", registry.available("inits"))
def test_no_two_layers_begin_with_the_same_a(init):
    run = prepared(init=init)
    factors = [found["lora_a"] for found in run.frozen.adapters.values()]
    for index, one in enumerate(factors):
        for other in factors[index + 1 :]:
            assert one.shape != other.shape or np.abs(one - other).max() > 1e-3


def test_smoothing_keeps_a_constant_and_takes_white_noise_to_its_share(key):
    np.testing.assert_allclose(smoothed(jnp.full((6, 5), 3.0)), 3.0, rtol=1e-6)
    noise = jax.random.normal(key, (400, 50))
    share = np.sqrt(1 + 16 + 36 + 16 + 1) / 16
    assert float(jnp.std(smoothed(noise))) == pytest.approx(share, rel=0.02)
    assert smoothed(noise[:1, :2]).shape == (1, 2)


def test_a_local_step_moves_one_factor_alone():
    run = prepared(method="la_lora", mechanism="none")
    one = prepare(run.experiment.replace(local_steps=2, **{"optimizer.learning_rate": 50.0}))
    state = after(one, [0])
    for layer in run.model.adapted:
        assert np.abs(state.adapters[layer]["lora_b"]).max() > 0
        before = run.state.adapters[layer]["lora_a"]
        assert np.abs(state.adapters[layer]["lora_a"] - before).max() > 0
    with pytest.raises(InputError, match="local_steps >= 2"):
        prepare(run.experiment.replace(local_steps=1))


def test_sketches_cost_both_factors_and_what_comes_between():
    run, both = prepared(method="fedask"), prepared(method="fedavg_lora")
    outputs = sum(found["lora_b"][1] for found in run.model.shapes.values() if "lora_b" in found)
    up, down = message_bytes(run)
    assert (up, down) == (
        message_bytes(both)[0],
        message_bytes(both)[1] + 4 * run.experiment.method.rank * outputs,
    )
