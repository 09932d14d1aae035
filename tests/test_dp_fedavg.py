"""Client-level DP: what one client can move, how the noise is scaled, who is drawn, what it costs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import ffalora_jax as ffa
from ffalora_jax import accounting, registry, rng
from ffalora_jax.cohort import Cohort, cohort_capacity, draw_cohort_of
from ffalora_jax.data import as_dataset
from ffalora_jax.errors import InputError
from ffalora_jax.mechanisms._clients import bounded
from tests.helpers import compiled, go_together, keys, prepared, run_rounds

CLIP_NORM, NOISE = 0.1, 0.8


def central(**changes):
    return prepared(mechanism="dp_fedavg", clip_norm=CLIP_NORM, noise_multiplier=NOISE, **changes)


def stepped(run, clients, is_real):
    cohort = Cohort(jnp.asarray(clients), jnp.asarray(is_real))
    step = compiled(run, "round_step")
    return step(keys(run), run.state, run.frozen, run.data, run.numbers, None, cohort)[0]


def distance(one, other):
    moved = jax.tree.map(lambda a, b: np.asarray(a, float) - b, one.adapters, other.adapters)
    return np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(moved)))


# Without subnormal numbers, which XLA takes for zero.
numbers = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=False, width=32)


@settings(deadline=None)
@given(st.lists(numbers, min_size=5, max_size=5), st.floats(1e-3, 1e3))
def test_no_change_of_a_client_is_longer_than_the_clip_norm_nan_and_inf_included(values, clip_norm):
    moved = {"a": {"x": jnp.asarray(values[:2])}, "b": {"y": jnp.asarray(values[2:])}}
    found, norm = bounded(moved, clip_norm)
    length = np.sqrt(sum((np.asarray(x, float) ** 2).sum() for x in jax.tree.leaves(found)))
    assert length <= clip_norm * (1 + 1e-5)
    if np.isfinite(norm) and norm <= clip_norm:
        for a, b in zip(*map(jax.tree.leaves, (moved, found)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "method",
    [
        "fedavg_lora",
        *(
            pytest.param(x, marks=pytest.mark.slow)
            for x in ("ffa_lora", "rolora", "ravan", "fed_sb")
        ),
    ],
)
def test_a_client_more_or_less_moves_the_servers_mean_by_at_most_the_clip_norm(method):
    """Whatever else is the same, the noise included; divided by the expected number, a public constant."""
    run = central(method=method)
    everyone = stepped(run, range(4), [True] * 4)
    for left in range(4):
        fewer = stepped(run, range(4), np.arange(4) != left)
        moved = distance(everyone, fewer) * run.settings.cohort_size
        assert moved <= CLIP_NORM * (1 + 1e-4)
        assert moved > 0.5 * CLIP_NORM, "the bound is reached, so it is tested"


@pytest.mark.statistical
@pytest.mark.parametrize(("factor", "fits"), [(1.0, True), (2 / 3, False), (3 / 2, False)])
def test_the_servers_noise_has_the_promised_stddev_in_a_round_without_clients(factor, fits):
    """An empty cohort still adds noise; nothing else moves the server then."""
    run = central()
    after = stepped(run, range(4), [False] * 4)
    moved = jax.tree.map(jnp.subtract, after.adapters, run.state.adapters)
    samples = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(moved)])
    stddev = NOISE * CLIP_NORM / run.settings.cohort_size
    p = scipy.stats.kstest(samples, scipy.stats.norm(scale=factor * stddev).cdf).pvalue
    assert bool(p > 0.01) is fits


@pytest.mark.parametrize(
    "method",
    [
        "fedsvd",
        "fedask",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in registry.available("methods")
            if go_together(name, "dp_fedavg") and name not in ("fedsvd", "fedask", "ffa_lora")
        ),
    ],
)
def test_a_round_without_clients_moves_every_leaf_that_is_sent(method):
    """Unchanged, it would say that nobody came: an event of its own probability, at any noise."""
    run = central(method=method)
    after = stepped(run, range(4), [False] * 4)
    active = run.server.active(run.state.adapters, 0)
    sent = run.method.upload(active, active)
    assert jax.tree.leaves(sent)
    for layer, found in sent.items():
        for name in found:
            moved = after.adapters[layer][name] - run.state.adapters[layer][name]
            assert np.abs(moved).max() > 0, (layer, name)


@pytest.mark.parametrize("changes", [{}, {"model.head": "personal"}], ids=["one model", "personal"])
@pytest.mark.thorough
def test_the_adapter_that_is_handed_on_names_no_client_and_holds_nothing_without_noise(
    tmp_path, changes
):
    names = [f"hospital_{letter}" for letter in "abcd"]
    rows = [f"text number {i} is {'good' if i % 2 else 'bad'}" for i in range(160)]
    data = {"text": rows, "label": [i % 2 for i in range(160)], "site": names * 40}
    experiment = central().experiment.replace(rounds=1, evaluate_every=1, noise_seed=None)
    experiment = experiment.replace(**{"partition.name": "natural", **changes})
    run = ffa.simulate(experiment, as_dataset(data, client="site"), out=tmp_path / "run")
    handed_on = b"".join(file.read_bytes() for file in (run.path / "adapter").rglob("*"))
    assert b"hospital" not in handed_on
    own = run.path / "personal"
    assert own.exists() is bool(changes)
    if changes:
        assert b"head_kernel" not in handed_on
        assert b"classifier" not in handed_on
        assert json.loads((own / "clients.json").read_text()) == names
        assert {oct(file.stat().st_mode & 0o777) for file in own.iterdir()} == {"0o600"}
        assert run.predict(["a text"], client="hospital_b")
    else:
        assert run.predict(["a text"])


def test_the_noise_differs_from_round_to_round():
    run = central()
    one, _ = run_rounds(run, 1)
    two, _ = run_rounds(run, 1, run.state.replace(round_index=jnp.int32(1)))
    assert distance(one, two) > 0


@pytest.mark.statistical
def test_clients_are_drawn_in_secret_each_with_the_probability_that_is_paid_for():
    run = central(cohort_size=3, sampling="poisson")
    draw = jax.jit(lambda index: draw_cohort_of(run.settings, keys(run), index))
    counts = np.zeros(4)
    for index in range(600):
        cohort = draw(jnp.int32(index))
        counts[np.asarray(cohort.clients)[np.asarray(cohort.is_real)]] += 1
    assert (scipy.stats.binom.cdf(counts, 600, 3 / 4) > 0.001).all()
    assert (scipy.stats.binom.sf(counts - 1, 600, 3 / 4) > 0.001).all()
    paid = run.plan.clients[0].priced
    assert paid.probability == 3 / 4
    other = keys(run)._replace(secret=rng.secret_root(5))
    ours, theirs = (
        [draw_cohort_of(run.settings, k, index).is_real.tolist() for index in range(20)]
        for k in (keys(run), other)
    )
    assert ours != theirs, "who takes part hangs on the secret seed, not on the public one"


def test_the_bill_is_that_of_rounds_over_clients_with_the_cap_where_it_can_bind():
    plan = central().plan
    expected = accounting.epsilon_of(accounting.Sampling(4, 1.0, None), NOISE, 3, 1e-3)
    assert plan.spent(0, 3) == plan.epsilons(0, 3)[-1] == expected
    assert (plan.unit, plan.clients[0].local_steps) == ("client", 1)
    many = prepared(
        mechanism="dp_fedavg", clients=48, cohort_size=4, sampling="poisson", num_examples=1000
    ).plan
    cap = cohort_capacity(48, 4, "poisson")
    assert many.clients[0].priced == accounting.Sampling(48, 4 / 48, cap)
    assert many.spent(0, 2) < plan.spent(0, 2), "sampling clients amplifies"


def test_noise_is_calibrated_to_a_budget_over_all_rounds():
    experiment = ffa.Experiment(rounds=6).replace(
        **{"privacy.mechanism": "dp_fedavg", "privacy.epsilon": 3.0, "data.name": "synthetic"},
        **{"model.name": "tiny", "partition.name": "iid", "batch_size": 8},
    )
    from ffalora_jax.prepare import prepare

    plan = prepare(experiment).plan
    assert 2.97 < plan.spent(0, 6) <= 3.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weighted": True}, "weights = 'uniform' under client-level privacy"),
        ({"cohort_size": 2}, "cohort_sampling = 'poisson' under client-level privacy with 2 of 4"),
        ({"method": "flora"}, "flora' reads each client's upload"),
        ({"method": "local_only"}, "local_only' is a yardstick"),
    ],
)
def test_what_would_break_the_guarantee_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        central(**changes)


def test_a_run_says_that_whole_clients_are_protected_and_which_files_name_them(tmp_path):
    experiment = ffa.Experiment(rounds=2, local_steps=1, batch_size=8, noise_seed=1).replace(
        **{"privacy.mechanism": "dp_fedavg", "privacy.noise_multiplier": 1.0},
        **{"data.name": "synthetic", "model.name": "tiny"},
    )
    run = ffa.simulate(experiment, out=tmp_path / "run")
    facts = json.loads((run.path / "privacy.json").read_text())
    assert facts["unit"] == "client"
    assert facts["neighbours"].startswith("add or remove one client")
    assert facts["clients"][0]["steps"] == 2
    assert "participants" in facts["not_private_fields"]
    assert any("names or counts them" in line for line in facts["not_protected"])
    page = (run.path / "report.html").read_text()
    assert "one client, with all its examples" in page
    assert "every whole site" in page
    assert "the server, which sees it and has to be trusted" in page
    assert "never taken part" in page
    assert "each single text" not in page
    assert "Share of sites whose influence was cut" in page
    assert ffa.load_run(run.path).predict(["a text"])


@pytest.mark.parametrize("kept", [{"method": "fedsa_lora"}, {"head": "personal"}])
def test_personal_leaves_where_one_client_can_keep_another_out_are_refused(kept):
    facts = {"mechanism": "dp_fedavg", "sampling": "poisson", "clients": 12}
    assert prepared(**facts, **kept, cohort_size=12).plan.unit == "client"
    with pytest.raises(InputError, match="stay at the clients under client-level privacy"):
        prepared(**facts, **kept, cohort_size=2)
