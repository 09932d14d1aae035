"""The numbers of each mechanism, by hand: what is clipped to what, noised by how much, and paid how."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffalora_jax import accounting, registry
from ffalora_jax.config import Experiment, OptimizerConfig, PrivacyConfig, SitesConfig
from ffalora_jax.errors import InputError
from ffalora_jax.mechanisms import Schedule
from ffalora_jax.mechanisms._adaptive import count_noise, next_factor, remaining
from ffalora_jax.mechanisms._clients import bounded
from ffalora_jax.mechanisms._noise import add_noise
from ffalora_jax.mechanisms.dp_sgd_banded import strategy


def built(name, *, batch_size=8, more=None, **privacy):
    experiment = Experiment(
        batch_size=batch_size, local_steps=1, privacy=PrivacyConfig(name, **privacy)
    )
    return registry.lookup("mechanisms", name)(experiment.replace(**(more or {})))


def of_clients(sizes, schedule=None, multipliers=None, more=None, **privacy):
    privacy = {"delta": 1e-2, **(privacy or {"epsilon": 2.0})}
    plan = built("dp_fedavg", more=more, **privacy).plan
    return plan(sizes, schedule or Schedule(12, 3, 8), multipliers)


DRAWN = {"cohort_sampling": "poisson"}


def test_a_round_is_one_sum_over_the_clients_whatever_they_do_in_it(simple):
    """All of four clients in each of twelve rounds: noise 12 / 2 for a budget of two."""
    plan = of_clients([40, 50, 60, 70])
    assert {client.noise_multiplier for client in plan.clients} == {6.0}
    assert plan.epsilons(2, 3) == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6])
    assert plan.spent(2, 3) == pytest.approx(0.5)
    assert plan.rounds_within_budget == 12
    assert plan.clients[0].priced == accounting.Sampling(4, 1.0, None)
    assert [c.sampling for c in plan.clients] == [
        accounting.sampling(n, 8, accounting.default_capacity(8)) for n in (40, 50, 60, 70)
    ]
    few = of_clients([40, 50, 60, 70], capacity=9)
    assert [c.sampling for c in few.clients] == [
        accounting.sampling(n, 8, 9) for n in (40, 50, 60, 70)
    ]
    assert plan.warnings == ()
    assert len(of_clients([40] * 4, delta=0.05, noise_multiplier=1.0).warnings) == 0
    assert len(of_clients([40] * 40, delta=0.05, noise_multiplier=1.0).warnings) == 1


def test_clients_are_sampled_as_they_are_drawn_with_the_cap_where_it_can_bind(simple):
    for count, size, cap in ((48, 4, 12), (30, 25, None), (4, 4, None)):
        plan = of_clients([40] * count, more={"cohort_size": size, **DRAWN}, noise_multiplier=1.0)
        assert plan.clients[0].priced == accounting.Sampling(count, size / count, cap)
    with pytest.raises(InputError, match="'poisson' under client-level privacy with 4 of 48"):
        of_clients([40] * 48, more={"cohort_size": 4}, noise_multiplier=1.0)


def test_rounds_of_clients_are_counted_against_a_budget_where_it_did_not_set_the_noise(simple):
    assert of_clients([40] * 4, noise_multiplier=2.0).rounds_within_budget == 12
    assert of_clients([40] * 4, noise_multiplier=2.0, epsilon=2.0).rounds_within_budget == 4
    went_on = of_clients([40] * 4, multipliers=[3.0, 1.0, 1.0, 1.0], epsilon=2.0)
    assert [client.noise_multiplier for client in went_on.clients] == [3.0] * 4
    assert went_on.rounds_within_budget == 6
    with pytest.raises(InputError, match="noise_multiplier >="):
        of_clients([40] * 4, noise_multiplier=0.01)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"weights": "size"}, "weights = 'uniform'"),
        ({"sites": SitesConfig(over_select=1.01)}, "over_select = 1"),
    ],
)
def test_what_moves_the_sum_of_clients_further_is_refused(more, words):
    with pytest.raises(InputError, match=words):
        built("dp_fedavg", more=more, noise_multiplier=1.0)


def test_a_count_of_clients_that_may_stay_away_is_no_share_of_them():
    more = {"sites": SitesConfig(available="0.7")}
    with pytest.raises(InputError, match="always there with dp_fedavg_adaptive"):
        built("dp_fedavg_adaptive", more=more, noise_multiplier=1.0)


def test_a_client_is_cut_to_the_norm_and_left_alone_at_it():
    moved = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray([[4.0]])}
    for bound, scale in ((5.0, 1.0), (6.0, 1.0), (2.5, 0.5), (math.inf, 1.0)):
        found, norm = bounded(moved, bound)
        assert float(norm) == 5
        np.testing.assert_allclose(found["a"], [3 * scale, 0], rtol=1e-6)
        np.testing.assert_allclose(found["b"], [[4 * scale]], rtol=1e-6)
    broken, _ = bounded({**moved, "c": jnp.asarray([np.nan, 1.0])}, 2.5)
    assert all((leaf == 0).all() for leaf in broken.values())


def test_a_sum_over_clients_is_noised_in_units_of_the_norm_and_divided_by_the_expected_number(key):
    found = built("dp_fedavg", noise_multiplier=1.0, clip_norm=0.5)
    total = {"a": {"x": jnp.full(3, 10.0)}}
    mean = found.private_total(key, total, 1.5, 4)["a"]["x"]
    sample = add_noise(key, {"a": {"x": jnp.zeros(3)}}, 1.0)["a"]["x"]
    np.testing.assert_allclose(mean, (10 + 1.5 * 0.5 * sample) / 4, rtol=1e-6)
    assert found.clip_norm == math.inf
    assert found.private_grad(key, total, 1.5)["a"]["x"].tolist() == [10 / 8] * 3
    cut, norm = found.private_update(total, 2.0)
    np.testing.assert_allclose(jnp.linalg.norm(cut["a"]["x"]), 0.5 * 2, rtol=1e-6)
    np.testing.assert_allclose(norm, 10 * np.sqrt(3), rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "expected", "found"), [(None, 8, 1), (None, 90, 4.5), (3, 90, 3)]
)
def test_the_counts_noise_is_a_twentieth_of_the_draw_and_at_least_one_unless_it_is_set(
    given, expected, found
):
    assert count_noise(PrivacyConfig(count_noise=given), expected) == found
    for name, more in (("dp_sgd_adaptive", {}), ("dp_fedavg_adaptive", {"cohort_size": expected})):
        mechanism = built(
            name, batch_size=expected, more=more, noise_multiplier=1.0, count_noise=given
        )
        assert mechanism.beside_count(1.0) == pytest.approx((1 - (2 * found) ** -2) ** -0.5)


@pytest.mark.parametrize(("cohort", "expected"), [(None, 1), (6, 6)])
def test_a_count_of_clients_is_a_share_of_the_cohort_or_of_one_alone(key, cohort, expected):
    alone = built("dp_fedavg_adaptive", noise_multiplier=1.0, more={"cohort_size": cohort})
    given = key, jnp.float32(1), jnp.float32(2)
    settings = PrivacyConfig(noise_multiplier=1.0)
    assert alone.adapt(*given) == next_factor(*given, expected, settings, 1.0)


def test_what_is_left_beside_the_counts_noise_is_the_formulas():
    """1 / .8^2 = 1 / z^2 + 1 / (2 * .5)^2, so z = 4 / 3."""
    assert remaining(0.8, 0.5) == pytest.approx(4 / 3)


def test_the_next_norm_is_the_formulas_and_stays_between_a_millionth_and_a_million(key):
    settings = PrivacyConfig(target_quantile=0.25, clip_learning_rate=0.5)
    noise = float(jax.random.normal(key, (), jnp.float32))
    found = next_factor(key, jnp.float32(2), jnp.float32(3), 40.0, settings, 5.0)
    share = (3 + 5 * noise) / 40 + 0.5
    assert float(found) == pytest.approx(2 * math.exp(-0.5 * (share - 0.25)), rel=1e-6)
    for factor, within, bound in ((2e-6, 40.0, 1e-6), (0.9e6, -40.0, 1e6)):
        fast = PrivacyConfig(target_quantile=0.5, clip_learning_rate=2.0)
        found = next_factor(key, jnp.float32(factor), jnp.float32(within), 40.0, fast, 1e-6)
        assert float(found) == np.float32(bound)


@pytest.mark.parametrize("name", ["dp_sgd_adaptive", "dp_fedavg_adaptive"])
def test_a_count_whose_noise_alone_spends_it_all_is_refused_and_more_is_not(simple, name):
    """Noise z on the sum needs more than z / 2 on the count, at the loudest of the schedule."""
    found = built(name, noise_multiplier=1.0, delta=1e-2, count_noise=1.5)
    sizes = [40, 40]
    assert found.plan(sizes, Schedule(4, 1, 8, (1.0, 2.9)), None).capacity
    for loudest in (3.0, 3.1):
        with pytest.raises(InputError, match=r"count_noise > 1\.5"):
            found.plan(sizes, Schedule(4, 1, 8, (1.0, loudest)), None)
    with pytest.raises(InputError, match="clip_schedule = 'constant'"):
        built(name, noise_multiplier=1.0, clip_schedule="linear 2").plan(
            sizes, Schedule(4, 1, 8), None
        )


def test_a_count_is_a_share_of_one_batch_at_all_clients_and_of_any_under_client_level(simple):
    own = Schedule(4, 1, 8, client_batches=(8, 5))
    plan = built("dp_sgd_adaptive", noise_multiplier=1.0, delta=1e-2).plan
    with pytest.raises(InputError, match=r"one batch size at all sites .* got 5 beside 8"):
        plan([40, 40], own, None)
    assert plan([40, 40], own._replace(client_batches=(8, 8)), None).unit == "example"
    clients = built("dp_fedavg_adaptive", noise_multiplier=1.0, delta=1e-2).plan
    assert clients([40, 40], own, None).unit == "client"


def test_banded_noise_takes_back_what_it_remembers_of_the_steps_before(key):
    """x_0 = (z - l_1 x_-1 - l_2 x_-2 - l_3 x_-3) / l_0, with what came before given, the last first."""
    found = built("dp_sgd_banded", noise_multiplier=1.0, clip_norm=0.5, bands=4)
    total = {"a": {"x": jnp.full(2, 4.0)}}
    z = np.asarray(add_noise(key, {"a": {"x": jnp.zeros(2)}}, 1.0)["a"]["x"])
    first, *others = strategy(4)
    assert found.correlated.begin(total)["a"]["x"].tolist() == [[0, 0]] * 3
    fresh = found.private_grad(key, total, 1.5)["a"]["x"]
    np.testing.assert_allclose(fresh, (4 + 1.5 * 0.5 * z / first) / 8, rtol=1e-5)
    past = jnp.asarray([[1.0, 2.0], [3.0, 5.0], [-2.0, 0.5]])
    gradient, after = found.correlated.private_grad(key, total, 1.5, {"a": {"x": past}})
    x = (z - sum(one * np.asarray(row) for one, row in zip(others, past, strict=True))) / first
    np.testing.assert_allclose(gradient["a"]["x"], (4 + 1.5 * 0.5 * x) / 8, rtol=1e-5)
    np.testing.assert_allclose(after["a"]["x"], [x, *past[:2]], rtol=1e-5)


def test_one_band_remembers_nothing_and_is_plain_noise(key):
    found = built("dp_sgd_banded", noise_multiplier=1.0, clip_norm=0.5, bands=1).correlated
    total = {"a": {"x": jnp.full(2, 4.0)}}
    gradient, after = found.private_grad(key, total, 1.5, found.begin(total))
    assert after["a"]["x"].shape == (0, 2)
    plain = built("dp_sgd", noise_multiplier=1.0, clip_norm=0.5).private_grad(key, total, 1.5)
    np.testing.assert_allclose(gradient["a"]["x"], plain["a"]["x"], rtol=1e-6)


def test_the_diagonals_are_one_half_and_three_eighths_of_the_first_with_norm_one():
    whole = np.asarray([1, 1 / 2, 3 / 8, 5 / 16])
    for bands in range(1, 5):
        expected = whole[:bands] / np.sqrt((whole[:bands] ** 2).sum())
        np.testing.assert_allclose(strategy(bands), expected, rtol=1e-12)


def test_banded_noise_needs_as_many_steps_as_bands_and_the_same_at_all(simple):
    at = {"rounds": 2, "local_steps": 2}
    with pytest.raises(InputError, match="bands <= 4, the local steps of the whole run, got 5"):
        built("dp_sgd_banded", noise_multiplier=1.0, bands=5, more=at)
    plan = built("dp_sgd_banded", noise_multiplier=1.0, bands=4, more=at).plan
    assert plan([40, 40], Schedule(2, 2, 8, client_steps=(2, 2)), None).unit == "example"
    with pytest.raises(InputError, match="same local steps"):
        plan([40, 40], Schedule(2, 2, 8, client_steps=(2, 1)), None)
    for more in ({"cohort_size": 1}, {"cohort_sampling": "poisson"}):
        plan = built("dp_sgd_banded", noise_multiplier=1.0, bands=4, more={**at, **more}).plan
        with pytest.raises(InputError, match="every client in every round"):
            plan([40, 40], Schedule(2, 2, 8), None)
    for name in ("clip_schedule", "noise_schedule"):
        with pytest.raises(InputError, match=f"{name} = 'constant'"):
            built("dp_sgd_banded", noise_multiplier=1.0, bands=4, more=at, **{name: "linear 2"})
    everyone = built("dp_sgd_banded", noise_multiplier=1.0, bands=4, more={**at, "cohort_size": 2})
    assert everyone.plan([40, 40], Schedule(2, 2, 8), None).unit == "example"


def integers(more=None, *, capacity=30, **privacy):
    privacy = {"noise_multiplier": 1.0, "clip_norm": 0.5, "capacity": capacity, **privacy}
    more = {"optimizer": OptimizerConfig(learning_rate=0.25), **(more or {})}
    return built("dp_sgd_secagg", more=more, **privacy)


@pytest.mark.parametrize(("capacity", "bits"), [(30, 16), (32, 16), (33, 15), (64, 15)])
def test_under_secure_aggregation_a_sum_is_counted_in_steps_that_a_full_draw_cannot_pass(
    key, capacity, bits
):
    """Of 2^21 steps a draw's capacity of clip norms fits, to a power of two."""
    grid = 0.5 / 2**bits
    found = integers(capacity=capacity)
    total = {"a": {"x": jnp.asarray([grid * 7.4, grid * 2.6, -grid * 3.0])}}
    gradient = found.private_grad(key, total, 0.0)["a"]["x"]
    np.testing.assert_allclose(gradient, np.asarray([7, 3, -3]) * grid / 8, rtol=1e-6)


@pytest.mark.parametrize(("cohort", "share"), [(None, 1), (8, 0.5)])
def test_under_secure_aggregation_a_client_adds_its_share_of_the_noise_with_the_rounding_in_it(
    key, cohort, share
):
    """Of eight clients a half is honest: a share of 1 / sqrt(8 / 2); of one alone, all of it."""
    grid = 0.5 / 2**16
    honest = 1.0 if cohort is None else 0.5
    found = integers({"cohort_size": cohort}, honest_share=honest)
    gradient = found.private_grad(key, {"a": {"x": jnp.zeros(10_000)}}, 2.0)["a"]["x"]
    sample = add_noise(key, {"a": {"x": jnp.zeros(10_000)}}, 1.0)["a"]["x"]
    stddev = 2.0 * (0.5 + grid * 100) * share
    np.testing.assert_allclose(gradient * 8, stddev * sample, atol=0.51 * grid)


def test_under_secure_aggregation_uploads_are_whole_steps_of_what_a_gradient_moves():
    """A step of the grid moves a leaf by rate / batch of it; the server's mean is of that size again."""
    found, unit = integers(), 0.25 * (0.5 / 2**16) / 8
    moved = {"a": {"x": jnp.asarray([3.0, -4.2, 0.4]) * unit}}
    words, norm = found.private_update(moved, 1.0)
    assert words["a"]["x"].dtype == jnp.uint32
    assert words["a"]["x"].tolist() == [3, 2**32 - 4, 0]
    np.testing.assert_allclose(norm, unit * np.sqrt(3**2 + 4.2**2 + 0.4**2), rtol=1e-6)
    mean = found.private_total(None, words, 1.0, 5)["a"]["x"]
    np.testing.assert_allclose(mean, np.asarray([3, -4, 0]) * unit / 5, rtol=1e-6)
    assert found.sums_integers
    assert found.clip_norm == 0.5


def test_secure_aggregation_gives_all_clients_the_noise_of_the_neediest(simple):
    plan = integers(noise_multiplier=None, epsilon=2.0, delta=1e-3).plan(
        [40, 80], Schedule(10, 1, 8), None
    )
    assert {client.noise_multiplier for client in plan.clients} == {1.0}


@pytest.mark.parametrize(("share", "words"), [(0.75, "up to 25 % of"), (0.1, "up to 90 % of")])
def test_secure_aggregation_says_how_many_clients_may_be_in_league_with_the_server(share, words):
    assert words in integers(honest_share=share).trust_model


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"local_steps": 2}, "local_steps = 1"),
        ({"optimizer": OptimizerConfig(name="adam")}, "plain sgd"),
        ({"optimizer": OptimizerConfig(options={"momentum": 0.9})}, "plain sgd"),
        ({"optimizer": OptimizerConfig(schedule="linear 0.1")}, "plain sgd"),
        ({"privacy.clip_schedule": "linear 0.1"}, "plain sgd"),
        ({"weights": "size"}, "weights = 'uniform'"),
        ({"cohort_sampling": "poisson"}, "'fixed'"),
        ({"model.head": "personal"}, "trained or frozen"),
        ({"sites": SitesConfig(batch_size="4, 8")}, "one batch size"),
        ({"sites": SitesConfig(available="0.9")}, "all sites present"),
    ],
)
def test_what_secure_aggregation_cannot_have_is_refused(more, words):
    with pytest.raises(InputError, match=words):
        integers(more)
