"""Unequal sites: what the settings mean, who takes part, what a round takes, and what each site pays."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ffalora_jax as ffa
from ffalora_jax import network, presence
from ffalora_jax.cohort import Cohort
from ffalora_jax.data import as_dataset
from ffalora_jax.errors import InputError
from ffalora_jax.prepare import prepare
from ffalora_jax.run_facts import message_bytes
from tests.helpers import compiled, keys, participants, prepared, run_rounds

NAMES = ("client_0", "client_1", "client_2", "client_3")


def with_sites(base=None, **sites):
    experiment = (base or prepared()).experiment
    return prepare(experiment.replace(**{f"sites.{name}": value for name, value in sites.items()}))


def sites_from(**sites):
    experiment = prepared().experiment.replace(**{f"sites.{k}": v for k, v in sites.items()})
    found = network.sites_of(experiment, NAMES)
    assert found is not None
    return found


def rounds_of(run, count):
    """The clients that took part, round by round."""
    infos = run_rounds(run, count)[1]
    return [clients for info in infos for clients in participants(info)][:count]


def after(run, clients):
    cohort = Cohort(jnp.asarray(clients), jnp.ones(len(clients), bool))
    step = compiled(run, "round_step")
    return step(keys(run), run.state, run.frozen, run.data, run.numbers, None, cohort)


def test_values_are_one_for_all_one_each_or_drawn_from_the_public_seed():
    found = sites_from(up="5", down="1, 2, 3, 4", speed="loguniform 2 50", loss="choice 0 0.5")
    np.testing.assert_array_equal(found.up, [5] * 4)
    np.testing.assert_array_equal(found.down, [1, 2, 3, 4])
    assert ((found.speed >= 2) & (found.speed <= 50)).all()
    assert len(set(found.speed)) == 4
    assert set(found.loss) <= {0, 0.5}
    np.testing.assert_array_equal(found.speed, sites_from(speed="loguniform 2 50").speed)
    assert network.sites_of(prepared().experiment, NAMES) is None


@pytest.mark.parametrize("preset", ["three-sites", "old-machines", "phones"])
def test_a_preset_fills_in_what_is_left_open(preset):
    found = sites_from(preset=preset, up="7")
    np.testing.assert_array_equal(found.up, [7] * 4)
    assert len(set(found.speed)) > 1


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("up", "0", "sites.up > 0"),
        ("speed", "-3", "sites.speed > 0"),
        ("down", "1, 2", "Expected one sites.down or 4"),
        ("up", "fast", "Expected sites.up to be a number"),
        ("up", "uniform 5 1", "Expected sites.up to be a number"),
        ("up", "1e999", "finite"),
        ("loss", "1", "sites.loss < 1"),
        ("latency", "-1", "milliseconds"),
        ("available", "1.5", "sites.available <= 1"),
        ("local_steps", "3", "from 1 to local_steps = 2"),
        ("local_steps", "1.5", "from 1 to local_steps = 2"),
        ("rank", "9", "from 1 to method.rank = 2"),
        ("trace", "nowhere.csv", "Cannot read sites.trace"),
    ],
)
def test_what_no_site_can_have_is_refused(setting, value, words):
    with pytest.raises(InputError, match=words):
        sites_from(**{setting: value})


def test_a_round_takes_steps_over_speed_and_bytes_over_the_link():
    found = sites_from(speed="10", up="1, 2, 4, 8", down="8", latency="50", loss="0.5")
    times = presence.times_of(found, flops_per_step=1e9, up=1e6, down=2e6)
    np.testing.assert_allclose(times.compute, [0.2] * 4)  # two steps of 1 GFLOP at 10 GFLOP/s
    np.testing.assert_allclose(times.upload, 0.05 + 8 / np.array([0.5, 1, 2, 4]))
    np.testing.assert_allclose(times.download, [0.05 + 4] * 4)


def test_sites_that_are_not_there_do_not_take_part_and_all_others_do():
    run = with_sites(available="1, 0, 1, 0")
    assert rounds_of(run, 3) == [[0, 2]] * 3


@pytest.mark.thorough
def test_presence_is_drawn_anew_each_round_and_sticks_where_asked():
    drawn = rounds_of(with_sites(available="0.5"), 12)
    assert len({tuple(round_) for round_ in drawn}) > 3
    assert 12 < sum(map(len, drawn)) < 36
    sticky = rounds_of(with_sites(available="0.5", sticky=4), 12)
    assert [len({tuple(x) for x in sticky[i : i + 4]}) for i in (0, 4, 8)] == [1, 1, 1]


def test_a_trace_goes_round_and_round(tmp_path):
    trace = tmp_path / "days.csv"
    trace.write_text(
        "client_3,client_1,other,client_0,client_2\n1,0,x,0,1\n0,1,x,1,0\n".replace("x", "0")
    )
    run = with_sites(trace=str(trace))
    assert rounds_of(run, 4) == [[2, 3], [0, 1], [2, 3], [0, 1]]
    trace.write_text("client_0,client_1\n1,1\n")
    with pytest.raises(InputError, match="no column for site 'client_2'"):
        with_sites(trace=str(trace))
    trace.write_text("client_0,client_1,client_2,client_3\n1,1,1,often\n")
    with pytest.raises(InputError, match="no probability"):
        with_sites(trace=str(trace))


def test_late_uploads_are_dropped_and_the_round_ends_at_the_deadline(tmp_path):
    experiment = prepared().experiment.replace(rounds=2, evaluate_every=2, noise_seed=5)
    slow = {"sites.up": "100, 0.001, 100, 100", "sites.deadline": 3.0}
    run = ffa.simulate(experiment.replace(**slow), out=tmp_path / "run")
    for line in run.metrics:
        assert line["participants"] == [0, 2, 3]
        assert line["simulated_seconds"] == 3.0
    easy = ffa.simulate(experiment.replace(**{"sites.up": slow["sites.up"]}), out=tmp_path / "slow")
    page = (tmp_path / "slow" / "report.html").read_text()
    assert "client_1 comes last in 2 of 2 rounds" in page
    assert "10 Gbit/s" in page
    ready = prepare(experiment)
    assert easy.metrics[0]["slowest"] == 1
    assert easy.metrics[0]["simulated_seconds"] == pytest.approx(
        message_bytes(ready)[0] * 8 / 1000, rel=0.05
    )


@pytest.mark.thorough
def test_who_is_waited_for_in_vain_came_last(tmp_path):
    experiment = prepared().experiment.replace(rounds=1, evaluate_every=1)
    experiment = experiment.replace(
        **{"sites.speed": "0.0001, 1, 1, 1000", "sites.up": "100", "sites.deadline": 1.0}
    )
    line = ffa.simulate(experiment, out=tmp_path / "run").metrics[0]
    assert 0 not in line["participants"]
    assert line["slowest"] == 0


def test_of_more_than_wanted_the_first_to_come_are_taken():
    base = prepared(clients=4, cohort_size=2)
    run = with_sites(base, over_select=2.0, up="1, 4, 2, 8")
    assert rounds_of(run, 2) == [[1, 3]] * 2


def test_a_deadline_that_nobody_keeps_is_refused():
    with pytest.raises(InputError, match="No site can finish"):
        with_sites(deadline=1e-9)
    with pytest.raises(InputError, match=r"needs sites\.deadline"):
        with_sites(adapt="deadline")


def test_adapted_to_the_deadline_each_site_takes_the_steps_that_it_can_finish():
    base = prepare(prepared().experiment.replace(local_steps=8))
    whole = with_sites(base, speed="1")
    sites = whole.sites
    assert sites is not None
    compute = presence.times_of(sites, whole.step_flops, *message_bytes(whole)).compute[0]
    run = with_sites(
        base,
        speed="1, 0.5, 0.25, 0.125",
        up="1e6",
        down="1e6",
        deadline=1.01 * compute,
        adapt="deadline",
    )
    assert run.sites is not None
    np.testing.assert_array_equal(run.sites.local_steps, [8, 4, 2, 1])
    assert rounds_of(run, 1)[0] == [0, 1, 2, 3]


@pytest.mark.parametrize("packing", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_site_with_fewer_steps_does_those_and_no_others(packing):
    base = prepare(prepared().experiment.replace(packing=packing))
    run = with_sites(base, local_steps="1, 2, 2, 2")
    one = prepare(base.experiment.replace(local_steps=1))
    for client, alike in ((0, one), (1, base)):
        (state, info), (expected, _) = after(run, [client]), after(alike, [client])
        jax.tree.map(np.testing.assert_array_equal, state.adapters, expected.adapters)
    assert int(info.facts.clip.num_real[0]) > 0


def test_each_site_pays_for_its_own_steps():
    run = with_sites(local_steps="1, 2, 2, 1")
    both, single = prepared().plan, prepare(prepared().experiment.replace(local_steps=1)).plan
    for client, plan in ((0, single), (1, both), (2, both), (3, single)):
        assert run.plan.spent(client, 12) == plan.spent(client, 12)
        assert run.plan.epsilons(client, 12) == plan.epsilons(client, 12)
    changes = {"privacy.noise_multiplier": None, "privacy.epsilon": 4.0}
    planned = prepare(run.experiment.replace(**changes)).plan
    assert all(0.98 * 4 < planned.spent(client, 12) <= 4 for client in range(4))


def test_a_round_without_anybody_changes_nothing_and_is_paid_for(tmp_path):
    trace = tmp_path / "night.csv"
    trace.write_text("client_0,client_1,client_2,client_3\n1,1,1,1\n0,0,0,0\n")
    experiment = prepared().experiment.replace(rounds=2, evaluate_every=1, noise_seed=5)
    remembers = {"server.optimizer": "sgd", "server.options": {"momentum": 0.9}}
    experiment = experiment.replace(**{"sites.trace": str(trace)}, **remembers)
    run = ffa.simulate(experiment, out=tmp_path / "run")
    first, second = run.metrics
    assert second["participants"] == []
    assert second["update_norm"] == 0
    assert second["accuracy"] == first["accuracy"]
    assert second["epsilon"] > first["epsilon"]
    assert json.loads((tmp_path / "run" / "privacy.json").read_text())["rounds"] == 2


def test_under_client_level_privacy_an_empty_round_is_noise_alone(tmp_path):
    trace = tmp_path / "night.csv"
    trace.write_text("client_0,client_1,client_2,client_3\n0,0,0,0\n")
    run = with_sites(prepared(mechanism="dp_fedavg", clip_norm=0.1), trace=str(trace))
    _, infos = run_rounds(run, 1)
    count = sum(leaf.size for leaf in jax.tree.leaves(run.state.adapters))
    assert float(infos[0].update_norm[0]) == pytest.approx(0.8 * 0.1 / 4 * np.sqrt(count), rel=0.2)


@pytest.mark.parametrize(
    "method",
    ["hetlora", *(pytest.param(x, marks=pytest.mark.slow) for x in ("flexlora", "flora"))],
)
@pytest.mark.thorough
def test_a_site_of_lower_rank_trains_and_sends_that_much(method):
    base = prepared(method=method)
    run = with_sites(base, rank="1, 2, 2, 2")
    up, down = message_bytes(run)
    heads = 4 * sum(leaf.size for leaf in run.state.adapters["head"].values())
    assert up[1] == message_bytes(base)[0]
    assert up[0] - heads == (up[1] - heads) / 2
    assert (down <= message_bytes(base)[1]).all()
    state, _ = after(run, [0])
    for layer in run.model.adapted:
        sent = (
            state.adapters[layer]["residual"]
            if method == "flora"
            else state.adapters[layer]["lora_a"] @ state.adapters[layer]["lora_b"]
        )
        values = np.linalg.svd(np.asarray(sent), compute_uv=False)
        assert values[0] > 1e-4
        assert values[1] < 1e-4 * values[0]
    full, _ = after(run, [1])
    alike, _ = after(base, [1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), full.adapters, alike.adapters
    )


def test_a_method_of_one_rank_refuses_several():
    with pytest.raises(InputError, match="hetlora, flexlora or flora"):
        with_sites(rank="1, 2, 2, 2")


@pytest.mark.parametrize("init", ["pissa", "minor", "olora"])
def test_sites_of_lower_rank_refuse_factors_that_are_taken_out_of_w(init):
    """A site that cuts them would begin without a part of W."""
    whole = prepared(method="hetlora").experiment.replace(**{"method.init": init})
    prepare(whole)
    with pytest.raises(InputError, match=f"method.init '{init}' takes both factors out of W"):
        prepare(whole.replace(**{"sites.rank": "1, 2, 2, 2"}))


def test_who_comes_too_late_depends_on_no_example():
    """One long text more or less may not decide about another client's part in a sum."""
    rows = [f"word {i} " * (1 + i % 3) for i in range(240)]
    long = [" ".join(["word"] * 12)] * 120 + rows[120:]
    data = {"label": [i % 2 for i in range(240)]}
    experiment = prepared().experiment.replace(
        **{"partition.name": "iid", "sites.speed": "0.001", "sites.up": "1"}
    )
    one, other = (
        prepare(experiment, as_dataset({**data, "text": texts})) for texts in (rows, long)
    )
    assert one.encoded.lengths.mean() < other.encoded.lengths.mean()
    assert one.step_flops == other.step_flops > 0


@pytest.mark.parametrize(
    "method",
    [
        "ffa_lora",
        *(pytest.param(m, marks=pytest.mark.thorough) for m in ("rolora", "fedex_lora", "flora")),
    ],
)
@pytest.mark.thorough
def test_who_was_away_is_sent_all_that_changed_since(tmp_path, method):
    """Told from who took part: each keeps a copy, and is sent what makes it the server's."""
    experiment = prepared(method=method).experiment
    experiment = experiment.replace(rounds=6, evaluate_every=6, cohort_size=2, noise_seed=3)
    run = ffa.simulate(experiment, out=tmp_path / "run")
    ready = prepare(experiment)
    server, adapted = ready.state.adapters, ready.model.adapted
    sizes = {
        name: 4 * sum(server[layer][name].size for layer in adapted if name in server[layer])
        for name in ("lora_a", "lora_b", "residual")
    }
    heads = 4 * sum(leaf.size for leaf in server["head"].values())
    trained = [ready.method.parts[int(ready.method.phase_at(r))] for r in range(6)]
    last, came = dict.fromkeys(range(4), 0), [0] * 6
    for index, line in enumerate(run.metrics):
        expected = 0
        for client in line["participants"]:
            since = range(last[client], max(index, 1))
            stale = set().union(*(trained[r] for r in since)) - set(ready.method.redrawn)
            if method == "flora":
                stale = set()  # A is drawn anew by all, B begins at zero
            expected += heads + sum(sizes[name] for name in stale)
            if method in ("fedex_lora", "flora"):
                factors = sum(came[last[client] : index]) * (sizes["lora_a"] + sizes["lora_b"])
                expected += min(sizes["residual"], factors)
            last[client] = index
        came[index] = len(line["participants"])
        assert line["bytes_down"] == expected


def test_client_level_privacy_refuses_the_first_of_several_to_come():
    with pytest.raises(InputError, match="over_select = 1"):
        with_sites(prepared(mechanism="dp_fedavg"), over_select=2.0)


@pytest.mark.thorough
def test_no_client_keeps_another_out_of_a_poisson_draw():
    """Else one client more would move a sum by two clip norms under client-level privacy."""
    base = prepared(mechanism="dp_fedavg", cohort_size=2, sampling="poisson", clip_norm=0.1)
    run = with_sites(base, speed="1, 2, 3, 4")
    assert rounds_of(run, 12) == rounds_of(base, 12)
    assert max(map(len, rounds_of(run, 12))) > 2
