"""Members of an ensemble: each is its own run, one bill bounds them all, the mean of their logits answers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ffalora_jax as ffa
from ffalora_jax import audit, cli, held_out
from ffalora_jax.errors import InputError
from ffalora_jax.evaluate import make_predictor
from ffalora_jax.prepare import prepare
from ffalora_jax.run_facts import message_bytes
from tests.contracts import test_sensitivity
from tests.helpers import prepared, run_rounds
from tests.tiny_runs import same_bits, tiny

MEMBERS = 3


def with_members(members=MEMBERS, clip="joint", changes=None, **settings):
    base = prepared(**settings).experiment
    more = {"ensemble.members": members, "ensemble.clip": clip, "packing": False, **(changes or {})}
    return prepare(base.replace(**more))


def member_of(tree, index, axis=0):
    return jax.tree.map(lambda leaf: jnp.take(leaf, index, axis), tree)


def assert_close(one, other, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), one, other)


@pytest.mark.parametrize(
    "method",
    [
        "ffa_lora",
        pytest.param("fedsa_lora", marks=pytest.mark.slow),
        *(
            pytest.param(x, marks=pytest.mark.slow)
            for x in ("fedsvd", "flora", "rolora", "la_lora")
        ),
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("ravan", "vera", "hetlora", "fedask")),
    ],
)
@pytest.mark.thorough
def test_without_clipping_every_member_is_a_run_of_its_own(method):
    """The first that of the same seed without others; the rest from what they began with."""
    run = with_members(method=method, mechanism="none")
    single = prepare(prepared(method=method, mechanism="none").experiment.replace(packing=False))
    state, _ = run_rounds(run, 2)
    for index in range(MEMBERS):
        frozen = single.frozen._replace(adapters=member_of(run.frozen.adapters, index))
        begin = single.state.replace(
            adapters=member_of(run.state.adapters, index),
            personal=member_of(run.state.personal, index, 1),
        )
        if index == 0:
            assert_close(begin.adapters, single.state.adapters, 0)
            assert_close(frozen.adapters, single.frozen.adapters, 0)
        own, _ = run_rounds(single._replace(frozen=frozen), 2, begin)
        # What is drawn anew in every round comes from each member's own key.
        if method != "flora" or index == 0:
            assert_close(member_of(state.adapters, index), own.adapters, 2e-6)
            assert_close(member_of(state.personal, index, 1), own.personal, 2e-6)
    drawn = jax.tree.leaves((run.frozen.adapters, run.state.adapters))
    assert any(np.any(leaf[0] != leaf[1]) for leaf in drawn)


@pytest.mark.thorough
def test_the_model_answers_with_the_mean_of_its_members_logits():
    run, single = with_members(), prepared()
    inputs = {key: leaf[:4] for key, leaf in run.data.inputs.items()}
    state, _ = run_rounds(run, 1)
    every = {
        layer: {**run.frozen.adapters.get(layer, {}), **state.adapters.get(layer, {})}
        for layer in {*run.frozen.adapters, *state.adapters}
    }
    each = [
        single.model.apply(single.model.backbone, member_of(every, index), **inputs)
        for index in range(MEMBERS)
    ]
    np.testing.assert_allclose(
        run.model.apply(run.model.backbone, every, **inputs), np.mean(each, axis=0), atol=1e-6
    )


@pytest.mark.parametrize("clip", ["joint", "separate"])
def test_an_example_more_moves_all_members_together_by_at_most_the_clip_norm(clip, monkeypatch):
    def ensembled(**settings):
        return with_members(clip=clip, **settings)

    monkeypatch.setattr(test_sensitivity, "prepared", ensembled)
    run, after = test_sensitivity.one_step.__wrapped__("ffa_lora", "dp_sgd", 0, 0, "trained")
    bound = test_sensitivity.CLIP * 0.4 / run.experiment.batch_size
    moved, _ = after(0, np.float32(3), np.zeros(run.plan.capacity, np.int32), 1)
    norms = np.sqrt(
        sum(np.sum(np.square(x), axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(moved))
    )
    if clip == "separate":
        assert (norms <= bound / np.sqrt(MEMBERS) * (1 + 1e-3)).all()
    assert np.sqrt(np.sum(norms**2)) <= bound * (1 + 1e-3)
    if clip == "joint":
        test_sensitivity.holds_for(after, bound, run.plan.capacity)


def test_the_bill_is_that_of_one_run_and_the_messages_are_those_of_all():
    run, single = with_members(), prepared()
    assert run.plan.spent(0, 12) == single.plan.spent(0, 12)
    assert message_bytes(run) == tuple(MEMBERS * count for count in message_bytes(single))


@pytest.mark.thorough
def test_a_run_tells_the_spread_goes_on_after_a_stop_and_gives_each_member_away(tmp_path, capsys):
    changes = {"ensemble.members": 2, "rounds": 2, "evaluate_every": 1}
    run = ffa.simulate(tiny(**changes), out=tmp_path / "whole")
    found = run.metrics[-1]["members"]
    assert len(found["test_accuracy"]) == len(found["validation_accuracy"]) == 2
    assert found["its_test_accuracy"] == found["test_accuracy"][found["best"]]
    assert found["spread"] == pytest.approx(np.std(found["test_accuracy"], ddof=1))
    assert "members" in json.loads((run.path / "privacy.json").read_text())["not_private_fields"]
    assert "members" not in run.metrics[0]
    ffa.simulate(tiny(**{**changes, "rounds": 1}), out=tmp_path / "cut")
    assert same_bits(run, ffa.resume(tmp_path / "cut", rounds=1)) or run.epsilon is not None
    page = (run.path / "report.html").read_text()
    assert "Members of the ensemble, each alone" in page
    assert cli.main(["evaluate", str(run.path)]) == 0
    assert cli.main(["export", str(run.path), str(tmp_path / "none")]) == 2
    assert "--member 0 to 1" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert cli.main(["export", str(run.path), str(tmp_path / "one"), "--member", "1"]) == 0
    card = (tmp_path / "one" / "README.md").read_text()
    assert f"| test accuracy, all clients | {found['test_accuracy'][1]:.4f} |" in card
    assert "| member | 1 (from 0) of 2 |" in card


@pytest.mark.thorough
def test_with_a_public_site_members_are_chosen_by_it_and_nobody_trains_on_it():
    base, plain = with_members(2), prepared()
    data = base.dataset
    clients = np.arange(len(data)) % 5
    names = ("a", "b", "open", "c", "d")
    data = dataclasses.replace(data, clients=clients, client_names=names)
    changes = {"partition.name": "natural", "partition.public_site": "open"}
    run = prepare(base.experiment.replace(**changes), data)
    assert run.owners.names == ("a", "b", "c", "d")
    np.testing.assert_array_equal(run.owners.public, np.flatnonzero(clients == 2))
    rest = dataclasses.replace(
        data.take(np.flatnonzero(clients != 2)), client_names=run.owners.names
    )
    rest.clients[rest.clients > 2] -= 1
    others = prepare(plain.experiment.replace(**{"partition.name": "natural"}), rest)
    owned = [np.sort(np.concatenate(rows)) for rows in zip(*run.owners[1:4], strict=True)]
    for mine, theirs in zip(owned, zip(*others.owners[1:4], strict=True), strict=True):
        np.testing.assert_array_equal(
            np.flatnonzero(clients != 2)[np.sort(np.concatenate(theirs))], mine
        )
    state, _ = run_rounds(run, 1)
    predict = make_predictor(run.model, run.task, run.mesh)
    (found,) = held_out.members(run, predict, state).values()
    assert found["chosen_on"] == "public"
    for index, accuracy in enumerate(found["public_accuracy"]):
        every = {
            layer: {**run.frozen.adapters.get(layer, {}), **state.adapters.get(layer, {})}
            for layer in {*run.frozen.adapters, *state.adapters}
        }
        inputs = {
            key: jnp.asarray(leaf[run.owners.public]) for key, leaf in run.encoded.inputs.items()
        }
        model = prepared().model
        logits = model.apply(model.backbone, member_of(every, index), **inputs)
        right = np.argmax(logits, -1) == data.labels[run.owners.public]
        assert accuracy == pytest.approx(np.mean(right))


def test_where_no_member_is_scored_before_the_test_none_is_chosen():
    run = with_members(2, changes={"partition.validation_share": 0.0})
    predict = make_predictor(run.model, run.task, run.mesh)
    (found,) = held_out.members(run, predict, run.state).values()
    assert found["validation_accuracy"] == [None, None]
    assert found["best"] is found["its_test_accuracy"] is None
    assert len(found["test_accuracy"]) == 2


def test_where_leaves_stay_at_clients_without_noise_no_choice_is_free():
    base = with_members(2, mechanism="dp_fedavg", head="personal")
    data = dataclasses.replace(
        base.dataset, clients=np.arange(len(base.dataset)) % 5, client_names=tuple("abcde")
    )
    changes = {"partition.name": "natural", "partition.public_site": "e"}
    run = prepare(base.experiment.replace(**changes), data)
    found = held_out.members(run, make_predictor(run.model, run.task, run.mesh), run.state)
    assert found["members"]["chosen_on"] == "validation"


@pytest.mark.parametrize(
    ("name", "public", "words"),
    [
        ("natural", "closed", "one of two or more sites, got 'closed'. The data has: a, b"),
        ("iid", "a", "partition.name = 'natural' with partition.public_site"),
    ],
)
def test_a_public_site_that_is_not_there_is_refused(name, public, words):
    rows = np.arange(40)
    data = dataclasses.replace(
        prepared().dataset.take(rows), clients=rows % 2, client_names=("a", "b")
    )
    with pytest.raises(InputError, match=words):
        prepare(
            prepared().experiment.replace(
                **{"partition.name": name, "partition.public_site": public}
            ),
            data,
        )


@pytest.mark.parametrize(
    ("settings", "changes", "words"),
    [
        ({"method": "bitfit"}, {}, "draws nothing"),
        ({"init": "pissa"}, {}, "draws nothing"),
        ({"method": "fed_sb"}, {}, "draws nothing"),
        ({"method": "local_only"}, {}, "sends nothing"),
        ({}, {"monitor.on": True}, "monitor.on"),
        ({"method": "hetlora"}, {"sites.rank": "1, 2, 2, 2"}, "sites.rank"),
        ({"mechanism": "dp_fedavg"}, {"ensemble.clip": "separate"}, "separate"),
        ({}, {"ensemble.members": 0}, "ensemble.members"),
    ],
)
def test_what_members_cannot_have_is_refused(settings, changes, words):
    with pytest.raises(InputError, match=words):
        with_members(changes=changes, **settings)


def test_an_ensemble_is_not_audited_as_if_it_were_one_model():
    with pytest.raises(InputError, match="members"):
        audit.audit(with_members().experiment)
