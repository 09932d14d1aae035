"""The experiments' files: they load, and say what they claim and what came out; figure 1's maths holds."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from ffalora_jax import load_experiment, registry, rng

FOLDER = Path(__file__).parent.parent / "experiments"
FILES = sorted(FOLDER.glob("*/*.toml"))
PROGRAMS = sorted(
    path
    for path in [*FOLDER.glob("*.py"), *FOLDER.glob("*/*.py")]
    if not path.name.startswith("_")  # what programs share
)


def header(path: Path) -> str:
    lines = path.read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_an_experiment_loads_and_states_claim_command_time_and_result(path):
    experiment = load_experiment(path)
    assert experiment.method.name == "ffa_lora"
    if path.with_suffix(".py").exists():  # the program beside it says it all
        return
    for part in ("Claim:", "Command:", "Time:", "Result"):
        assert part in header(path), f"{path} has no line {part}"


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_states_how_it_is_run(path):
    opening = path.read_text().split('"""')[1]
    assert "Run:" in opening


def test_papers_files_name_a_small_twin_that_is_there():
    for path in (FOLDER / "paper").glob("*.toml"):
        twin = header(path).partition("small twin is ")[2].split()[0].rstrip(".")
        assert (FOLDER.parent / twin).is_file(), f"{path} names {twin}"


def test_papers_noise_is_calibrated_from_the_papers_numbers():
    # SST-2: n = 67,349 over the severe proportions, all for training: 22,449 at the middle client.
    experiment = load_experiment(FOLDER / "paper" / "sst2.toml")
    mechanism = registry.lookup("mechanisms", "dp_sgd")(
        experiment.replace(**{"privacy.capacity": 400})
    )
    from ffalora_jax.mechanisms import Schedule

    plan = mechanism.plan([22449], Schedule(1000, 10, experiment.batch_size), None)
    assert 0.9 < plan.clients[0].noise_multiplier < 1.05


def test_noise_of_lora_is_quadratic_and_of_ffa_linear():
    program = load(FOLDER / "noise_amplification.py")
    a = registry.lookup("inits", "kaiming")().draw(
        rng.public_root(0), program.FEATURES, program.RANK
    )
    scales = np.array([0.1, 0.99])
    draws = range(5)
    measured = np.array(
        [
            np.mean([program.amplified(a, rng.public_root(1 + d), scale) for d in draws], axis=0)
            for scale in scales
        ]
    )
    np.testing.assert_allclose(measured, program.expectations(np.asarray(a), scales), rtol=0.02)
    full, lora, ffa = measured[1]
    assert lora > 2 * full > 20 * ffa


@pytest.mark.thorough
def test_fedsvd_is_ffa_lora_with_an_orthonormal_a_under_sgd_with_clipping():
    program = load(FOLDER / "fedsvd_is_orthonormal_ffa.py")
    assert program.difference(program.CASES["clipped (95 % of the examples)"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain SGD", "momentum .9", "rank 16 of a round of one step"])
def test_and_with_momentum_and_a_product_of_low_rank(case):
    program = load(FOLDER / "fedsvd_is_orthonormal_ffa.py")
    assert program.difference(program.CASES[case]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("case", ["Adam", "kaiming A, as drawn"])
def test_and_not_with_adam_or_an_a_of_another_scale(case):
    program = load(FOLDER / "fedsvd_is_orthonormal_ffa.py")
    assert program.difference(program.CASES[case]) > 0.1


def test_lower_bounds_of_a_shuffled_run_stay_below_what_a_known_order_spends():
    sampler_truth = load(FOLDER / "sampler_truth.py")
    for noise, batches, least in ((1.741, 10, 1.0), (0.9023, 100, 1.0), (50.0, 10, 0.0)):
        hidden = sampler_truth.of_one_epoch(noise, batches)
        assert least <= hidden < sampler_truth.of_gaussians(noise, 1)
    assert hidden < 0.1


def test_epsilon_of_gaussians_is_that_of_the_accountant():
    import dp_accounting

    sampler_truth = load(FOLDER / "sampler_truth.py")
    accountant = dp_accounting.pld.PLDAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(1.5), 4)
    expected = accountant.get_epsilon(sampler_truth.DELTA)
    assert sampler_truth.of_gaussians(1.5, 4) == pytest.approx(expected, rel=1e-2)


@pytest.mark.statistical
def test_the_audit_of_several_epochs_stays_below_a_known_order():
    sampler_truth = load(FOLDER / "sampler_truth.py")
    found = sampler_truth.played(1.0, 10, 2, 4000)
    assert 0.5 < found < sampler_truth.of_gaussians(1.0, 2)
    assert sampler_truth.played(50.0, 10, 2, 4000) < 0.2
