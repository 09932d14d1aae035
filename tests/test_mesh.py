"""Several devices give the numbers of one, clipping active; and only the reduction that is meant."""

import json
import math
import os
import subprocess
import sys

import jax
import pytest
from jax.sharding import PartitionSpec as P

from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError
from ffalora_jax.load import inject, load_model
from ffalora_jax.mesh import backbone_spec, make_mesh
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


@pytest.mark.parametrize("targets", ["qv", r"layers\..*"])
@pytest.mark.parametrize("name", ["tiny", "stories260k"])
def test_with_a_model_axis_the_large_matrices_of_the_backbone_are_sharded(name, targets):
    """Adapted layers too: their frozen kernels are what a device may have no room for."""
    experiment = Experiment().replace(**{"model.name": name, "method.targets": targets})
    loaded = load_model(experiment, None, ("no", "yes"))
    for stacked in (False, True):
        leaves = _backbone(inject(experiment, loaded))
        shapes = {n: ((3, *s) if stacked and "layers" in n else s) for n, s in leaves.items()}
        whole = sum(map(math.prod, shapes.values()))
        split = 0
        for leaf, shape in shapes.items():
            spec = backbone_spec(leaf, shape, 2)
            assert spec == P() or (len(spec) == len(shape) and "model" in spec), leaf
            assert not (stacked and "layers" in leaf and spec and spec[0] == "model")
            split += math.prod(shape) * (spec != P())
        assert split > 0.6 * whole, (split / whole, name)
        assert backbone_spec(max(shapes, key=lambda n: math.prod(shapes[n])), (7, 7), 2) == P()


def _backbone(model):
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(model.backbone)
    }
