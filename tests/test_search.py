"""What is varied, and which combinations are tried: the same ones every time."""

import math

import pytest

from ffalora_jax import registry, rng
from ffalora_jax.config import Experiment
from ffalora_jax.config_search import (
    Range,
    SearchConfig,
    load_search,
    read_over,
    space_of,
)
from ffalora_jax.errors import InputError
from ffalora_jax.experiment_file import load_experiment, with_table
from ffalora_jax.search import rungs
from ffalora_jax.search.random import number_of_trials

RATE, METHOD = "optimizer.learning_rate", "method.name"


def waves(search, scores=lambda settings: 0.0, rounds=9, secret=5):
    """All waves that a search gives when its trials score so."""
    space = space_of(search, Experiment())
    going = registry.lookup("searches", search.strategy)(search, space, rounds, 0, secret)
    found, told = [], None
    while True:
        try:
            wave = next(going) if told is None else going.send(told)
        except StopIteration:
            return found
        found.append(wave)
        told = [scores(trial.settings) for trial in wave.trials]


def test_a_grid_is_every_combination_once():
    search = SearchConfig(over={METHOD: ["ffa_lora", "full"], RATE: [0.1, 0.2, 0.3]})
    (wave,) = waves(search)
    pairs = [(t.settings[METHOD], t.settings[RATE]) for t in wave.trials]
    assert pairs == [(m, r) for m in ("ffa_lora", "full") for r in (0.1, 0.2, 0.3)]
    assert [trial.number for trial in wave.trials] == list(range(6))
    assert wave.rounds == 9


def test_random_draws_are_within_the_range_and_the_same_each_time():
    search = SearchConfig(
        "random",
        {RATE: "0.001..1 log", "method.rank": "2..9", METHOD: ["ffa_lora", "full"]},
        trials=200,
    )
    (wave,) = waves(search)
    rates = [trial.settings[RATE] for trial in wave.trials]
    assert all(0.001 <= rate <= 1 for rate in rates)
    below = sum(rate < math.sqrt(0.001) for rate in rates)
    assert 70 < below < 130  # half of them, in the logarithm
    assert {t.settings["method.rank"] for t in wave.trials} == set(range(2, 10))
    assert {t.settings[METHOD] for t in wave.trials} == {"ffa_lora", "full"}
    assert waves(search) == [wave]


def test_halving_goes_on_with_the_best_part():
    search = SearchConfig("halving", {RATE: [float(n) for n in range(1, 10)]}, trials=9, keep=3)
    found = waves(search, lambda settings: -abs(settings[RATE] - 4), rounds=27)
    assert [wave.rounds for wave in found] == [3, 9, 27]
    kept = [[trial.settings[RATE] for trial in wave.trials] for wave in found]
    assert kept[1:] == [[3.0, 4.0, 5.0], [4.0]]
    assert rungs(search, 5) == [1, 3, 5]
    assert rungs(SearchConfig("halving", {RATE: [1.0]}, first_rounds=4), 5) == [4, 5]


def test_a_failed_trial_never_goes_on():
    search = SearchConfig("halving", {RATE: [1.0, 2.0, 3.0]}, trials=3)
    found = waves(search, lambda settings: -math.inf if settings[RATE] < 3 else 0.1)
    assert [trial.settings[RATE] for trial in found[-1].trials] == [3.0]


def test_bayesian_search_finds_the_better_part_and_is_the_same_each_time():
    pytest.importorskip("optuna")
    search = SearchConfig(
        "bayesian", {RATE: "0.01..10 log", METHOD: ["ffa_lora", "full"]}, trials=40
    )

    def score(settings):
        return -abs(math.log10(settings[RATE])) - (settings[METHOD] == "full")

    found = waves(search, score)
    trials = [trial for wave in found for trial in wave.trials]
    assert [trial.number for trial in trials] == list(range(40))
    late = [score(trial.settings) for trial in trials[20:]]
    early = [score(trial.settings) for trial in trials[:10]]
    assert sum(late) / 20 > sum(early) / 10 + 0.2
    assert waves(search, score) == found


def test_how_many_trials_there_are_follows_the_law_and_the_secret():
    for law, variance in (("poisson", 20), ("geometric", 20 * 19)):
        search = SearchConfig("random", {RATE: "0.1..1"}, trials=20, trials_law=law)
        counts = [number_of_trials(search, secret) for secret in range(4000)]
        mean = sum(counts) / len(counts)
        assert mean == pytest.approx(20, abs=4 * math.sqrt(variance / len(counts)))
        spread = sum((count - mean) ** 2 for count in counts) / len(counts)
        assert spread == pytest.approx(variance, rel=0.15)
    assert min(counts) == 1
    assert number_of_trials(search, 7) == number_of_trials(search, 7)


def test_under_a_law_settings_are_as_secret_as_their_number():
    law = SearchConfig("random", {RATE: "0.1..1"}, trials=5, trials_law="geometric")
    found = {
        tuple(t.settings[RATE] for w in waves(law, secret=s) for t in w.trials) for s in range(6)
    }
    firsts = {rates[0] for rates in found}
    assert len(firsts) == 6
    public = SearchConfig("random", {RATE: "0.1..1"}, trials=5)
    assert waves(public, secret=1) == waves(public, secret=2)


def test_each_run_of_a_search_has_noise_of_its_own():
    seeds = {rng.noise_seed_of(9, trial, repeat) for trial in range(4) for repeat in range(3)}
    assert len(seeds) == 12
    assert rng.noise_seed_of(9, 1, 2) == rng.noise_seed_of(9, 1, 2) != rng.noise_seed_of(8, 1, 2)
    assert max(seeds) > 2**58


def test_the_command_line_and_a_file_say_the_same(tmp_path):
    file = tmp_path / "search.toml"
    file.write_text(
        'rounds = 4\n[search]\nseeds = 2\n[search.over]\nmethod.name = ["ffa_lora", "full"]\n'
        '"optimizer.learning_rate" = "0.1..1 log"\n'
    )
    experiment, search = load_search(file)
    assert experiment.rounds == 4
    typed = dict(map(read_over, [f"{METHOD}=ffa_lora,full", "optimizer.learning-rate=0.1..1:log"]))
    assert space_of(search, experiment) == space_of(SearchConfig(over=typed, seeds=2), experiment)
    assert space_of(search, experiment)[RATE] == Range(0.1, 1.0, True, False)
    written = tmp_path / "again.toml"
    written.write_text(with_table(experiment, "search", search))
    assert load_search(written) == (experiment, search)


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({}, "Nothing is varied"),
        ({"method.nme": ["a"]}, "Did you mean 'method.name'"),
        ({"method": ["a"]}, "No setting 'method'"),
        ({RATE: ["high"]}, "Expected float"),
        ({RATE: []}, "at least one value"),
        ({RATE: "1..x"}, "a list or a range"),
        ({RATE: "1..1"}, "from a lower to a higher"),
        ({RATE: "0..1 log"}, "above 0"),
        ({RATE: [0.1, -1.0]}, "learning_rate > 0"),
        ({"seed": [1, 2]}, "search.seeds"),
        ({"rounds": [3, 9]}, "after the same ones"),
        (
            {"method.rank": [n + 1 for n in range(200)], "batch_size": list(range(1, 101))},
            "at most",
        ),
    ],
)
def test_what_cannot_be_varied_is_said(over, said):
    with pytest.raises(InputError, match=said):
        space_of(SearchConfig(over=over), Experiment())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"strategy": "halving", "trials_law": "poisson"}, "independent trials"),
        ({"compare": "method.rank"}, "search.compare"),
        ({"keep": 1.5}, "search.keep >= 2"),
        ({"strategy": "random", "trials_law": "poisson", "storage": "s"}, "stay secret"),
        ({"strategy": "mine:build", "storage": "s"}, "with search.storage"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(settings, said):
    with pytest.raises(InputError, match=said):
        SearchConfig(over={RATE: [0.1]}, **settings)


def test_a_grid_has_no_ranges_and_a_run_no_search(tmp_path):
    with pytest.raises(InputError, match="not a range"):
        waves(SearchConfig(over={RATE: "0.1..1"}))
    file = tmp_path / "search.toml"
    file.write_text("[search]\nseeds = 3\n")
    with pytest.raises(InputError, match="ffalora sweep"):
        load_experiment(file)
