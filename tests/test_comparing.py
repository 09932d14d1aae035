"""What a report says of several runs follows from their settings and figures."""

import itertools

import pytest

from ffalora_jax.config import Experiment
from ffalora_jax.loaded_run import Run
from ffalora_jax.report.comparing import comparable, comparison
from ffalora_jax.run_folder import RunFolder, experiment_text


@pytest.fixture
def run(tmp_path):
    """Makes folders that hold what the sentences are made of."""
    numbers = itertools.count()

    def made(method="ffa_lora", epsilon=6.0, accuracy=0.8, sent=100, unit="example", **changes):
        folder = RunFolder(tmp_path / str(next(numbers)))
        folder.path.mkdir()
        experiment = Experiment().replace(**{"method.name": method} | changes)
        folder.experiment_file.write_text(experiment_text(experiment))
        line = {"test_accuracy": accuracy, "majority_accuracy": 0.5, "seconds": 1.0}
        folder.write_metrics([line])
        facts = {"epsilon": epsilon, "delta": 1e-5, "unit": unit, "num_clients": 2, "clients": []}
        folder.write_json("privacy.json", facts)
        folder.write_json("communication.json", {"bytes_total": sent})
        folder.write_json("environment.json", {"data_source": "here"})
        return Run(folder)

    return made


def test_what_privacy_costs_and_what_is_sent_is_said_of_runs_that_differ_in_that_alone(run):
    said = comparison([run(epsilon=None, accuracy=0.85), run(), run("fedavg_lora", sent=200)])
    assert "Privacy cost 5.0 points of accuracy." in said
    assert "Under the same privacy FFA-LoRA sends 50% of what plain LoRA sends" in said
    assert "differ in" not in said


def test_other_settings_that_differ_are_named(run):
    other = {"optimizer.learning_rate": 3.0, "compression": "int8"}
    said = comparison([run(), run("fedavg_lora", **other)])
    assert "they differ in compression, optimizer.learning_rate" in said
    assert "differ in their data" in comparison([run(), run(seed=5)])
    assert not comparable([run(), run(batch_size=5)])
    assert comparable([run(), run(client_chunk="2", evaluate_every=3)])


def test_two_runs_of_one_kind_are_not_taken_for_one(run):
    said = comparison([run(epsilon=None), run(epsilon=6.0), run(epsilon=1.0, accuracy=0.6)])
    assert "Privacy cost" not in said


@pytest.mark.parametrize("other", [{"unit": "client"}, {"epsilon": 3.0}])
def test_epsilons_of_another_unit_are_another_privacy(run, other):
    assert "Under another privacy" in comparison([run(), run("fedavg_lora", **other)])
