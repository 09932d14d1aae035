"""Three private rounds in PyTorch + PEFT, and ours: where those are installed."""

import sys
from pathlib import Path

import pytest


@pytest.mark.thorough
def test_three_private_rounds_are_those_of_pytorch_and_peft_with_the_same_noise(monkeypatch):
    pytest.importorskip("torch", reason="needs pip install torch==2.13.0 peft==0.21.2")
    pytest.importorskip("peft", reason="needs pip install torch==2.13.0 peft==0.21.2")
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path("experiments/benchmarks").absolute())])
    import dp_parity

    found = dp_parity.compare()
    assert found.largest_difference < 1e-5
    assert found.moved > 0.1
    assert 0.2 < found.clipped < 1.0
