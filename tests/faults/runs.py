"""What the fault programs share: a run in a child process, and whether two runs are the same."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

import ffalora_jax as ffa
from ffalora_jax.searching import RUNS
from tests.tiny_runs import timeless

PATIENCE = 300.0

SHARING = {"method.layers": "1", "rounds": 4, "local_steps": 1}
"""Runs that keep what lies below their adapters together, and would not alone."""

KINDS: dict[str, dict[str, Any]] = {
    "ffa_lora": {},
    "personal head, adam at clients and server": {
        "model.head": "personal",
        "optimizer.name": "adam",
        "optimizer.learning_rate": 0.01,
        "server.optimizer": "adam",
        "server.learning_rate": 0.01,
    },
    "fedsa_lora (personal trees)": {"method.name": "fedsa_lora"},
    "fedex_lora (residuals)": {"method.name": "fedex_lora"},
    "fedsvd (a new frame each round)": {"method.name": "fedsvd"},
    "flexlora (SVD of the mean product)": {"method.name": "flexlora"},
    "flora (stacked factors)": {"method.name": "flora"},
    "lora_fair": {"method.name": "lora_fair"},
    "fedask": {"method.name": "fedask"},
    "dp_sgd_adaptive": {"privacy.mechanism": "dp_sgd_adaptive"},
    "dp_sgd_banded (noise of earlier steps)": {"privacy.mechanism": "dp_sgd_banded"},
    "dp_fedavg_adaptive, Poisson cohorts": {
        "privacy.mechanism": "dp_fedavg_adaptive",
        "cohort_size": 3,
        "cohort_sampling": "poisson",
    },
    "schedules": {
        "optimizer.schedule": "warmup 2 then cosine 0.1",
        "privacy.noise_schedule": "linear 0.5",
        "method.name": "rolora",
    },
    "control variates": {"optimizer.control_variates": True, "cohort_size": 2},
    "late uploads": {
        "sites.preset": "three-sites",
        "sites.deadline": 0.2,
        "sites.late_weight": 0.5,
        "sites.available": "0.8",
    },
    "ensemble": {"ensemble.members": 2},
    "two devices": {"mesh": "clients=2"},
    "data dealt from the host": {"client_data": "host", "cohort_size": 2},
    "a search": {"of": "sweep", **SHARING},
    "a pilot": {"of": "pilot", **SHARING, "privacy.noise_multiplier": None, "privacy.epsilon": 6.0},
}
"""Settings by the state that a run of theirs carries from round to round; ``of`` what is made of many."""


class Outcome(NamedTuple):
    """How a child ended."""

    code: int
    said: str

    @property
    def killed(self) -> bool:
        """Whether it died at the moment that was chosen."""
        return self.code == -signal.SIGKILL


def child(path: Path, changes: dict[str, Any], *moment: object, **more: Any) -> Outcome:
    """Runs or resumes in a process of its own."""
    command = [sys.executable, "-m", "tests.faults.child", str(path), json.dumps(changes)]
    done = subprocess.run(
        [*command, *map(str, moment)], capture_output=True, text=True, timeout=PATIENCE, **more
    )
    return Outcome(done.returncode, done.stdout + done.stderr)


def differences(one: Path, other: Path) -> list[str]:
    """Names what two runs, searches or pilots that should be the same do not share, bit for bit."""
    if not (one / RUNS).is_dir():
        return _of_runs(one, other)
    names = [sorted(run.name for run in (place / RUNS).iterdir()) for place in (one, other)]
    if names[0] != names[1]:
        return [f"runs {names[0]} and {names[1]}"]
    whole = [name for name in names[0] if (one / RUNS / name / "adapter").is_dir()]
    assert whole, "no run of the untouched one came to its end"
    return [
        f"{name}: {found}"
        for name in whole
        for found in _of_runs(one / RUNS / name, other / RUNS / name)
    ]


def _of_runs(one: Path, other: Path) -> list[str]:
    a, b = ffa.load_run(one), ffa.load_run(other)
    found = []
    folders = "adapter", "personal"
    for file in sorted(
        x.relative_to(one) for f in folders for x in (one / f).glob("*.safetensors")
    ):
        mine, theirs = (load_file(run / file) for run in (one, other))
        if mine.keys() != theirs.keys() or any(
            not np.array_equal(mine[k], theirs[k], equal_nan=True) for k in mine
        ):
            found.append(str(file))
    if timeless(a) != timeless(b):
        found.append("metrics.jsonl")
    if a.privacy != b.privacy:
        found.append("privacy.json")
    if a.communication != b.communication:
        found.append("communication.json")
    if [line["round_index"] for line in b.metrics] != list(range(len(a.metrics))):
        found.append("a line of metrics.jsonl twice or missing")
    return found


def copied(source: Path, target: Path) -> Path:
    """Returns a copy of a run's folder."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))
