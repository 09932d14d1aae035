"""Figures reach the trackers themselves: what their own readers give back."""

import json

import numpy as np
import pytest

import ffalora_jax as ffa
from ffalora_jax import registry
from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError
from ffalora_jax.loop import Event
from ffalora_jax.run_folder import RunFolder
from ffalora_jax.trackers import numbers_of
from tests.test_sweep import small

LINES = [
    {
        "round_index": n,
        "accuracy": None if n == 0 else 0.7,
        "loss": 0.5 / (n + 1),
        "epsilon": n + 1.0,
    }
    for n in range(3)
]
LAST = {"test_accuracy": 0.75, "test_metrics": {"f1": 0.6}, "participants": [0, 1], "late": True}


def folder_of(tmp_path):
    return RunFolder.create(tmp_path / "it's a run", Experiment(rounds=3)).path


def tell(path, *names, begin=0, end=3):
    """What a run's observer hears, from its first round to its last."""
    with ffa.tracking(*names) as observe:
        observe(Event("preparing"))
        observe(Event("rounds", begin, 3, path=path))
        for index in range(begin, end):
            line = LINES[index] | (LAST if index == 2 else {})
            observe(Event("rounds", index + 1, 3, line))


def test_numbers_alone_are_handed_on_and_nested_ones_by_their_path():
    found = numbers_of(LINES[2] | LAST)
    expected = {"accuracy": 0.7, "loss": 0.5 / 3, "epsilon": 3.0, "test_accuracy": 0.75}
    assert found == expected | {"test_metrics/f1": 0.6}
    assert numbers_of(LINES[0]) == {"loss": 0.5, "epsilon": 1.0}


def test_tensorboard_reads_the_figures_back(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = folder_of(tmp_path)
    tell(path, "tensorboard", end=1)
    tell(path, "tensorboard", begin=1)  # after a stop
    events = EventAccumulator(str(path / "tensorboard")).Reload()
    name = "loss"
    if name in events.Tags()["tensors"]:
        from tensorboard.util.tensor_util import make_ndarray

        found = [(e.step, float(make_ndarray(e.tensor_proto))) for e in events.Tensors(name)]
    else:
        found = [(e.step, e.value) for e in events.Scalars(name)]
    assert [step for step, _ in found] == [1, 2, 3]
    np.testing.assert_allclose([value for _, value in found], [0.5, 0.25, 0.5 / 3], rtol=1e-6)


def test_mlflow_reads_the_figures_back_and_knows_a_run_that_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    path = folder_of(tmp_path)
    tell(path, "mlflow", end=1)
    tell(path, "mlflow", begin=1)
    client = MlflowClient((tmp_path / "mlruns").as_uri())
    number = client.get_experiment_by_name("ffalora_jax").experiment_id
    (run,) = client.search_runs([number])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 0.5), (2, 0.25), (3, 0.5 / 3)]
    assert run.data.params["method.name"] == "ffa_lora"
    assert run.data.metrics["test_metrics/f1"] == 0.6


def records(data):
    """The records of a .wandb file: LevelDB's log format behind a header of seven bytes."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def test_wandb_stays_offline_and_keeps_the_figures(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    path = folder_of(tmp_path)
    tell(path, "wandb")
    (log,) = path.glob("wandb/offline-run-*/*.wandb")
    from wandb.proto import wandb_internal_pb2

    seen = []
    for data in records(log.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
            seen.append({key: json.loads(value) for key, value in items.items()})
    assert [line["loss"] for line in seen] == [0.5, 0.25, 0.5 / 3]
    assert wandb.run is None


@pytest.mark.parametrize("name", registry.available("trackers"))
def test_a_tracker_that_is_not_installed_is_said_before_anything_runs(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda found: None if found == name else 1)
    with pytest.raises(InputError, match=rf"ffalora_jax\[{name}\]"), ffa.tracking(name):
        pass


def test_an_unknown_tracker_is_refused_with_those_there_are():
    with pytest.raises(InputError, match="tensorboard"), ffa.tracking("tensorbord"):
        pass


@pytest.mark.thorough
def test_on_round_sees_every_state_and_a_frame_has_every_round(tmp_path):
    pytest.importorskip("pandas")
    seen = []

    def on_round(state, line):
        seen.append((int(state.round_index), line["round_index"], line["loss"]))

    run = ffa.simulate(small(noise_seed=3), out=tmp_path / "run", on_round=on_round)
    assert [(done, index) for done, index, _ in seen] == [(1, 0), (2, 1), (3, 2), (4, 3)]
    frame = run.frame()
    assert frame["loss"].tolist() == [loss for _, _, loss in seen]
    assert frame.index.tolist() == [0, 1, 2, 3]
    plain = ffa.simulate(small(noise_seed=3), out=tmp_path / "plain")
    assert [line["loss"] for line in plain.metrics] == [loss for _, _, loss in seen]
