"""A pilot: a small study before a decision, in one folder, with a page for people who decide.

pilots/NAME/    pilot.toml  secret.json (owner only)  runs/NUMBER-QUESTION/ (each a whole run folder)
                pilot.json  pilot.html
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from ffalora_jax import pilot_page, rng
from ffalora_jax.cache import write_atomically
from ffalora_jax.config import Experiment
from ffalora_jax.config_pilot import PilotConfig, default_experiment, load_pilot
from ffalora_jax.errors import InputError
from ffalora_jax.experiment_file import build, with_table
from ffalora_jax.loop import Event, Observer
from ffalora_jax.pilot_audit import audited
from ffalora_jax.pilot_found import found
from ffalora_jax.piloting import Piloting
from ffalora_jax.run_folder import check_free, keep_secret, locked, plain
from ffalora_jax.simulation import folder_of, free_path

FILE, SECRET, FOUND, PAGE = "pilot.toml", "secret.json", "pilot.json", "pilot.html"


class Pilot(NamedTuple):
    """What a pilot found so far."""

    path: Path
    found: dict[str, Any]
    """All figures of the page."""

    @property
    def page(self) -> Path:
        """The page for people who decide."""
        return self.path / PAGE


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; what was done is saved, and the page is of it."""

    def __init__(self, path: Path, has_page: bool):
        page = f"the page {path / PAGE} is of what there is" if has_page else "too early for a page"
        super().__init__(f"stopped; {page}; go on with `ffalora resume {path}`")


def pilot(
    experiment: Experiment | None = None,
    asked: PilotConfig | dict[str, Any] | None = None,
    data: Any = None,
    *,
    model: nnx.Module | None = None,
    out: str | Path | None = None,
    observe: Observer = lambda event: None,
) -> Pilot:
    """Makes a pilot, or goes on with one, for as long as it may take.

    The most important questions come first, and after each step the page is written anew, so that it may be
    stopped at any time. Each run has noise of its own, from the pilot's secret.

    Args:
        experiment: what is piloted; left out, that of `make demo`.
        asked: minutes, language and prices.
        data: as in ``simulate``.
        model: as in ``simulate``.
        out: folder; left out, ``pilots/NAME``, numbered if that exists.
        observe: is told how many runs have ended.

    Raises:
        InputError: something given cannot be used, no privacy to pilot, or no run can be made.
        KeyboardInterrupt: Ctrl-C; what was done is saved.
    """
    experiment = default_experiment() if experiment is None else experiment
    asked = _asked(asked)
    if not experiment.privacy.is_private or experiment.privacy.epsilon is None:
        raise InputError(
            "A pilot asks what privacy costs: expected a budget, privacy.mechanism and privacy.epsilon."
        )
    path = Path(out) if out is not None else free_path(folder_of(experiment.name, "pilots"))
    text = with_table(experiment.replace(noise_seed=None), "pilot", asked)
    is_new = not (path / FILE).is_file()
    if is_new:
        check_free(path)
        kept = {"secret": rng.fresh_noise_seed(), "given": experiment.noise_seed}
    else:
        _check_same(path, experiment, asked)
        kept = json.loads((path / SECRET).read_text())
    experiment = experiment.replace(noise_seed=kept["given"])
    # What cannot be piloted is refused here, before anything is written.
    going = Piloting(experiment, asked, path, int(kept["secret"]), observe, data, model)
    if (path / FOUND).is_file():
        going.before = json.loads((path / FOUND).read_text())["asked"]["seconds"]
    if is_new:
        path.mkdir(parents=True)
        keep_secret(path / SECRET, kept)
        write_atomically(path / FILE, text)
    observe(Event(f"folder {path}"))
    with locked(path / FILE):
        write_atomically(path / FILE, text)  # minutes, language and prices may be others now
        return _through(going)


def _asked(asked: PilotConfig | dict[str, Any] | None) -> PilotConfig:
    """Returns the table [pilot], which may be given as a dictionary."""
    if asked is None or isinstance(asked, dict):
        return build(PilotConfig, asked or {}, "the pilot", "pilot.")
    return asked


def _check_same(path: Path, experiment: Experiment, asked: PilotConfig) -> None:
    """Raises InputError where the folder is of another pilot."""
    before, how = load_pilot(path / FILE)
    if before != experiment.replace(noise_seed=None) or how.quick != asked.quick:
        raise InputError(
            f"{str(path)!r} holds a pilot of other settings: give another folder with --out, or go on with "
            f"`ffalora resume {path}`."
        )


def _through(going: Piloting) -> Pilot:
    """Asks the questions, and writes what was found after each step."""
    latest: Pilot | None = None
    try:
        whole = False
        for whole in going.steps():
            latest = _written(going, whole, None) or latest
        if latest is None:
            why = next((a.row["why"] for a in going.answers if a.row["why"]), "all of them failed")
            raise InputError(f"No run of this pilot can be made: {why}")
        audit = audited(going) if whole else None
        return _written(going, whole, audit) or latest
    except KeyboardInterrupt:
        latest = _written(going, False, None) or latest
        raise Interrupted(going.path, latest is not None) from None


def _written(going: Piloting, whole: bool, audit: dict[str, Any] | None) -> Pilot | None:
    """Writes pilot.json and the page; returns None before the first run that was made."""
    if all(answer.row["status"] == "refused" for answer in going.answers):
        return None
    text = json.dumps(plain(found(going, whole, audit)), indent=2, ensure_ascii=False)
    facts = json.loads(text)  # as whoever reads the file has them
    write_atomically(going.path / FOUND, text + "\n")
    pilot_page.write_page(facts, going.path / PAGE, going.asked.language)
    return Pilot(going.path, facts)
