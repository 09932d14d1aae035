"""One self-contained HTML page about one run or several: the answer first, then how it came about."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from ffalora_jax.cache import write_atomically
from ffalora_jax.errors import InputError
from ffalora_jax.experiment_file import settings
from ffalora_jax.loaded_run import Run
from ffalora_jax.report import comparing, figures, times, words


def write_report(runs: Sequence[Run], out: str | Path) -> Path:
    """Writes the page and returns its path; the first run is shown in full, the others are compared.

    Everything on it comes from the run folders. Text is escaped; the page loads nothing.

    Raises:
        InputError: no run, or one without a finished round.
    """
    import jinja2

    if not runs:
        raise InputError("Expected at least one run folder to report on.")
    for run in runs:
        if not run.metrics:
            raise InputError(f"The run in {run.path} has no finished round yet: nothing to report.")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {
        "percent": words.percent,
        "bytes": words.size,
        "seconds": words.duration,
        "number": words.number,
        "small": words.small,
    }
    folder = resources.files("ffalora_jax.report")
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    first = runs[0]
    page = template.render(
        style=(folder / "style.css").read_text(encoding="utf-8"),
        title=first.experiment.name,
        answer=words.answer(first),
        things=words.things(first),
        success=words.success(first),
        lesson=comparing.comparison(runs) if len(runs) > 1 else "",
        comparable=comparing.comparable(runs),
        noise_from_budget=first.experiment.privacy.noise_multiplier is None,
        rows=[words.row(run) for run in runs],
        sites=words.sites(first),
        figures=figures.of_run(first),
        rates=times.RATES,
        on_lines=times.on_lines(runs),
        clock=times.clock(first),
        compared=figures.accuracy_of_runs(runs) if len(runs) > 1 else None,
        privacy=first.privacy,
        environment=first.folder.read_json("environment.json"),
        settings=_settings(first.experiment.replace(rounds=first.privacy["planned_rounds"])),
        communication=first.communication,
        clipped_what=words.units(first),
        shares_noise=first.experiment.privacy.mechanism == "dp_sgd_secagg",
        last=first.metrics[-1],
        partition=first.folder.read_json("partition.json"),
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page)
    return out


def _settings(experiment) -> list[tuple[str, str, str]]:
    """Returns (name, value, meaning) of every setting; the secret noise seed is never among them."""
    found = []
    for name, setting in settings(type(experiment)).items():
        value = getattr(experiment, name)
        if setting.help:
            if name != "noise_seed":
                found.append((name, "" if value is None else str(value), setting.help))
        else:
            inner = settings(type(value))
            found += [
                (
                    f"{name}.{key}",
                    "" if getattr(value, key) is None else str(getattr(value, key)),
                    one.help,
                )
                for key, one in inner.items()
            ]
    return found
