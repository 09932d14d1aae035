"""One search by several workers: each trial once, and a dead worker's trial is taken over."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ffalora_jax.config import Experiment
from ffalora_jax.config_search import SearchConfig, space_of
from ffalora_jax.errors import InputError
from ffalora_jax.shared_search import SharedSearch
from tests.test_sweep import FLAGS, RATE

pytest.importorskip("optuna")
POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


def worker(storage, strategy="random", trials=6, text="same", rounds=9, **settings):
    over = {RATE: "0.01..1 log"} if strategy != "grid" else {RATE: [0.1, 0.2, 0.3]}
    given = {"storage": str(storage), "strategy": strategy, "over": over, "trials": trials}
    search = SearchConfig(**given, **settings)
    return SharedSearch(search, space_of(search, Experiment()), "name", text, rounds)


def advance_to(made, score=lambda trial, rounds: 0.5):
    def advance(trial, rounds):
        made.append((trial.number, rounds, trial.settings[RATE]))
        return score(trial, rounds), [{"row": {"trial": trial.number}}]

    return advance


@pytest.mark.parametrize("strategy", ["grid", "random", "bayesian"])
def test_workers_share_the_trials_and_know_all_of_them(tmp_path, strategy):
    one, two = (worker(tmp_path / "journal", strategy, 3) for _ in range(2))
    first, second = [], []
    one.work(advance_to(first))
    two.work(advance_to(second))
    assert [number for number, _, _ in first] == [0, 1, 2]
    assert second == []
    if strategy == "grid":
        assert [rate for _, _, rate in first] == [0.1, 0.2, 0.3]
    assert list(two.known()) == [0, 1, 2]


def test_a_silent_workers_trial_is_taken_over_with_its_settings(tmp_path):
    dead = worker(tmp_path / "journal", trials=2, stale_seconds=0.5)
    lost = dead._begun()  # and never told
    made, alive = [], worker(tmp_path / "journal", trials=2, stale_seconds=0.5)
    time.sleep(0.6)
    alive.work(advance_to(made))
    assert sorted(number for number, _, _ in made) == [0, 1]
    assert (0, 9, lost.what.settings[RATE]) in made


def test_what_was_begun_in_another_folder_is_counted_and_in_the_same_one_is_not(tmp_path):
    for number, (before, after, lost) in enumerate(
        [("here", "there", {0: 1}), ("here", "here", {})]
    ):
        dead, alive = (
            worker(tmp_path / f"journal{number}", trials=1, stale_seconds=0.2) for _ in range(2)
        )
        dead._place = before
        dead._begun()
        time.sleep(0.3)
        alive.work(advance_to([]), after)
        assert alive.lost() == lost


def test_an_attempt_that_was_lost_elsewhere_is_not_outlived_by_a_shorter_one(tmp_path):
    """It is charged as much as the attempt after it, which must have come as far, then."""
    settings = {"keep": 3, "first_rounds": 1, "stale_seconds": 0.2}
    first, dead, alive = (worker(tmp_path / "journal", "halving", 9, **settings) for _ in range(3))
    for _ in range(6):  # all better
        first._run(first._begun(), advance_to([], lambda trial, rounds: 1.0))
    dead._place = "here"
    begun = dead._begun()
    begun.trial.report(0.0, 1)  # then on towards round 3, and gone
    time.sleep(0.3)
    made = []
    alive._place = "there"
    alive._lose((mine := alive._taken_over()).trial)
    alive._run(mine, advance_to(made, lambda trial, rounds: 0.0))
    assert [rounds for number, rounds, _ in made if number == begun.what.number] == [1, 3]


def test_a_trial_of_a_worker_that_says_it_is_alive_is_left_to_it(tmp_path):
    busy = worker(tmp_path / "journal", trials=1, stale_seconds=0.5)
    mine = busy._begun()
    other = worker(tmp_path / "journal", trials=1, stale_seconds=0.5)
    with busy._alive(mine.trial):
        time.sleep(1.2)
        assert other._taken_over() is None


def test_halving_prunes_what_is_behind(tmp_path):
    made = []
    shared = worker(tmp_path / "journal", "halving", 9, keep=3, first_rounds=1)
    shared.work(advance_to(made, lambda trial, rounds: -trial.number))
    rounds = {number: done for number, done, _ in made}
    assert rounds[0] == 9  # the best from the first on
    assert sum(done < 9 for done in rounds.values()) >= 5


def test_a_storage_with_another_search_of_that_name_is_refused(tmp_path):
    worker(tmp_path / "journal")
    with pytest.raises(InputError, match="another search"):
        worker(tmp_path / "journal", text="other")


def test_a_storage_that_cannot_be_opened_is_said_without_its_password():
    with pytest.raises(InputError) as error:
        worker("postgresql+nothing://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(error.value)
    assert "127.0.0.1" in str(error.value)


@pytest.mark.thorough
def test_three_processes_share_a_journal_and_one_is_killed(tmp_path):
    assert_shared(tmp_path, tmp_path / "journal")


@pytest.mark.slow
@pytest.mark.skipif(POSTGRES is None, reason="no PostgreSQL here (Debian: postgresql)")
def test_three_processes_share_a_postgresql_and_one_is_killed(tmp_path):
    pytest.importorskip("psycopg", reason="no driver here: pip install 'psycopg[binary]'")
    with_postgres(tmp_path, lambda address: assert_shared(tmp_path, address))


def with_postgres(tmp_path, call):
    """Starts a server of its own on loopback, and stops it."""
    data, port = tmp_path / "data", 54321
    data.mkdir()
    as_user = []
    if Path("/root").owner() == Path.home().owner() == "root":  # the server refuses to run as root
        for above in (tmp_path, *tmp_path.parents):
            if above != Path("/tmp").parent and above.owner() == "root":
                above.chmod(above.stat().st_mode | 0o011)
        shutil.chown(data, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]

    def run(program, *arguments):
        called = [*as_user, POSTGRES / program, *map(str, arguments)]
        subprocess.run(called, check=True, stdout=subprocess.DEVNULL, timeout=60)

    run("initdb", "-D", data, "-A", "trust", "-U", "postgres")
    options = f"-p {port} -k {data} -c listen_addresses=127.0.0.1"
    run("pg_ctl", "-D", data, "-o", options, "-l", data / "log", "-w", "start")
    try:
        run("createdb", "-h", "127.0.0.1", "-p", port, "-U", "postgres", "search")
        call(f"postgresql+psycopg://postgres@127.0.0.1:{port}/search")
    finally:
        run("pg_ctl", "-D", data, "-m", "fast", "stop")


def assert_shared(tmp_path, storage):
    """Three workers, of which one is killed when it has a trial; the others end the search."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ffalora_jax.cli", "sweep", *FLAGS, "--strategy", "random"]
    command += ["--over", f"{RATE}=0.1..1:log", "--trials", "6", "--search.stale-seconds", "5"]
    command += ["--storage", str(storage), "--out", str(out)]
    workers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    try:
        see_it_through(workers, out)
    finally:
        for one in workers:
            one.kill()
            one.communicate()


def see_it_through(workers, out):
    end = time.monotonic() + 120
    while not any((out / "runs").glob("*/metrics.jsonl")) and time.monotonic() < end:
        time.sleep(0.05)
    workers[0].kill()
    for one in workers[1:]:
        _, complaints = one.communicate(timeout=240)
        assert one.returncode == 0, complaints
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["trial"] for row in rows] == list(range(6))
    assert all(row["status"] == "done" and row["rounds"] == 4 for row in rows)
    summary = json.loads((out / "summary.json").read_text())
    assert "6 runs composed" in summary["privacy"]["every_run"]["how"]
