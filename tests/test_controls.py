"""SCAFFOLD: the round equals the loops of its algorithm, and its controls pass what the uploads pass."""

import jax
import numpy as np
import pytest

from ffalora_jax import adapters as leaves
from ffalora_jax.errors import InputError
from ffalora_jax.prepare import prepare
from ffalora_jax.run_facts import message_bytes
from tests import reference
from tests.helpers import drawn_rows, go_together, keys, participants, prepared, run_rounds

RATE, STEPS = 0.4, 2


def with_controls(changes=None, **settings):
    run = prepared(learning_rate=RATE, **settings)
    return prepare(
        run.experiment.replace(**{"optimizer.control_variates": True, **(changes or {})})
    )


def scaffold(run, rounds, cohorts):
    """Algorithm 1 of Karimireddy et al. in loops, with private gradients; returns (x, c, c_k by client)."""
    count = run.settings.num_clients
    shared = reference.flat(run.state.adapters)
    common = {place: np.zeros_like(leaf) for place, leaf in shared.items()}
    own = [dict(common) for _ in range(count)]
    for index in range(rounds):
        ends, changes = [], []
        for client in cohorts[index]:
            seen = []
            end = reference.local_update(
                run.model.apply,
                run.frozen,
                shared,
                run.data,
                drawn_rows(run, index, client),
                secret=keys(run).secret,
                round_index=index,
                client=client,
                clip_norm=run.experiment.privacy.clip_norm,
                noise_multiplier=float(run.numbers.noise_multiplier[client]),
                expected=run.experiment.batch_size,
                learning_rate=RATE,
                correction={p: common[p] - own[client][p] for p in common},
                seen=seen,
            )
            mean = {p: np.mean([gradient[p] for gradient in seen], axis=0) for p in common}
            # Option II of the paper says the same: c_k - c + (x - y) / (steps * rate).
            for p in common:
                second = own[client][p] - common[p] + (shared[p] - end[p]) / (STEPS * RATE)
                np.testing.assert_allclose(mean[p], second, atol=1e-9)
            changes.append({p: mean[p] - own[client][p] for p in common})
            ends.append(end)
            own[client] = mean
        shared = {p: np.mean([end[p] for end in ends], axis=0) for p in shared}
        share = len(ends) / count
        common = {p: common[p] + share * np.mean([c[p] for c in changes], axis=0) for p in common}
    return shared, common, own


def assert_close(tree, found, atol=2e-6):
    for place, leaf in reference.flat(tree).items():
        np.testing.assert_allclose(leaf, found[place], rtol=2e-5, atol=atol)


@pytest.mark.parametrize("cohort_size", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_three_rounds_equal_the_algorithm_in_loops_noise_included(cohort_size):
    run = with_controls(cohort_size=cohort_size)
    state, infos = run_rounds(run, 3)
    cohorts = [clients for info in infos for clients in participants(info)]
    shared, common, own = scaffold(run, 3, cohorts)
    assert_close(state.adapters, shared)
    assert_close(state.control, common)
    for client in range(run.settings.num_clients):
        assert_close(
            jax.tree.map(lambda leaf, c=client: leaf[c], state.memory.control), own[client]
        )


def test_the_first_round_is_that_without_controls():
    run, plain = with_controls(), prepared(learning_rate=RATE)
    assert_close(
        run_rounds(run, 1)[0].adapters, reference.flat(run_rounds(plain, 1)[0].adapters), 1e-7
    )


@pytest.mark.slow
def test_with_one_client_controls_cancel_out():
    run, plain = with_controls(clients=1), prepared(clients=1, learning_rate=RATE)
    assert_close(
        run_rounds(run, 3)[0].adapters, reference.flat(run_rounds(plain, 3)[0].adapters), 1e-6
    )


@pytest.mark.slow
def test_they_pull_clients_of_different_classes_together():
    """What it is for: the mean of the clients' models lies closer to each of them."""
    apart = {}
    for on in (False, True):
        changes = {"optimizer.control_variates": on, "monitor.on": True, "local_steps": 4}
        changes |= {"batch_size": 12, "partition.name": "proportions"}
        run = prepare(prepared(mechanism="none", learning_rate=RATE).experiment.replace(**changes))
        _, infos = run_rounds(run, 9)
        apart[on] = float(np.mean([np.mean(info.monitor["drift"][-3:]) for info in infos[1:]]))
    assert apart[True] < 0.8 * apart[False]


@pytest.mark.thorough
def test_under_client_level_privacy_the_change_of_controls_is_inside_the_clipped_vector():
    """The mean that the server reads stays within one clip norm, controls and leaves together."""
    run = with_controls(mechanism="dp_fedavg", clip_norm=1e-3)
    silent = run._replace(server=run.server._replace(noise_multiplier=0.0))
    state, _ = run_rounds(silent, 1)
    scale = RATE * STEPS
    moved = jax.tree.map(np.subtract, state.adapters, run.state.adapters)
    controls = jax.tree.map(lambda leaf: scale * np.asarray(leaf), state.control)
    square = sum(np.sum(np.asarray(x) ** 2) for x in jax.tree.leaves((moved, controls)))
    assert np.sqrt(square) <= 1e-3 * (1 + 1e-5)
    assert np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(controls))) > 1e-4
    loud, _ = run_rounds(run, 1)
    assert all(
        np.any(a != b)
        for a, b in zip(jax.tree.leaves(loud.control), jax.tree.leaves(state.control), strict=True)
    )


@pytest.mark.parametrize(
    ("method", "mechanism"),
    [
        ("fedsa_lora", "dp_sgd"),
        pytest.param("la_lora", "none", marks=pytest.mark.slow),
        ("ravan", "dp_fedavg"),
        *[
            pytest.param(method, mechanism, marks=pytest.mark.slow)
            for method in (
                "ffa_lora",
                "rolora",
                "fed_sb",
                "vera",
                "bitfit",
                "head_only",
            )
            for mechanism in ("none", "dp_sgd", "dp_fedavg")
            if go_together(method, mechanism)
        ],
    ],
)
@pytest.mark.thorough
def test_every_method_that_sends_a_mean_has_them(method, mechanism):
    """Two rounds, finite, with controls of the sent leaves alone."""
    run = with_controls(method=method, mechanism=mechanism)
    state, _ = run_rounds(run, 2)
    assert leaves.names(state.control) == leaves.names(run.state.adapters)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(state.control))


def test_messages_are_twice_as_long():
    run, plain = with_controls(), prepared(learning_rate=RATE)
    assert message_bytes(run, 1) == tuple(2 * n for n in message_bytes(plain, 1))


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"method": "flora"}, {}),
        ({"method": "fedsvd"}, {}),
        ({"method": "local_only"}, {}),
        ({"mechanism": "dp_sgd_secagg"}, {}),
        ({}, {"weights": "size"}),
        ({}, {"client_data": "host"}),
        ({}, {"compression": "int8"}),
        ({}, {"sites.deadline": 1e6, "sites.late_weight": 0.5}),
        ({"mechanism": "dp_fedavg", "clients": 12, "cohort_size": 2, "sampling": "poisson"}, {}),
    ],
)
def test_what_controls_would_not_fit_is_refused(settings, changes):
    with pytest.raises(InputError, match="control_variates"):
        with_controls(changes, **settings)
