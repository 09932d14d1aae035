"""What the tests of bad input share: a command must be refused in one line, and write nothing."""

import shlex
from pathlib import Path

import pytest

from ffalora_jax import cli

FAST = "--rounds 1 --local-steps 1 --batch-size 8 --privacy.mechanism none"
CHECKPOINT = f"run --data.name synthetic --method.rank 2 --model.max-tokens 16 {FAST} --model.name"


@pytest.fixture
def refused(capsys):
    """Runs a command that must be refused; returns the one line."""

    def refuse(command):
        before = snapshot()
        capsys.readouterr()
        code = cli.main(shlex.split(command))
        said = capsys.readouterr()
        assert code == 2, said.err
        *stages, line = said.err.splitlines()
        assert line.startswith("ffalora: "), said.err
        assert set(stages) <= {"preparing data, model and noise"}, said.err
        assert said.out == ""
        assert snapshot() == before, "something was written"
        return line

    return refuse


def snapshot():
    return {path: path.stat().st_mtime_ns for path in Path().rglob("*")}


def assert_says(line, words):
    missing = [word for word in words if word not in line]
    assert not missing, f"{missing} not in: {line}"
