"""The linter: each rule speaks where it should and is silent where it should not."""

import json

import numpy as np
import pytest

import ffalora_jax as ffa
from ffalora_jax import lint
from ffalora_jax.data import as_dataset
from ffalora_jax.prepare import prepare
from tests.command import here
from tests.helpers import prepared


def rules(run):
    return {finding.rule for finding in lint.before(run)}


def changed(base=None, **changes):
    return prepare((base or prepared()).experiment.replace(**changes))


CENTRAL = {"mechanism": "dp_fedavg"}


@pytest.mark.parametrize(
    ("rule", "base", "changes"),
    [
        ("delta-above-1/n", {}, {"privacy.delta": 0.05}),
        ("epsilon-too-large", {}, {"privacy.noise_multiplier": 0.3}),
        ("epsilon-of-one-round", {}, {"privacy.epsilon": 2.0}),
        ("size-weights", {}, {"weights": "size"}),
        ("stopping-by-looking", {}, {}),
        ("noise-seed-given", {}, {"noise_seed": 4}),
        ("personal-outside-the-noise", CENTRAL, {"model.head": "personal"}),
        ("few-clients", CENTRAL, {}),
        ("controls-outside-the-noise", CENTRAL, {"optimizer.control_variates": True}),
        ("pooled-data-has-no-sites", {"method": "centralized"}, {"sites.preset": "three-sites"}),
        ("site-always-late", {}, {"sites.speed": "1000, 1000, 1000, 0.01", "sites.deadline": 0.1}),
        ("deadline-of-like-sites", {}, {"sites.deadline": 100.0}),
        ("site-never-there", {}, {"sites.available": "1, 0, 1, 1"}),
        ("divided-by-those-asked", CENTRAL, {"sites.available": "0.5"}),
    ],
)
def test_a_rule_speaks_where_it_should(rule, base, changes):
    run = changed(prepared(**base), **changes)
    (found,) = [finding for finding in lint.before(run) if finding.rule == rule]
    assert found.reference
    assert len(found.text) > 40


def test_a_site_that_is_late_is_named_unless_it_is_given_less_to_do():
    slow = {"sites.speed": "1000, 1000, 1000, 1", "sites.up": "1000", "sites.down": "1000"}
    half = np.asarray(changed(**slow).settings.presence.seconds).max() / 2
    run = changed(**slow, **{"sites.deadline": half})
    (found,) = [f for f in lint.before(run) if f.rule == "site-always-late"]
    assert found.text.startswith(f"1 of 4 sites ({run.owners.names[3]}) can never")
    for less in (
        {"sites.deadline": 2.1 * half},
        {"sites.deadline": 1.1 * half, "sites.late_weight": 0.5},
        {"sites.deadline": 1.1 * half, "sites.adapt": "deadline"},
    ):
        assert "site-always-late" not in rules(changed(**slow, **less))
    less = changed(**{"sites.deadline": 100.0, "sites.local_steps": "1, 2, 2, 2"})
    assert "deadline-of-like-sites" not in rules(less)


def test_nothing_is_said_of_a_plain_private_run():
    run = changed(evaluate_every=12, **{"privacy.noise_multiplier": 1.5})
    assert rules(run) == set()


def test_without_privacy_only_the_data_is_looked_at():
    run = prepared(mechanism="none", weighted=True)
    assert rules(run) == set()


def test_doubles_across_the_parts_are_counted():
    rows = [f"text number {i} is {'good' if i % 2 else 'bad'}" for i in range(60)]
    data = as_dataset({"text": rows * 4, "label": [i % 2 for i in range(60)] * 4})
    run = prepare(prepared().experiment.replace(**{"partition.name": "iid"}), data)
    found = {finding.rule: finding.text for finding in lint.before(run)}
    assert {"validation-on-training-data", "test-on-training-data"} <= set(found)
    tokens = run.encoded.inputs["input_ids"]
    test = {tuple(tokens[row]) for mine in run.owners.test for row in mine}
    seen = {tuple(tokens[row]) for mine in run.owners.train for row in mine}
    assert f"{len(test & seen)} of {len(test)} different test" in found["test-on-training-data"]


def test_public_examples_that_are_private_too_are_counted():
    rows = [f"text number {i} is {'good' if i % 2 else 'bad'}" for i in range(60)]
    data = {"text": rows * 2, "label": [i % 2 for i in range(60)] * 2}
    data["site"] = ["a", "b", "c"] * 20 + ["open"] * 60
    experiment = prepared().experiment.replace(
        **{"partition.name": "natural", "partition.public_site": "open"}
    )
    run = prepare(experiment, as_dataset(data, client="site"))
    found = {finding.rule: finding.text for finding in lint.before(run)}
    tokens = run.encoded.inputs["input_ids"]
    private = {tuple(tokens[row]) for mine in run.owners.train for row in mine}
    both = private & {tuple(tokens[row]) for row in run.owners.public}
    assert both
    assert found["public-data-overlaps"].startswith(f"{len(both)} different examples")
    apart = as_dataset({**data, "text": rows + [f"{row} , a film" for row in rows]}, client="site")
    assert "public-data-overlaps" not in rules(prepare(experiment, apart))


@pytest.mark.parametrize(
    ("share", "rule"), [(1.0, "clip-always-binds"), (0.001, "clip-never-binds"), (0.6, None)]
)
def test_a_clip_norm_that_always_or_never_binds_is_told_after_a_few_rounds(share, rule):
    run = prepared()
    assert lint.after(run, [share] * 2) == []
    assert [finding.rule for finding in lint.after(run, [share] * 3)] == ([rule] if rule else [])
    assert lint.after(prepared(mechanism="none"), [share] * 3) == []


def test_warnings_come_before_the_run_and_stand_in_its_folder(tmp_path):
    said = []
    experiment = prepared().experiment.replace(rounds=3, weights="size", evaluate_every=3)
    experiment = experiment.replace(**{"privacy.clip_norm": 1e6, "privacy.noise_multiplier": 1.0})
    ffa.simulate(experiment, out=tmp_path / "run", observe=lambda event: said.append(event.stage))
    assert any(stage.startswith("warning: weights = 'size'") for stage in said)
    public, of_data = (
        json.loads((tmp_path / "run" / name).read_text())["warnings"]
        for name in ("privacy.json", "partition.json")
    )
    assert len(public) == 1  # what may be handed on tells nothing that looks at data without noise
    assert "averages by the sites" in public[0]
    assert len(of_data) == 1
    assert "reached privacy.clip_norm" in of_data[0]
    assert "reached privacy" not in (tmp_path / "run" / "run.log").read_text()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "averages by the sites" in page


def test_the_command_checks_files_and_runs_and_writes_nothing(tmp_path, capsys):
    experiment = prepared().experiment.replace(rounds=3, weights="size")
    ffa.simulate(experiment, out=tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    assert "warning size-weights: " in here("check", tmp_path / "run")
    found = here("check", tmp_path / "run" / "experiment.toml", "--json")
    assert "size-weights" in {one["rule"] for one in json.loads(found)}
    assert sorted(tmp_path.rglob("*")) == before
    here("check", tmp_path / "run", "--rounds", "3", code=2)
    assert "leave '--rounds' out" in capsys.readouterr().err
