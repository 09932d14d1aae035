"""Sites with a batch of their own, ranks that follow a deadline, and uploads that come after it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ffalora_jax as ffa
from ffalora_jax.errors import InputError
from ffalora_jax.prepare import prepare
from ffalora_jax.run_facts import message_bytes
from tests.helpers import prepared, run_rounds, silent
from tests.test_sites import after, rounds_of, with_sites

SLOW = {"up": "100, 0.001, 100, 100"}
"""Client 1 takes ten simulated seconds to send, the others next to nothing."""


def seconds_of(run):
    return float(8 * message_bytes(run)[0] / 1e3)


def late(base=None, weight=1.0, deadlines=0.75, **more):
    """Client 1 comes after the deadline, and (at .75 of its time) before twice that."""
    base = base or prepared()
    deadline = deadlines * seconds_of(base)
    return with_sites(base, **SLOW, deadline=deadline, late_weight=weight, **more)


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other)


@pytest.mark.parametrize("weight", [pytest.param(1.0, marks=pytest.mark.thorough), 0.25])
def test_a_late_upload_counts_in_the_next_round_as_a_change_with_its_weight(weight):
    """And its site is not asked while it is under way: the third round is late again, the fourth not."""
    base = prepared(clients=4)
    run = late(base, weight)
    assert rounds_of(run, 4) == [[0, 2, 3]] * 4
    begin = base.state.adapters
    first, _ = after(base, [0, 2, 3])
    alone, _ = after(base, [1])
    moved = jax.tree.map(jnp.subtract, alone.adapters, begin)
    plain = base._replace(state=first)
    second, _ = after(plain, [0, 2, 3])
    expected = jax.tree.map(
        lambda mean, now, change: (3 * mean + weight * (now + change)) / (3 + weight),
        second.adapters,
        first.adapters,
        moved,
    )
    one, infos = run_rounds(run, 1)
    assert_close(one.adapters, first.adapters)
    np.testing.assert_array_equal(one.late.under_way, [False, True, False, False])
    two, _ = run_rounds(run, 2)
    assert_close(two.adapters, expected)
    assert not np.asarray(two.late.under_way).any()
    seen = np.asarray(infos[0].late[0])
    assert seen.tolist() == [False, True, False, False]


@pytest.mark.thorough
def test_what_comes_after_twice_the_deadline_is_lost():
    run, base = late(deadlines=0.4), prepared()
    two, _ = run_rounds(run, 2)
    first, _ = after(base, [0, 2, 3])
    second, _ = after(base._replace(state=first), [0, 2, 3])
    assert_close(two.adapters, second.adapters)
    assert not np.asarray(two.late.under_way).any()


@pytest.mark.slow
def test_messages_of_late_sites_are_counted_and_survive_a_stop(tmp_path):
    run = late()
    experiment = run.experiment.replace(rounds=4, evaluate_every=2, noise_seed=5)
    whole = ffa.simulate(experiment, out=tmp_path / "whole")
    up, _ = message_bytes(run)
    assert [line["late"] for line in whole.metrics] == [[1], [], [1], []]
    assert [line["participants"] for line in whole.metrics] == [[0, 2, 3]] * 4
    assert [line["bytes_up"] for line in whole.metrics] == [4 * up, 3 * up, 4 * up, 3 * up]
    # Three rounds: its upload of the third is under way at the stop.
    short = experiment.replace(rounds=3, evaluate_every=1)
    cut = ffa.simulate(short, out=tmp_path / "cut")
    again = ffa.resume(tmp_path / "cut", rounds=1)
    assert len(cut.metrics) == 3
    for a, b in zip(
        jax.tree.leaves(whole.ready.state.adapters),
        jax.tree.leaves(again.ready.state.adapters),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert again.communication["bytes_up"] == whole.communication["bytes_up"]


@pytest.mark.parametrize(
    ("settings", "sites", "words"),
    [
        ({"method": "flora"}, {}, "late_weight = 0"),
        ({"method": "rolora"}, {}, "late_weight = 0"),
        ({"mechanism": "dp_fedavg"}, {}, "late_weight = 0"),
        ({}, {"late_weight": 1.5}, "late_weight <= 1"),
        ({}, {"deadline": None}, r"needs sites\.deadline"),
    ],
)
def test_late_uploads_that_would_say_nothing_are_refused(settings, sites, words):
    with pytest.raises(InputError, match=words):
        with_sites(prepared(**settings), **{"deadline": 1.0, "late_weight": 0.5, **sites})


@pytest.mark.parametrize("mechanism", ["dp_sgd", pytest.param("none", marks=pytest.mark.slow)])
@pytest.mark.thorough
def test_a_site_with_a_smaller_batch_draws_and_divides_by_that(mechanism):
    """As if all had it, with the same draws; the noise apart, which the budget sets."""
    base = prepared(mechanism=mechanism)
    run = silent(with_sites(base, batch_size="4, 2, 4, 4"))
    two = silent(prepare(base.experiment.replace(batch_size=2)))
    for client, alike in ((1, two), (0, silent(base))):
        (state, info), (expected, _) = after(run, [client]), after(alike, [client])
        assert_close(state.adapters, expected.adapters)
        assert int(info.facts.clip.num_real[0]) > 0


def test_each_site_pays_for_its_own_batch():
    run = with_sites(batch_size="4, 2, 4, 2")
    whole, half = prepared().plan, prepare(prepared().experiment.replace(batch_size=2)).plan
    for client in range(4):
        plan = half if client % 2 else whole
        assert run.plan.spent(client, 12) == pytest.approx(plan.spent(client, 12), rel=1e-3)
    with pytest.raises(InputError, match="one batch size"):
        with_sites(prepared(mechanism="dp_sgd_adaptive"), batch_size="4, 2, 4, 4")
    with pytest.raises(InputError, match="one batch size"):
        with_sites(prepared(mechanism="dp_sgd_secagg"), batch_size="4, 2, 4, 4")


def test_a_site_with_a_smaller_batch_takes_less_time():
    run = with_sites(batch_size="4, 2, 4, 1", speed="1")
    np.testing.assert_array_equal(run.sites.work, [1, 0.5, 1, 0.25])


@pytest.mark.thorough
def test_over_a_slow_link_a_deadline_takes_from_the_rank_first():
    base = prepared(method="hetlora")
    deadline = 0.9 * seconds_of(base)
    run = with_sites(base, up="100, 0.001, 100, 100", deadline=deadline, adapt="deadline")
    np.testing.assert_array_equal(run.sites.rank, [2, 1, 2, 2])
    np.testing.assert_array_equal(run.numbers.rank, [2, 1, 2, 2])
    assert rounds_of(run, 1)[0] == [0, 1, 2, 3]


@pytest.mark.slow
def test_presence_and_late_leaves_are_the_same_where_a_rounds_clients_are_dealt_from_the_host(
    tmp_path,
):
    """Everybody in the cohort, and still another one in every round; a late site's own head comes back."""
    base = prepared(head="personal")
    deadline = {"sites.deadline": 0.75 * seconds_of(base), "sites.late_weight": 1.0}
    for name, changes in {
        "late": {"sites.up": SLOW["up"], **deadline},
        "there": {"sites.available": "0.5"},
    }.items():
        experiment = base.experiment.replace(rounds=4, evaluate_every=4, noise_seed=5, **changes)
        one, other = (
            ffa.simulate(experiment.replace(client_data=where), out=tmp_path / name / where)
            for where in ("device", "host")
        )
        assert [x["participants"] for x in one.metrics] == [
            x["participants"] for x in other.metrics
        ]
        jax.tree.map(
            np.testing.assert_array_equal,
            (one.ready.state.adapters, one.ready.state.personal),
            (other.ready.state.adapters, other.ready.state.personal),
        )


def test_many_kinds_of_sites_with_own_batches_are_refused_since_the_dearest_is_not_known():
    base = prepared(clients=10, num_examples=960)
    own = {"batch_size": "1 2 3 4 1 2 3 4 1 2", "local_steps": "1 1 1 1 2 2 2 2 2 1"}
    with pytest.raises(InputError, match="kinds of clients"):
        with_sites(base, **own)
