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
from ffalora_jax.checkpoint import data_hash
from ffalora_jax.config import Experiment
from ffalora_jax.config_pilot import PilotConfig, default_experiment, load_pilot
from ffalora_jax.errors import InputError
from ffalora_jax.experiment_file import build, with_table
from ffalora_jax.loop import Event, Observer
from ffalora_jax.pilot_audit import audited
from ffalora_jax.pilot_course import METHODS
from ffalora_jax.pilot_found import found
from ffalora_jax.pilot_page import advice, sentences
from ffalora_jax.pilot_page.texts import Texts
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

    @property
    def said(self) -> list[str]:
        """The page's answer, reasons, certainty and next steps, in its language."""
        t = Texts(self.found["asked"]["language"])
        result = sentences.recommendation(self.found, t)
        steps = [f"- {step}" for step in advice.next_steps(self.found, t)]
        return [result["answer"], *result["reasons"], result["certainty"], *steps]


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
    _check_can_be_piloted(experiment)
    experiment = experiment.resolved()
    path = Path(out) if out is not None else free_path(folder_of(experiment.name, "pilots"))
    text = with_table(experiment.replace(noise_seed=None), "pilot", asked)
    is_new = not (path / FILE).is_file()
    if is_new:
        if not _is_half_made(path):
            check_free(path)
        kept = {"secret": rng.fresh_noise_seed(), "given": experiment.noise_seed}
    else:
        kept = json.loads((path / SECRET).read_text())
        _check_same(path, experiment, asked, kept["given"])
    experiment = experiment.replace(noise_seed=kept["given"])
    # What cannot be piloted is refused here, before anything is written.
    going = Piloting(experiment, asked, path, int(kept["secret"]), observe, data, model)
    of_what = {"data": data_hash(going.first.data), "weights": going.first.loaded.fingerprint}
    if is_new:
        _begin(path, kept | of_what, text)
    elif any(kept[name] != one for name, one in of_what.items()):
        raise InputError(
            f"The pilot in {str(path)!r} was begun with other data or weights: give another folder with "
            "--out."
        )
    observe(Event(f"folder {path}"))
    with locked(path / FILE):
        write_atomically(path / FILE, text)  # minutes, language and prices may be others now
        return _through(going)


def page_again(experiment: Experiment, asked: PilotConfig, path: str | Path) -> Pilot:
    """Writes a pilot's page anew from what it found, in another language or at other prices; runs nothing.

    Raises:
        InputError: there is no page yet, it is an older version's, or settings are not the pilot's.
    """
    path = Path(path)
    before = _read(path)
    if not before:
        raise InputError(f"{str(path)!r} has no page yet: `ffalora resume {path}` makes one.")
    given = json.loads((path / SECRET).read_text())["given"]
    _check_same(path, experiment.resolved(), asked, given)
    facts = before | {"asked": before["asked"] | vars(asked)}
    with locked(path / FILE):
        try:
            pilot_page.write_page(facts, path / PAGE, asked.language)
        except KeyError as error:
            raise InputError(
                f"{path / FOUND} is of another version, without {error}: `ffalora resume {path}` makes "
                "it anew."
            ) from None
        write_atomically(path / FOUND, _as_text(facts))
        mine = experiment.resolved().replace(noise_seed=None)  # that lies with the secret
        write_atomically(path / FILE, with_table(mine, "pilot", asked))
    return Pilot(path, facts)


def _is_half_made(path: Path) -> bool:
    """Whether the folder is one whose making was cut off."""
    return path.is_dir() and {file.name for file in path.iterdir()} <= {SECRET}


def _begin(path: Path, kept: dict[str, Any], text: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=_is_half_made(path))
        (path / SECRET).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"Cannot make folder {str(path)!r}: {error.strerror}.") from None
    keep_secret(path / SECRET, kept)
    write_atomically(path / FILE, text)


def _check_can_be_piloted(experiment: Experiment) -> None:
    """Raises InputError where privacy is no epsilon to be kept, or the method is none of those compared."""
    privacy, name = experiment.privacy, experiment.method.name
    if name not in METHODS:
        raise InputError(
            f"A pilot compares {' and '.join(METHODS)}: leave method.name out, got {name!r}."
        )
    if not privacy.is_private or privacy.noise_multiplier is not None:
        found = (
            "'none'" if not privacy.is_private else f"noise_multiplier {privacy.noise_multiplier}"
        )
        raise InputError(
            "A pilot asks what privacy costs, from a budget: set privacy.mechanism and "
            f"privacy.epsilon, got {found}."
        )


def _asked(asked: PilotConfig | dict[str, Any] | None) -> PilotConfig:
    """Returns the table [pilot], which may be given as a dictionary."""
    if asked is None or isinstance(asked, dict):
        return build(PilotConfig, asked or {}, "the pilot", "pilot.")
    return asked


def _check_same(
    path: Path, experiment: Experiment, asked: PilotConfig, noise_seed: int | None
) -> None:
    """Raises InputError where the folder is of another pilot."""
    before, how = load_pilot(path / FILE)
    same = before == experiment.replace(noise_seed=None) and how.quick == asked.quick
    if not same or experiment.noise_seed not in (None, noise_seed):
        raise InputError(
            f"{str(path)!r} holds a pilot of other settings: give another folder with --out, or go on with "
            f"`ffalora resume {path}`."
        )


def _through(going: Piloting) -> Pilot:
    """Asks the questions, and writes what was found after each step that made a run."""
    latest: Pilot | None = None
    before = _read(going.path)
    going.before = before["asked"]["seconds"] if before else 0.0
    audit = before.get("audit")
    try:
        for _ in going.steps():
            if going.fresh:  # else the page of the earlier call stands, which knows more
                latest = _written(going, audit) or latest
        if going.whole and (audit is None or "why" in audit):
            audit = audited(going)
    except KeyboardInterrupt:
        latest = (_written(going, audit) if going.fresh else None) or latest
        raise Interrupted(going.path, (going.path / PAGE).is_file()) from None
    latest = _written(going, audit) or latest
    if latest is None:
        why = next((a.row["why"] for a in going.answers if a.row["why"]), "all of them failed")
        raise InputError(f"No run of this pilot can be made: {why}")
    return latest


def _read(path: Path) -> dict[str, Any]:
    """Returns what an earlier call found; nothing before the first page."""
    file = path / FOUND
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _as_text(facts: dict[str, Any]) -> str:
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"


def _written(going: Piloting, audit: dict[str, Any] | None) -> Pilot | None:
    """Writes pilot.json and the page; returns None before the first run that was made."""
    if all(answer.row["status"] == "refused" for answer in going.answers):
        return None
    text = _as_text(plain(found(going, audit)))
    facts = json.loads(text)  # as whoever reads the file has them
    write_atomically(going.path / FOUND, text)
    pilot_page.write_page(facts, going.path / PAGE, going.asked.language)
    return Pilot(going.path, facts)
