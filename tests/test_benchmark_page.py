"""The benchmarks' page and profile: what is missed says so, operations are known by what they hold."""

import sys
from pathlib import Path

import pytest

import ffalora_jax

PROGRAMS = Path(ffalora_jax.__file__).parents[1] / "experiments" / "benchmarks"
MACHINE = {"cpu": "a CPU", "cores": 2, "python": "3.11", "versions": {"jax": "0"}, "date": "2026"}
PROGRAM = """
%fused (p0: f32[240,384], p1: f32[384,1536]) -> f32[240,1536] {
  %p0 = f32[240,384]{1,0} parameter(0)
  %p1 = f32[384,1536]{1,0} parameter(1)
  ROOT %d = f32[240,1536]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
%soft (p: f32[4]) -> f32[4] {
  ROOT %e = f32[4]{0} exponential(%p)
}
ENTRY %main (a: f32[240,384]) -> f32[240,1536] {
  %a = f32[240,384]{1,0} parameter(0)
  %dense = f32[240,1536]{1,0} fusion(%a, %b), kind=kCustom, calls=%fused
  %softmax = f32[4]{0} fusion(%c), kind=kLoop, calls=%soft
  %narrow = f32[240,8]{1,0} dot(%a, %l), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %drawn = (u32[8]{0}, s32[8]{0}) sort(%w, %i), dimensions={0}
  ROOT %sum = f32[240,1536]{1,0} add(%dense, %dense)
}
"""


@pytest.fixture
def programs(monkeypatch):
    monkeypatch.syspath_prepend(str(PROGRAMS))
    yield
    for name in ("_page", "roofline", "_timing"):
        sys.modules.pop(name, None)


def stored(ratio, fastest):
    seconds = {"seconds_per_client_step": {"median": 0.5, "min": 0.4}}
    line = {
        "ours": seconds,
        "peers": {"peft_opacus": seconds, "fast_torch": seconds},
        "ratios": {"peft_opacus": ratio, "fast_torch": fastest, "fast_torch_1": fastest + 1},
        "max_abs_difference": 3e-8,
        "share_of_gemm_limit": None,
    }
    return {"against_peers sst2": {"machine": MACHINE, "lines": [line]}}


def test_a_target_is_met_missed_or_not_measured(programs):
    from _page import page

    text = page(stored(2.6, 0.9))
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line[:1] == "|"}
    sst2 = "SST-2 as it is, 64 expected, 3 clients, MiniLM: against"
    assert rows[f"{sst2} PEFT + Opacus"].endswith("| 2.6 | yes |")
    assert rows[f"{sst2} the fastest PyTorch"].endswith("| 0.9 | **missed** |")
    assert "not measured" in rows["16 to 256 clients: time"]
    assert "a CPU, 2 cores" in text
    assert "{" not in text.replace("{...}", "")


def test_an_operation_is_known_by_what_its_fusion_holds(programs):
    from roofline import _sides, kind_of, parsed

    found = parsed(PROGRAM)
    shapes = {one.name: _sides(one.shape) for lines in found.values() for one in lines}
    kinds = {one.name: kind_of(one, found, shapes) for one in found["main"]}
    assert kinds["dense"] == ("dense products", 2 * 240 * 1536 * 384)
    assert kinds["softmax"] == ("softmax", 0)
    assert kinds["narrow"] == ("adapters and clipping", 2 * 240 * 8 * 384)
    assert kinds["drawn"][0] == "drawing and noise"
    assert kinds["sum"][0] == "elementwise and copies"


def test_the_parts_of_a_profile_sum_to_one(programs):
    from roofline import parts, union

    events = [
        {"ph": "X", "ts": 0.0, "dur": 6.0, "args": {"hlo_op": "dense"}},
        {"ph": "X", "ts": 1.0, "dur": 2.0, "args": {"hlo_op": "softmax"}},
        {"ph": "X", "ts": 8.0, "dur": 2.0, "args": {"hlo_op": "sum"}},
        {"ph": "X", "ts": 0.0, "dur": 99.0, "args": {"hlo_op": "elsewhere"}},
    ]
    found = parts(events, PROGRAM)
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["shares"]["host and waiting"] == pytest.approx(0.2)
    assert found["threads_busy"] == pytest.approx(10 / 8)
    assert union([(0, 2), (1, 3), (5, 6)]) == 4
