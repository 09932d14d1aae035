"""Several devices give the numbers of one, clipping active; and only the reduction that is meant."""

import json
import os
import subprocess
import sys

import pytest

from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError
from ffalora_jax.mesh import make_mesh
from tests.on_devices import CASES, FAST, WAYS


def on_devices(*arguments):
    command = [sys.executable, "-m", "tests.on_devices", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "FFALORA_CACHE"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found():
    return on_devices()


@pytest.mark.parametrize("case", FAST)
@pytest.mark.thorough
def test_devices_do_not_change_the_numbers_with_clipping_active(found, case):
    case = found["cases"][case]
    assert case["clipped"] > 10
    for way, facts in case["ways"].items():
        assert facts["difference"] < 1e-6, way


@pytest.mark.thorough
def test_a_round_has_one_reduction_and_no_other_traffic_between_devices(found):
    for name, case in found["cases"].items():
        for way, facts in case["ways"].items():
            if "model" in WAYS[way].get("mesh", ""):
                continue
            devices = "mesh" in WAYS[way]
            # What is masked adds up as integers, apart from the floats beside it.
            most = 2 if name == "secure aggregation" else 1
            assert facts["reductions"] == (most if devices else 0), (name, way)
            # Personal leaves of clients that lie on all devices are written back on all of them.
            if name != "personal head" or way == "dealt over 2":
                assert facts["others"] == 0, (name, way)


@pytest.mark.thorough
def test_each_device_s_gradient_is_clipped_before_any_are_added(found):
    assert found["clipped"]["ours"] < 1e-6
    assert found["clipped"]["default"] > 0.1  # the mistake that the helper keeps out


@pytest.mark.thorough
def test_evaluation_over_devices_gives_the_same_logits(found):
    assert found["evaluation"] < 1e-5


@pytest.mark.slow
def test_every_case_gives_the_same_numbers_in_every_way():
    every = on_devices("all")["cases"]
    assert set(every) == set(CASES)
    for name, case in every.items():
        assert set(case["ways"]) == set(WAYS)
        assert case["clipped"] > 10
        for way, facts in case["ways"].items():
            assert facts["difference"] < 1e-6, (name, way)


def test_one_device_needs_no_mesh():
    assert make_mesh("auto", 4) is None
    assert make_mesh("clients=1", 4) is None


@pytest.mark.parametrize("setting", ["clients", "clients=0", "devices=2", "clients=2;model=2"])
def test_a_mesh_that_cannot_be_read_is_refused(setting):
    with pytest.raises(InputError, match="clients=4,model=2"):
        Experiment(mesh=setting)


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(InputError, match="needs 16 devices, there are 1"):
        make_mesh("clients=8,model=2", 4)
