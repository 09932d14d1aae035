"""Disks, locks and logs: what was saved last stands, epsilon never goes back, each run has its log."""

import errno
import fcntl
import json
import logging
import os
import shutil
from pathlib import Path

import jax
import orbax.checkpoint as ocp
import pytest

import ffalora_jax as ffa
from ffalora_jax import checkpoint, cli, errors, loop, run_folder, run_log
from ffalora_jax.errors import InputError
from tests.test_resume import StopAfter
from tests.tiny_runs import same_bits, timeless, tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    return ffa.simulate(tiny(), out=tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped after four of six rounds."""
    out = tmp_path_factory.mktemp("runs") / "cut"
    with pytest.raises(loop.Interrupted):
        ffa.simulate(tiny(), out=out, observe=StopAfter(4))
    return out


def steps(run):
    return sorted((run / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))


def turn_a_bit(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def largest(step):
    return max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize(
    "harm",
    [
        lambda step: turn_a_bit(largest(step)),
        pytest.param(
            lambda step: largest(step).write_bytes(bytes(largest(step).stat().st_size)),
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            lambda step: [p.unlink() for p in step.rglob("*") if p.is_file()],
            marks=pytest.mark.thorough,
        ),
    ],
    ids=["one bit turned", "zeros", "an empty folder"],
)
def test_a_broken_checkpoint_is_set_aside_and_the_run_ends_in_the_same_bits(
    whole, stopped, tmp_path, harm
):
    run, said = Path(shutil.copytree(stopped, tmp_path / "run")), []
    done = int(steps(run)[-1].name)
    before = json.loads((run / "privacy.json").read_text())
    harm(steps(run)[-1])
    resumed = ffa.resume(run, observe=lambda event: said.append(event.stage))
    assert any(f"checkpoint of round {done} is broken" in stage for stage in said)
    assert (run / "checkpoints" / f"broken-{done}").is_dir()
    assert same_bits(whole, resumed)
    assert timeless(whole) == timeless(resumed)
    assert before["rounds"] == done
    assert resumed.privacy == whole.privacy


def test_epsilon_never_goes_back_though_rounds_are_made_again(stopped, tmp_path):
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    before = json.loads((run / "privacy.json").read_text())
    assert before["rounds"] == 4
    for step in steps(run)[1:]:  # only the one of round 0 stands
        turn_a_bit(largest(step))
    with pytest.raises(loop.Interrupted):
        ffa.resume(run, observe=StopAfter(2))
    after = json.loads((run / "privacy.json").read_text())
    assert len(ffa.load_run(run).metrics) < 4
    assert after["rounds"] == 4
    assert after["epsilon"] == before["epsilon"]


@pytest.mark.thorough
def test_rounds_that_were_added_are_planned_though_an_older_checkpoint_does_not_know_of_them(
    tmp_path,
):
    longer = ffa.simulate(tiny(rounds=3), out=tmp_path / "run")
    longer = ffa.resume(longer.path, rounds=1)
    (longer.path / "privacy.json").unlink()  # metrics.jsonl knows, too
    turn_a_bit(largest(steps(longer.path)[-1]))
    again = ffa.resume(longer.path)
    assert again.privacy == longer.privacy
    assert len(again.metrics) == 4
    assert same_bits(again, longer)


def test_a_machine_that_fails_is_not_taken_for_broken_checkpoints(stopped, tmp_path, monkeypatch):
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    before = steps(run)

    def fail(*args, **kwargs):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(ocp.CheckpointManager, "restore", fail)
    with pytest.raises(OSError, match="Too many open files"):
        ffa.resume(run)
    assert steps(run) == before


def test_a_log_that_cannot_be_written_hides_nothing(tmp_path):
    (tmp_path / "run.log").symlink_to("/dev/full")
    with pytest.raises(KeyboardInterrupt, match="stopped"), run_log.kept(tmp_path):
        raise KeyboardInterrupt("stopped")


def test_without_a_whole_checkpoint_the_run_is_refused(stopped, tmp_path, capsys):
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    for step in steps(run):
        turn_a_bit(largest(step))
    assert cli.main(["resume", str(run)]) == errors.BAD_INPUT
    assert "is whole" in capsys.readouterr().err.splitlines()[-1]


def test_a_run_of_a_newer_version_is_refused_and_stays_as_it_is(whole, tmp_path, monkeypatch):
    run = Path(shutil.copytree(whole.path, tmp_path / "run"))
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT - 1)
    with pytest.raises(InputError, match="newer version"):
        ffa.resume(run, rounds=1)
    assert steps(run)
    assert not list(run.glob("checkpoints/broken-*"))


def test_a_second_process_at_the_same_run_is_refused_and_a_lock_left_behind_is_none(
    stopped, tmp_path
):
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    with (run / "experiment.toml").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="Another process is at the run"):
            ffa.resume(run)
    assert len(ffa.resume(run).metrics) == 6


def test_a_run_holds_its_folder_while_it_goes_on(tmp_path):
    held = []

    def look(event):
        if event.line is None:
            return
        with (tmp_path / "run" / "experiment.toml").open() as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(event.rounds_done)

    ffa.simulate(tiny(rounds=1, evaluate_every=1), out=tmp_path / "run", observe=look)
    assert held == [1]


def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(
    whole, stopped, tmp_path, monkeypatch, capsys
):
    run = Path(shutil.copytree(stopped, tmp_path / "run"))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run / "metrics.jsonl"))

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.RunFolder, "append_metrics", full)
        assert cli.main(["resume", str(run)]) == errors.FAILED
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("ffalora: No space left on device")
    assert "ffalora resume" in line
    assert "OSError" in (run / "run.log").read_text()
    assert same_bits(whole, ffa.resume(run))


def test_what_a_killed_write_left_is_cleared_away(stopped, tmp_path):
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    (run / ".privacy.json.x1y2_z34").write_text("{")
    (run / ".experiment.toml.swp").write_text("an editor's")
    ffa.resume(run)
    assert not list(run.glob(".privacy.json.*"))
    assert (run / ".experiment.toml.swp").exists()


def test_the_log_of_a_run_tells_versions_stages_and_rounds_and_no_secret(tmp_path):
    secret = 9_876_543_210_123_456  # found nowhere by chance, as a time of day would be
    run = ffa.simulate(tiny(rounds=2, noise_seed=secret), out=tmp_path / "run")
    text = (run.path / "run.log").read_text()
    assert "jax " in text
    assert "round 2 of 2" in text
    assert text.count(" begin: ") == 1
    assert checkpoint.Checkpoints(run.path / "checkpoints").newest().noise_seed == secret
    assert str(secret) not in text
    assert "loss" not in text
    assert not logging.getLogger("ffalora_jax").handlers


def test_the_level_of_messages_can_be_chosen(tmp_path, capsys):
    assert cli.main(["list", "methods", "--log-level", "loud"]) == errors.BAD_INPUT
    assert "debug, info, warning, error" in capsys.readouterr().err
    logger = logging.getLogger("ffalora_jax")
    try:
        assert cli.main(["--log-level=info", "list", "methods"]) == errors.DONE
        logger.info("something")
        assert "INFO something" in capsys.readouterr().err
    finally:
        logger.handlers.clear()
        logger.propagate = True


def test_a_line_of_figures_that_is_gone_is_made_again_with_its_round(whole, tmp_path):
    run, said = Path(shutil.copytree(whole.path, tmp_path / "run")), []
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:40]]))
    resumed = ffa.resume(run, observe=lambda event: said.append(event.stage))
    assert any("round 6 has no line in metrics.jsonl" in stage for stage in said)
    assert timeless(resumed) == timeless(whole)
    assert same_bits(resumed, whole)


def test_lines_older_than_every_checkpoint_have_to_be_put_back(whole, tmp_path, capsys):
    run = Path(shutil.copytree(whole.path, tmp_path / "run"))
    before = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    (run / "metrics.jsonl").write_text("")
    assert cli.main(["resume", str(run), "--rounds", "9"]) == 2
    assert "has 0 lines, expected one for each" in capsys.readouterr().err
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == before


def test_files_of_a_run_that_are_not_theirs_are_refused(whole, tmp_path):
    run = Path(shutil.copytree(whole.path, tmp_path / "run"))
    facts = json.loads((run / "adapter" / "run.json").read_text())
    del facts["names"]
    (run / "adapter" / "run.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="do not belong together"):
        ffa.load_run(run).predict(["a fine film"])
    written = (whole.path / "adapter" / "run.json").read_text()
    (run / "adapter" / "run.json").write_text(written.replace("layers.1", "layers.l"))
    with pytest.raises(InputError, match=r"no leaf 'layers\.1"):
        ffa.load_run(run).predict(["a fine film"])
    headless = json.loads(written) | {"head": None}
    (run / "adapter" / "run.json").write_text(json.dumps(headless))
    with pytest.raises(InputError, match=r"no leaf 'head\."):
        ffa.load_run(run).predict(["a fine film"])
    fewer = json.loads(written)
    fewer["class_names"] = fewer["class_names"][:1]
    (run / "adapter" / "run.json").write_text(json.dumps(fewer))
    with pytest.raises(InputError, match="a head of 2 classes for 1 names"):
        ffa.load_run(run).predict(["a fine film"])
    (run / "privacy.json").write_text("[" * 20_000)
    with pytest.raises(InputError, match=r"privacy\.json is not a JSON object"):
        ffa.load_run(run).privacy  # noqa: B018


def test_debug_nans_stops_at_the_first_client_that_diverges(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_DEBUG_NANS", "false")
    command = (
        "run --model.name tiny --model.max-tokens 12 --data.name synthetic --data.max-examples 240"
    )
    command += " --batch-size 8 --privacy.mechanism none --optimizer.learning-rate 1e30 --rounds 2"
    try:
        code = cli.main([*command.split(), "--debug-nans", "--out", str(tmp_path / "run")])
    finally:
        jax.config.update("jax_debug_nans", False)
    assert code == errors.FAILED
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--debug-nans stopped the run: in round 1, client 'site_" in line
    assert "Lower optimizer.learning_rate" in line
