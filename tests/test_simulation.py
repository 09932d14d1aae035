"""A run as a whole: seeds, budgets, folders, bytes, prediction."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import ffalora_jax as ffa
from ffalora_jax import cli, simulation
from ffalora_jax.adapter_file import ADAPTER
from ffalora_jax.checkpoint import data_hash
from ffalora_jax.config import Experiment
from ffalora_jax.console import show_run
from ffalora_jax.errors import InputError
from ffalora_jax.prepare import prepare
from ffalora_jax.run_facts import message_bytes
from tests.tiny_runs import TINY, same_bits, tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    return ffa.simulate(tiny(), out=tmp_path_factory.mktemp("runs") / "whole")


def test_a_model_of_ones_own_trains_and_predicts(tmp_path):
    from flax import nnx

    from ffalora_jax import registry
    from ffalora_jax.text import hash_tokenizer

    preset = registry.lookup("models", "tiny")()
    model = registry.lookup("models", "bert")().build(preset.config, 2, nnx.Rngs(3))
    model.tokenizer = hash_tokenizer(2048)
    run = ffa.simulate(tiny(rounds=1), model=model, out=tmp_path / "run")
    assert run.predict(["good film"]) == ffa.load_run(tmp_path / "run", model).predict(
        ["good film"]
    )
    with pytest.raises(InputError, match="sha256"):
        ffa.load_run(tmp_path / "run").predict(["good film"])


def test_a_budget_that_not_even_one_round_keeps_to_is_refused(tmp_path):
    with pytest.raises(InputError, match="One round alone"):
        ffa.simulate(tiny(**{"privacy.epsilon": 0.01}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_same_seeds_give_the_same_adapter_and_other_noise_another(whole, tmp_path):
    assert same_bits(whole, ffa.simulate(tiny(), out=tmp_path / "same"))
    assert not same_bits(whole, ffa.simulate(tiny(noise_seed=12), out=tmp_path / "noise"))


@pytest.mark.thorough
def test_without_a_noise_seed_every_run_is_different_and_releasable(tmp_path):
    runs = [ffa.simulate(tiny(noise_seed=None, rounds=1), out=tmp_path / name) for name in "ab"]
    assert not same_bits(*runs)
    assert all(run.privacy["releasable"] for run in runs)


def test_the_noise_seed_stays_in_the_owners_checkpoints(whole):
    secret = str(TINY["noise_seed"])
    assert not whole.privacy["releasable"]
    assert "reproducible, not releasable" in (whole.path / "report.html").read_text()
    assert "noise_seed" not in (whole.path / "experiment.toml").read_text()
    assert (whole.path / "checkpoints").stat().st_mode & 0o077 == 0
    inside = [p for p in (whole.path / "checkpoints").rglob("*") if p.is_file()]
    assert inside
    assert all(path.stat().st_mode & 0o077 == 0 for path in inside)
    environment = json.loads((whole.path / "environment.json").read_text())
    assert secret not in {str(value) for value in environment.values()}


def test_bytes_are_those_of_the_leaves_that_are_sent(whole):
    folder = whole.path / "adapter"
    tensors = load_file(folder / ADAPTER) | load_file(folder / "head.safetensors")
    sent = sum(x.nbytes for name, x in tensors.items() if "lora_A" not in name)
    assert whole.communication["bytes_up_per_participation"] == sent
    assert whole.communication["bytes_total"] == 2 * sent * 4 * 6
    assert sum(line["bytes_up"] for line in whole.metrics) == sent * 4 * 6


def test_ffa_sends_half_of_the_factors_that_plain_lora_sends():
    sizes = {}
    for method in ("ffa_lora", "fedavg_lora", "local_only", "freeze_b", "centralized"):
        run = prepare(tiny(rounds=1, **{"method.name": method, "model.head": "frozen"}))
        sizes[method] = message_bytes(run)[0]
    assert sizes["ffa_lora"] * 2 == sizes["fedavg_lora"]
    assert sizes["freeze_b"] == sizes["ffa_lora"] > 0
    assert sizes["local_only"] == sizes["centralized"] == 0


@pytest.mark.thorough
def test_centralized_pools_the_data_and_local_only_shares_nothing(tmp_path):
    pooled = ffa.simulate(tiny(rounds=1, **{"method.name": "centralized"}), out=tmp_path / "pooled")
    assert [c["name"] for c in pooled.privacy["clients"]] == ["everyone"]
    assert pooled.privacy["clients"][0]["sampling_probability"] == pytest.approx(32 / 168)
    assert len(pooled.metrics[-1]["test_accuracy_per_client"]) == 4
    alone = ffa.simulate(tiny(rounds=1, **{"method.name": "local_only"}), out=tmp_path / "alone")
    with pytest.raises(InputError, match="site_0"):
        alone.predict(["good film"])
    assert len(alone.predict(["good film"], client="site_2")) == 1


def test_predictions_are_those_that_were_evaluated(whole, tmp_path):
    experiment = whole.experiment
    run = prepare(experiment)
    rows = np.concatenate(run.owners.test)
    texts = [run.dataset.inputs["text"][row] for row in rows]
    found = [run.dataset.class_names.index(p.label) for p in whole.predict(texts)]
    accuracy = np.mean(np.array(found) == run.dataset.labels[rows])
    assert accuracy == pytest.approx(whole.accuracy)
    assert sum(whole.predict(texts[:1])[0].probabilities.values()) == pytest.approx(1)


@pytest.mark.thorough
def test_python_data_of_every_kind_gives_the_same_run(tmp_path):
    import datasets
    import pandas as pd

    draw = np.random.default_rng(0)
    columns = {
        "text": [f"{'good' if i % 2 else 'bad'} film {draw.integers(9)}" for i in range(120)],
        "label": ["up" if i % 2 else "down" for i in range(120)],
        "site": [f"s{i % 3}" for i in range(120)],
    }
    experiment = tiny(rounds=1, **{"data.client": "site"})
    kinds = {
        "lists": columns,
        "numpy": {name: np.array(values) for name, values in columns.items()},
        "pandas": pd.DataFrame(columns),
        "datasets": datasets.Dataset.from_dict(columns),
    }
    hashes = {data_hash(prepare(experiment, data).data) for data in kinds.values()}
    assert len(hashes) == 1
    run = ffa.simulate(experiment, kinds["datasets"], out=tmp_path / "run")
    assert set(run.predict(["good film"])[0].probabilities) == {"up", "down"}


@pytest.mark.parametrize(
    ("mechanism", "points"), [("dp_sgd", 0.12), pytest.param("none", 0.2, marks=pytest.mark.slow)]
)
def test_tiny_learns_the_synthetic_rule(tmp_path, mechanism, points):
    settings = {"data.name": "synthetic", "model.name": "tiny", "privacy.mechanism": mechanism}
    run = ffa.simulate(Experiment(noise_seed=4).replace(**settings), out=tmp_path / "run")
    assert run.accuracy > run.metrics[-1]["majority_accuracy"] + points
    assert run.epsilon is None if mechanism == "none" else 5.9 < run.epsilon <= 6


def test_the_report_opens_with_the_answer_and_escapes_names(tmp_path):
    experiment = tiny(rounds=1, name="<script>alert(1)</script>")
    run = ffa.simulate(experiment, out=tmp_path / "run")
    page = (run.path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "://" not in page.replace("http://www.w3.org/", "")
    body = page[page.index("<body>") :]
    assert body.index("of unseen texts correctly") < body.index("<table")
    both = ffa.write_report([run, run], tmp_path / "both.html").read_text()
    assert "Compared on the same data" in both


def test_the_round_is_compiled_once_for_calls_of_all_lengths(tmp_path):
    # Compiled ahead of time, the executable would refuse arguments of another shape.
    run = ffa.simulate(tiny(rounds=5, evaluate_every=4), out=tmp_path / "run")
    assert [line["accuracy"] is not None for line in run.metrics] == [False] * 3 + [True, True]
    assert jax.process_count() == 1


@pytest.mark.parametrize(
    ("name", "folder"), [("../x", "-x"), ("/abs/path", "-abs-path"), ("a/b", "a-b"), ("..", "run")]
)
def test_a_run_goes_right_under_runs_whatever_its_name(name, folder):
    assert simulation.folder_of(name) == Path("runs", folder)


def test_a_folder_named_like_a_model_of_the_shelf_is_not_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    run = ffa.simulate(tiny(rounds=1), out="run")
    assert run.experiment.model.name == "tiny"
    assert len(run.predict(["a good film"])) == 1


def test_a_diverged_run_says_so_on_console_and_page(tmp_path, capsys):
    experiment = tiny(rounds=2, **{"optimizer.learning_rate": 1e30})
    run = ffa.simulate(experiment, out=tmp_path / "run")
    show_run(run)
    assert "diverged" in capsys.readouterr().out
    assert "diverged" in (run.path / "report.html").read_text()
    leaves = load_file(run.path / "adapter" / ADAPTER)
    assert all(np.isfinite(leaf).all() for leaf in leaves.values())  # who diverged moved nothing
    assert None in run.metrics[0]["client_update_norms"]


@pytest.mark.slow
def test_a_run_on_pairs_asks_for_both_texts_and_is_used_from_anywhere(
    tmp_path, monkeypatch, capsys
):
    rows = [f"word{n} good,word{n % 3} fine,{n % 2}" for n in range(80)]
    (tmp_path / "pairs.csv").write_text("\n".join(["a,b,label", *rows]))
    monkeypatch.chdir(tmp_path)
    data = {"data.name": "csv", "data.path": "pairs.csv", "data.text": "a", "data.text_pair": "b"}
    parts = {"partition.name": "iid", "partition.num_clients": 2, "data.max_examples": None}
    run = ffa.simulate(tiny(rounds=1, **data, **parts), out="run")
    with pytest.raises(InputError, match="pairs"):
        run.predict(["word1 good"])
    assert run.predict(["word1 good"], ["word2 fine"])[0].label in "01"
    assert cli.main(["evaluate", "run", "--data.path", "pairs.csv"]) == 0
    assert "trained on included" in capsys.readouterr().err
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli.main(["evaluate", "../run"]) == 0
    assert cli.main(["resume", "../run", "--rounds", "1", "--epsilon", "50"]) == 0
