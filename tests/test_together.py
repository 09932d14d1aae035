"""Runs of one program give what each gives alone: order of proof 3, whole against parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffalora_jax import registry, rng
from ffalora_jax.engine import Engine
from ffalora_jax.loader import Loader
from ffalora_jax.optimizers import make_optimizer
from ffalora_jax.prepare import prepare
from ffalora_jax.rng import Keys
from ffalora_jax.together import RATE_LAST, Program, given, kind_of, side_by_side
from tests.helpers import go_together, prepared

ROUNDS = 2
OTHER = {
    "optimizer.learning_rate": 0.25,
    "privacy.clip_norm": 0.3,
    "privacy.noise_multiplier": 1.4,
    "method.init": "gaussian",
    "method.lora_alpha": 5.0,
    "seed": 3,
}


def experiment(method, mechanism="dp_sgd", **changes):
    return prepared(method, mechanism).experiment.replace(**changes)


def keys(seed, noise_seed):
    return Keys(rng.public_root(seed), rng.secret_root(noise_seed))


def alone(run, noise_seed):
    state, infos = Engine(run)(keys(run.experiment.seed, noise_seed), run.state, ROUNDS)
    return state, jax.tree.map(lambda leaf: np.asarray(leaf)[:ROUNDS], infos)


def together(runs, width):
    """Each run's state and infos, by one program of so many side by side."""
    program = Program(runs[0])
    numbers = [given(run, runs[0]) for run in runs]
    found = []
    for begin in range(0, len(runs), width):
        part = slice(begin, begin + width)
        states = [run.state for run in runs[part]]
        here = [keys(run.experiment.seed, 40 + begin + n) for n, run in enumerate(runs[part])]
        batch = program.batch(numbers[part], states, here)
        infos = batch.rounds(ROUNDS)
        found += [(batch.state(place), infos[place]) for place in range(len(states))]
    return found


def assert_each_is_as_if_alone(runs, width):
    for index, (state, infos) in enumerate(together(runs, width)):
        expected, told = alone(runs[index], 40 + index)
        pairs = zip(jax.tree.leaves((expected, told)), jax.tree.leaves((state, infos)), strict=True)
        for mine, theirs in pairs:
            theirs = np.asarray(theirs)[:ROUNDS] if np.ndim(theirs) else theirs
            mine = np.asarray(mine)[:ROUNDS] if np.ndim(mine) else mine
            np.testing.assert_allclose(mine, theirs, rtol=2e-4, atol=2e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("width", [1, 2])
def test_runs_that_differ_in_numbers_are_one_program_with_each_ones_numbers(width):
    loader = Loader()
    # The tiny model's weights follow from the seed, and those side by side have them in common.
    changes = dict(OTHER, seed=0) if width > 1 else OTHER
    runs = [
        prepare(experiment("ffa_lora", **one), loader=loader)
        for one in ({}, changes, {"optimizer.learning_rate": 0.9})
    ]
    assert len({kind_of(run) for run in runs}) == 1
    assert_each_is_as_if_alone(runs[: 2 * width], width)


OF_EACH_KIND = ("fedavg_lora", "fedsa_lora", "flora", "fedsvd", "rolora")


def _methods():
    """All of them; in the thorough tests one of each kind of state."""
    return [
        pytest.param(m, marks=pytest.mark.thorough if m in OF_EACH_KIND else pytest.mark.slow)
        for m in registry.available("methods")
        if go_together(m, "dp_sgd")
    ]


@pytest.mark.parametrize("method", _methods())
def test_side_by_side_every_method_gives_what_it_gives_alone(method):
    loader = Loader()
    init = {} if prepared(method).method.redrawn else {"method.init": "gaussian"}
    changes = {"optimizer.learning_rate": 0.25, "privacy.clip_norm": 0.3, **init}
    if kind_of(prepared(method)) == kind_of(
        prepare(experiment(method, **{"method.lora_alpha": 5.0}))
    ):
        changes["method.lora_alpha"] = 5.0
    runs = [prepare(experiment(method, **one), loader=loader) for one in ({}, changes)]
    if kind_of(runs[0]) == kind_of(runs[1]):
        assert_each_is_as_if_alone(runs, 2)
    else:  # W's own factors: the initialiser changes what is beside a layer
        assert "start_a" in str(jax.tree.structure(runs[1].frozen)) or method == "ravan"


@pytest.mark.thorough
@pytest.mark.parametrize("mechanism", registry.available("mechanisms"))
def test_side_by_side_every_mechanism_gives_what_it_gives_alone(mechanism):
    if mechanism == "dp_sgd_banded":
        pytest.skip("its groups need more examples than the small run's smallest client has")
    loader = Loader()
    changes = {} if mechanism == "dp_sgd_secagg" else {"optimizer.learning_rate": 0.25}
    if kind_of(prepared("ffa_lora", mechanism)) == kind_of(
        prepare(experiment("ffa_lora", mechanism, **{"privacy.noise_multiplier": 1.4}))
    ):
        changes |= {"privacy.noise_multiplier": 1.4, "privacy.clip_norm": 0.3}
    runs = [
        prepare(experiment("ffa_lora", mechanism, **one), loader=loader) for one in ({}, changes)
    ]
    assert kind_of(runs[0]) == kind_of(runs[1])
    assert_each_is_as_if_alone(runs, 2)


@pytest.mark.parametrize(
    ("method", "mechanism", "changes"),
    [
        ("ffa_lora", "dp_sgd", {"method.rank": 3}),
        ("ffa_lora", "dp_sgd", {"batch_size": 5}),
        ("ffa_lora", "dp_sgd", {"local_steps": 3}),
        ("ffa_lora", "dp_sgd", {"optimizer.options": {"momentum": 0.5}}),
        ("fedavg_lora", "dp_sgd", {"method.lora_alpha": 5.0}),
        ("ffa_lora", "dp_fedavg", {"privacy.clip_norm": 0.3}),
        ("ffa_lora", "dp_fedavg", {"privacy.noise_multiplier": 1.4}),
        ("ffa_lora", "dp_sgd_adaptive", {"privacy.noise_multiplier": 1.4}),
        ("rolora", "dp_sgd", {"method.lora_alpha": 5.0}),
        ("ffa_lora", "dp_sgd_secagg", {"optimizer.learning_rate": 0.1}),
    ],
)
def test_what_stands_in_the_program_makes_another_one(method, mechanism, changes):
    found = prepare(experiment(method, mechanism, **changes))
    assert kind_of(found) != kind_of(prepared(method, mechanism))


def test_control_variates_are_in_units_of_the_learning_rate():
    one, two = (
        prepare(
            experiment(
                "ffa_lora", **{"optimizer.control_variates": True, "optimizer.learning_rate": r}
            )
        )
        for r in (0.4, 0.1)
    )
    assert kind_of(one) != kind_of(two)


def test_clients_drawn_from_the_host_share_no_program():
    found = [prepare(experiment("ffa_lora", client_data="host", cohort_size=2)) for _ in range(2)]
    assert kind_of(found[0]) != kind_of(found[1])


@pytest.mark.parametrize("name", sorted(RATE_LAST))
def test_the_learning_rate_is_the_last_factor_of(name, key):
    params = {"w": jax.random.normal(key, (3, 4))}
    whole, part = (make_optimizer(name, rate, {}) for rate in (0.8, 0.2))
    states = whole.init(params), part.init(params)
    for step in range(3):
        grads = {"w": jax.random.normal(jax.random.fold_in(key, step), (3, 4))}
        (large, one), (small, two) = (
            o.update(grads, s, params) for o, s in zip((whole, part), states, strict=True)
        )
        states = one, two
        np.testing.assert_allclose(large["w"], 4 * small["w"], rtol=1e-5, atol=1e-8)


def test_what_runs_have_in_common_is_one_array():
    loader = Loader()
    one, two = (
        prepare(experiment("ffa_lora", **c), loader=loader)
        for c in ({}, {"optimizer.learning_rate": 0.1})
    )
    other = prepare(experiment("ffa_lora", seed=1), loader=loader)
    numbers = [given(run, one) for run in (one, two, other)]
    assert numbers[1].frozen.backbone is not one.frozen.backbone
    assert jax.tree.leaves(numbers[1].frozen.backbone)[0] is jax.tree.leaves(one.frozen.backbone)[0]
    assert side_by_side(numbers) == [[0, 1], [2]]


def test_a_frozen_a_is_scaled_for_another_alpha_and_no_other_leaf():
    one, two = prepared("ffa_lora"), prepare(experiment("ffa_lora", **{"method.lora_alpha": 4.0}))
    numbers = given(two, one)
    for layer, factors in two.frozen.adapters.items():
        np.testing.assert_allclose(
            numbers.frozen.adapters[layer]["lora_a"], 0.25 * factors["lora_a"], rtol=1e-7
        )
    assert jnp.all(numbers.frozen.rates.learning_rate == 1)
