"""A run that starts from another one's adapter: what both cost together, where the data are the same."""

import json

import pytest

import ffalora_jax as ffa
from ffalora_jax import export, lint, warm_start
from ffalora_jax.experiment_file import from_table
from ffalora_jax.loaded_run import load_run
from ffalora_jax.prepare import prepare
from tests.peft_files import write
from tests.test_export import SETTINGS, columns


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("warm")


@pytest.fixture(scope="module")
def experiment(place):
    base = write(place / "base", "roberta")
    return from_table(SETTINGS).replace(**{"model.name": str(base)})


@pytest.fixture(scope="module")
def first(place, experiment):
    run = ffa.simulate(experiment, columns(), out=place / "first")
    export.export_run(load_run(place / "first"), place / "adapter")
    return run


def privacy(folder):
    return json.loads((folder / "privacy.json").read_text())


@pytest.mark.thorough
def test_on_the_same_data_the_two_epsilons_and_deltas_are_added(place, experiment, first):
    again = experiment.replace(**{"method.start": str(place / "adapter")})
    second = ffa.simulate(again, columns(), out=place / "second")
    found = privacy(place / "second")["started_from"]
    assert found["same_data"]
    assert found["epsilon"] == first.epsilon
    assert found["epsilon_in_all"] == pytest.approx(first.epsilon + second.epsilon)
    assert found["delta_in_all"] == pytest.approx(2 * experiment.privacy.delta)
    export.export_run(load_run(place / "second"), place / "adapter-2")
    said = json.loads((place / "adapter-2" / "run.json").read_text())
    assert said["privacy"]["epsilon"] == found["epsilon_in_all"]
    rules = {one.rule: one.text for one in lint.before(prepare(again, columns()))}
    assert "privacy.json adds the two up" in rules["start-taken-as-public"]


def test_a_setting_that_an_older_adapter_does_not_know_of_makes_no_other_data(experiment):
    now = warm_start.trained_on(experiment)
    older = {**now, "partition": dict(now["partition"])}
    del older["partition"]["public_site"]
    assert warm_start._same(older, now)
    assert not warm_start._same({**older, "seed": experiment.seed + 1}, now)


@pytest.mark.thorough
def test_on_other_data_nothing_is_added_and_nothing_is_known_of_a_foreign_adapter(
    place, experiment, first
):
    other = experiment.replace(seed=7, **{"method.start": str(place / "adapter")})
    ffa.simulate(other, columns(), out=place / "other")
    found = privacy(place / "other")["started_from"]
    assert not found["same_data"]
    assert found["epsilon_in_all"] is None
    (place / "adapter" / "run.json").unlink()
    ffa.simulate(other, columns(), out=place / "foreign")
    assert privacy(place / "foreign")["started_from"] is None
    assert privacy(place / "first")["started_from"] is None


def test_what_an_adapter_says_of_its_data_holds_no_example_and_no_path(place, experiment, first):
    export.export_run(load_run(place / "first"), place / "adapter-3")
    text = (place / "adapter-3" / "run.json").read_text()
    assert str(place) not in text
    assert not any(word in text for word in columns()["text"][0].split() if len(word) > 5)
