"""The ends of every scale: the smallest and largest that a user can give runs, or is refused plainly."""

import jax
import numpy as np
import pytest

import ffalora_jax as ffa
from ffalora_jax import accounting, registry
from ffalora_jax.config import Experiment, PrivacyConfig
from ffalora_jax.errors import InputError
from ffalora_jax.mechanisms import Schedule
from ffalora_jax.prepare import prepare
from tests.tiny_runs import tiny

FEW = {
    "rounds": 1,
    "evaluate_every": 1,
    "batch_size": 4,
    "data.max_examples": None,
    "partition.name": "iid",
    "partition.num_clients": 2,
}
LONGEST = 8192


def ran(path, data=None, **changes):
    """Runs one round; returns the run, whose figures and adapter are finite."""
    run = ffa.simulate(tiny(**{**FEW, **changes}), data, out=path / "run")
    assert np.isfinite(run.metrics[-1]["test_loss"])
    for leaf in jax.tree.leaves(run.ready.state.adapters):
        assert np.isfinite(leaf).all()
    return run


def rows(texts, labels=None):
    count = len(texts)
    return {"text": texts, "label": labels or [index % 2 for index in range(count)]}


def said_to_be_cut(run):
    said = run.folder.read_json("partition.json")["warnings"]
    return [text for text in said if "model.max_tokens" in text]


@pytest.mark.thorough
def test_one_client(tmp_path):
    run = ran(tmp_path, **{"partition.num_clients": 1})
    assert run.metrics[-1]["participants"] == [0]


@pytest.mark.thorough
def test_two_thousand_clients_of_one_example_each(tmp_path):
    run = ran(
        tmp_path,
        rows([f"text number {index}" for index in range(6000)]),
        **{"partition.num_clients": 2000, "batch_size": 1, "local_steps": 1},
        **{"partition.test_share": 0.33, "partition.validation_share": 0.34},
    )
    assert len(run.metrics[-1]["participants"]) == 2000
    assert {c["num_examples"] for c in run.privacy["clients"]} == {1}


def test_the_rank_of_the_layer_is_refused():
    with pytest.raises(InputError, match=r"method\.rank below the width 32 of layer"):
        prepare(tiny(**{"method.rank": 32}))


@pytest.mark.parametrize("rank", [1, 31])
@pytest.mark.thorough
def test_the_smallest_and_the_largest_rank(tmp_path, rank):
    run = ran(tmp_path, **{"method.rank": rank})
    factors = [
        leaves["lora_a"] for leaves in run.ready.state.adapters.values() if "lora_a" in leaves
    ]
    assert {factor.shape for factor in factors} == {(32, rank)}


@pytest.mark.thorough
def test_texts_of_one_token_and_of_none(tmp_path):
    run = ran(tmp_path, rows(["a", "b", "", "."] * 30))
    assert said_to_be_cut(run) == []


@pytest.mark.thorough
def test_a_text_of_thousands_of_tokens_is_cut_and_said_to_be(tmp_path):
    run = ran(tmp_path, rows([" ".join(["word"] * LONGEST), "short"] * 60))
    (said,) = said_to_be_cut(run)
    assert said.startswith("60 of 120 texts fill all model.max_tokens = 12 tokens")


@pytest.mark.thorough
def test_ten_thousand_classes(tmp_path):
    labels = [index % 10_000 for index in range(20_000)]
    run = ran(
        tmp_path,
        rows([f"class {label}" for label in labels], labels),
        **{"local_steps": 1, "model.head": "trained"},
    )
    assert run.ready.state.adapters["head"]["head_kernel"].shape == (32, 10_000)


@pytest.mark.parametrize("norm", [1e-12, 1e12])
@pytest.mark.thorough
def test_the_smallest_and_largest_clip_norm_move_by_their_own_noise(tmp_path, norm):
    run = ran(tmp_path, **{"privacy.clip_norm": norm})
    adapted = (x["lora_b"] for x in run.ready.state.adapters.values() if "lora_b" in x)
    moved = np.concatenate([np.ravel(leaf) for leaf in adapted])
    assert 1e-2 * norm < np.std(moved) < 1e2 * norm


@pytest.mark.parametrize(
    ("epsilon", "least", "most"),
    [(1e-3, 10, 1e4), pytest.param(1e3, 0.1, 0.2, marks=pytest.mark.thorough)],
)
def test_the_smallest_and_largest_epsilon_have_a_noise_that_keeps_to_them(epsilon, least, most):
    draw = accounting.Sampling(2000, 0.01)
    noise = accounting.noise_for(draw, epsilon, 100, 1e-5)
    assert least <= noise <= most
    assert accounting.epsilon_of(draw, noise, 100, 1e-5) <= epsilon


def test_a_delta_too_small_for_pld_is_refused_and_rdp_answers():
    draw = accounting.Sampling(2000, 0.01)
    with pytest.raises(InputError, match="PLD cannot resolve delta 1e-300"):
        accounting.epsilon_of(draw, 1.0, 100, 1e-300)
    found = accounting.epsilon_of(draw, 1.0, 100, 1e-300, "rdp")
    assert 1 < found < 1e3


@pytest.mark.slow
def test_a_hundred_thousand_rounds_of_three_hundred_unequal_clients_are_priced_once(monkeypatch):
    settings = PrivacyConfig(epsilon=6.0, delta=1e-6)
    mechanism = registry.lookup("mechanisms", "dp_sgd")(Experiment(batch_size=16, privacy=settings))
    sizes = np.random.default_rng(0).permutation(np.arange(1000, 1000 + 300 * 17, 17)).tolist()
    plan = mechanism.plan(sizes, Schedule(100_000, 1, 16), None)
    spent = [plan.spent(client, 100_000) for client in range(300)]
    assert 5.9 < max(spent) <= 6.0
    monkeypatch.setattr(accounting, "_compute", None)  # all that is asked again was kept
    again = mechanism.plan(sizes, Schedule(100_000, 1, 16), None)
    assert [again.spent(client, 100_000) for client in range(300)] == spent
