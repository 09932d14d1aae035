"""Noise under secure aggregation: masks, integers, whose noise adds up to what, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ffalora_jax as ffa
from ffalora_jax import registry, rng
from ffalora_jax.aggregation import masked, ring, weighted_sum
from ffalora_jax.client import Participant
from ffalora_jax.cohort import Cohort
from ffalora_jax.errors import InputError
from ffalora_jax.mechanisms.dp_sgd_secagg import grid_of
from ffalora_jax.prepare import prepare
from ffalora_jax.rng import Keys
from tests.helpers import compiled, keys, prepared

HONEST = 0.5


def secagg(**changes):
    return prepared(mechanism="dp_sgd_secagg", **changes)


def stepped(run, numbers=None, secret=None, clients=range(4)):
    cohort = Cohort(jnp.asarray(clients), jnp.ones(len(clients), bool))
    both = keys(run) if secret is None else Keys(keys(run).public, rng.secret_root(secret))
    step = compiled(run, "round_step")
    return step(both, run.state, run.frozen, run.data, numbers or run.numbers, None, cohort)[0]


def quiet(run):
    return run.numbers._replace(noise_multiplier=jnp.zeros_like(run.numbers.noise_multiplier))


def vector(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def test_the_ring_goes_round_those_who_are_there():
    is_real = jnp.asarray([True, False, True, True, False])
    assert ring(is_real)[jnp.asarray([0, 2, 3])].tolist() == [2, 3, 0]
    assert ring(jnp.asarray([False, True]))[1] == 1


def test_masks_cancel_exactly_in_the_sum_and_hide_each_upload(key):
    words = jax.random.randint(key, (5, 400), -(2**20), 2**20).view(jnp.uint32)
    uploads, is_real = {"a": {"x": words}}, jnp.asarray([True, True, False, True, True])
    hidden = jax.vmap(masked, in_axes=(None, 0, 0, 0))(key, uploads, jnp.arange(5), ring(is_real))
    plain, sums = (
        weighted_sum(tree, is_real, None).weighted["a"]["x"] for tree in (uploads, hidden)
    )
    assert sums.dtype == jnp.uint32
    np.testing.assert_array_equal(plain, sums)
    seen = np.asarray(hidden["a"]["x"][0], np.float64) / 2**32
    assert abs(seen.mean() - 0.5) < 0.06
    assert abs(seen.std() - 12**-0.5) < 0.03
    near = np.abs(np.corrcoef(seen, np.asarray(words[0].view(jnp.int32)))[0, 1])
    assert near < 0.15


@pytest.mark.thorough
def test_without_noise_the_round_is_dp_sgds_up_to_the_grid():
    run = secagg()
    plain = prepare(prepared().experiment.replace(local_steps=1))
    ours, theirs = (vector(stepped(r, quiet(r)).adapters) for r in (run, plain))
    experiment = run.experiment
    grid = experiment.privacy.clip_norm / 2**15
    assert np.abs(ours - theirs).max() < 0.4 * grid / experiment.batch_size
    assert np.abs(ours - vector(run.state.adapters)).max() > 100 * grid


def test_uploads_stay_on_the_grid_however_small_the_rate_and_large_the_weights():
    """Else what is rounded away would be more than the rounding that was paid for."""
    run = secagg()
    run = prepare(run.experiment.replace(**{"optimizer.learning_rate": 1e-4}))
    heavy = jax.tree.map(lambda leaf: leaf + 0.3, run.server.active(run.state.adapters, 0))
    me = Participant(
        jnp.int32(1),
        jnp.int32(1),
        heavy,
        *jax.tree.map(lambda leaf: leaf[1], run.numbers),
        batches=None,
    )
    update = jax.jit(run.local_update())
    moved, _, _ = update(keys(run).secret, jnp.int32(0), run.frozen, run.data, me)
    experiment = run.experiment
    grid = grid_of(experiment.privacy.clip_norm, run.plan.capacity, experiment.cohort_size or 1)
    steps = vector(moved) / (1e-4 * grid / experiment.batch_size)
    assert np.abs(steps).max() > 100
    assert np.abs(steps - np.round(steps)).max() < 0.25


def moved_by_noise(run, seeds=60):
    """What the server's leaves move where nobody draws an example, over noise seeds."""
    numbers = run.numbers._replace(threshold=jnp.zeros_like(run.numbers.threshold))
    before = vector(run.state.adapters)
    return np.concatenate(
        [vector(stepped(run, numbers, s).adapters) - before for s in range(seeds)]
    )


def test_the_honest_share_alone_adds_the_noise_that_the_sum_needs():
    run = secagg()
    privacy, optimizer = run.experiment.privacy, run.experiment.optimizer
    on_sum = privacy.noise_multiplier * privacy.clip_norm / np.sqrt(HONEST)
    expected = on_sum * optimizer.learning_rate / run.experiment.batch_size / 4
    found = moved_by_noise(run).std()
    assert found == pytest.approx(expected, rel=0.03)
    for wrong in (2 / 3, 3 / 2, HONEST, 1 / HONEST):
        assert found != pytest.approx(wrong * expected, rel=0.03)


def test_one_example_moves_the_sum_by_no_more_than_the_clip_norm_and_the_grid():
    run = secagg(clip_norm=0.05)
    experiment, count = run.experiment, vector(run.state.adapters).size
    numbers = quiet(run)._replace(threshold=jnp.full_like(run.numbers.threshold, 2**32 - 1))
    everyone = vector(stepped(run, numbers).adapters)
    size = int(run.data.sizes[1])
    scale = experiment.batch_size * 4 / experiment.optimizer.learning_rate
    for last in range(3):
        members = run.data.members.at[1, last].set(run.data.members[1, size - 1])
        sizes = run.data.sizes.at[1].add(-1)
        fewer = run._replace(data=run.data._replace(members=members, sizes=sizes))
        moved = np.linalg.norm(everyone - vector(stepped(fewer, numbers).adapters)) * scale
        assert 0.01 < moved < 0.05 + 0.05 / 2**15 * np.sqrt(count) + 1e-4


@pytest.mark.thorough
def test_all_clients_add_the_noise_that_the_neediest_of_them_needs():
    changes = {"privacy.noise_multiplier": None, "privacy.epsilon": 4.0}
    plan = prepare(secagg().experiment.replace(**changes)).plan
    sizes = [client.sampling.num_examples for client in plan.clients]
    assert len(set(sizes)) > 1
    assert len({client.noise_multiplier for client in plan.clients}) == 1
    spent = [plan.spent(client, 12) for client in range(4)]
    assert max(spent) == spent[int(np.argmin(sizes))]
    assert 0.98 * 4 < max(spent) <= 4


@pytest.mark.parametrize("name", registry.available("methods"))
def test_a_method_is_linear_if_its_uploads_of_equal_sums_have_equal_sums(name):
    """Shares of noise add up in the sum of the clients' leaves; a linear upload keeps that sum."""
    if registry.lookup("methods", name)().is_baseline:
        return
    run = prepared(method=name)
    method, active = run.method, run.server.active(run.state.adapters, 0)
    random = np.random.default_rng(0)
    draws = [
        jax.tree.map(lambda leaf: 0.3 * random.normal(size=leaf.shape).astype("float32"), active)
        for _ in range(3)
    ]
    sums = []
    for shares in ((1.0, 0.0), (0.5, 0.5)):
        ends = [
            jax.tree.map(
                lambda start, common, own, s=share, w=way: start + s * common + w * own,
                active,
                draws[0],
                draws[1],
            )
            for share, way in zip(shares, (1, -1), strict=True)
        ]
        uploads = [method.upload(active, end) for end in ends]
        sums.append(jax.tree.map(lambda a, b: a + b, *uploads))
    off = max(float(abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, sums), strict=True))
    assert (off < 1e-5) is method.linear


@pytest.mark.thorough
def test_norms_of_single_uploads_are_marked_as_not_private(tmp_path):
    experiment = secagg().experiment.replace(rounds=1, evaluate_every=1)
    run = ffa.simulate(experiment, out=tmp_path / "run")
    assert "client_update_norms" in run.privacy["not_private_fields"]
    assert run.privacy["unit"] == "example"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"local_steps": 2}, "local_steps = 1"),
        ({"optimizer.name": "adam"}, "plain sgd"),
        ({"optimizer.options": {"momentum": 0.9}}, "plain sgd"),
        ({"optimizer.schedule": "linear 0.1"}, "plain sgd"),
        ({"weights": "size"}, "weights = 'uniform'"),
        ({"cohort_sampling": "poisson"}, "'fixed'"),
        ({"model.head": "personal"}, "trained or frozen"),
        ({"sites.available": "0.9"}, "all sites present"),
        ({"method.name": "fedsa_lora"}, "keeps leaves at the clients"),
        ({"method.name": "ravan"}, "not linear"),
        ({"method.name": "fedrot_lora"}, "not linear"),
        ({"method.name": "hetlora"}, "reads each client's upload"),
        ({"privacy.honest_share": 0.0}, "honest_share <= 1"),
    ],
)
def test_what_breaks_the_guarantee_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        prepare(secagg().experiment.replace(**changes))


@pytest.mark.parametrize("clients", [1, 512, 1024, 5000, 2**20])
@pytest.mark.parametrize("capacity", [2, 66, 5000])
def test_sums_of_all_clients_leave_half_of_a_word_to_the_noise(clients, capacity):
    grid = grid_of(0.7, capacity, clients)
    largest = capacity * 0.7 / grid  # grid steps of a client all of whose examples pull one way
    assert clients * largest <= 2**30
    assert largest <= 2**21
    finer = capacity * 0.7 / (grid / 2)
    assert clients * finer > 2**30 or finer > 2**21
