"""The audit: right mechanisms stay below their claim, wrong ones do not, others are refused."""

import json

import pytest

from experiments import audit_mechanisms as cases
from ffalora_jax import audit
from ffalora_jax.errors import InputError
from tests.command import here
from tests.helpers import prepared


@pytest.fixture(scope="module")
def examples():
    return cases.example_level()


@pytest.fixture(scope="module")
def clients():
    return cases.client_level()


def judged(run, seed=3):
    return cases.judged(run, noise_seed=seed)


@pytest.mark.thorough
def test_with_its_noise_dp_sgd_stays_below_its_claim_and_is_not_nothing(examples):
    found = judged(examples)
    assert found.canaries == 1000
    assert 400 < found.inserted < 600
    assert 1.9 < found.claimed <= 2
    assert 0.1 < found.lower_bound < 2
    assert 0.6 < found.auroc < 0.8
    assert found.holds


@pytest.mark.thorough
def test_without_noise_it_is_far_above(examples):
    found = judged(cases.without_noise(examples))
    assert found.lower_bound > 3
    assert not found.holds


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [cases.noise_of_the_mean, cases.clipped_after_averaging])
def test_a_wrong_mechanism_is_proved_wrong(examples, wrong):
    assert judged(wrong(examples)).lower_bound > 3


@pytest.mark.slow
def test_clipping_tensor_by_tensor_is_proved_wrong(examples):
    with cases.clipped_per_tensor():
        assert judged(examples).lower_bound > 2.2


@pytest.mark.slow
def test_whole_clients_are_audited_too(clients):
    right, wrong = judged(clients), judged(cases.unbounded_uploads(clients))
    assert 0.1 < right.lower_bound < right.claimed <= 2
    assert wrong.lower_bound > 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mechanism": "none"}, "claims nothing"),
        ({"method": "flora"}, "keeps or changes more"),
        ({"method": "fedsa_lora"}, "keeps or changes more"),
        ({"head": "personal"}, "keeps or changes more"),
        ({"mechanism": "dp_fedavg"}, "at least 20 canaries, got 4"),
    ],
)
def test_what_cannot_be_audited_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        audit.audit(prepared(**changes).experiment)


@pytest.mark.thorough
def test_data_that_a_run_would_deal_from_the_host_are_audited_whole():
    dealt = {"client_data": "host", "cohort_size": 2, "rounds": 1}
    found = audit.audit(prepared(num_examples=240).experiment.replace(**dealt))
    assert found.canaries >= 20


def test_the_command_says_what_was_claimed_and_what_was_found(tmp_path, capsys):
    text = "rounds = 1\nlocal_steps = 1\nbatch_size = 60\n[data]\nname = 'synthetic'\nmax_examples = 400\n"
    text += "[model]\nname = 'tiny'\n[partition]\nname = 'iid'\n[privacy]\nepsilon = 2.0\n"
    (tmp_path / "audit.toml").write_text(text)
    found = json.loads(here("audit", tmp_path / "audit.toml", "--canaries", "50", "--json"))
    assert found["canaries"] == 50
    assert found["holds"] == (found["lower_bound"] <= found["claimed"] <= 2)
    here("audit", tmp_path / "audit.toml", "--canaries", "many", code=2)
    assert "Expected --canaries to be a number from 1 on, got 'many'" in capsys.readouterr().err
    here("audit", tmp_path / "audit.toml", "--canaries", "5", code=2)
