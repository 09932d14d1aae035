"""A pilot's page: two sheets of A4 for people who decide, in their language; it loads nothing."""

import warnings
from importlib import resources
from pathlib import Path
from typing import Any

from ffalora_jax.cache import write_atomically
from ffalora_jax.pilot_page import advice, figures, sentences
from ffalora_jax.pilot_page.texts import Texts


def write_page(found: dict[str, Any], out: Path, language: str) -> None:
    """Writes the page; everything on it comes from ``found``, and text is escaped."""
    import jinja2

    t = Texts(language)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    folder = resources.files("ffalora_jax.pilot_page")
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    report = resources.files("ffalora_jax.report") / "style.css"
    with (
        warnings.catch_warnings()
    ):  # the page's own font has the characters; only widths are guessed
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        drawn = {"privacy": figures.by_epsilon(found, t), "tornado": figures.tornado(found, t)}
    page = template.render(
        t=t,
        style=report.read_text(encoding="utf-8")
        + (folder / "style.css").read_text(encoding="utf-8"),
        found=found,
        made_of=_made_of(found, t),
        things=sentences.things(found, t),
        result=sentences.recommendation(found, t),
        tiles=sentences.tiles(found, t),
        privacy=sentences.privacy(found, t),
        traffic=sentences.traffic(found, t),
        clock=sentences.clock(found, t),
        sites=sentences.sites(found, t),
        base=sentences.percent(found["sensitivity"][0]["base"]) if found["sensitivity"] else "",
        risk=advice.risk(found, t),
        limits=advice.limits(found, t),
        steps=advice.next_steps(found, t),
        figures=drawn,
        rules=t.table["rules"],
    )
    write_atomically(out, page)


def _made_of(found: dict[str, Any], t: Texts) -> str:
    about = found["about"]
    return t(
        "made_of",
        data=about["data"],
        sites=about["sites"],
        runs=found["runs"],
        minutes=f"{found['asked']['seconds'] / 60:.1f}",
        model=about["model"],
    )
