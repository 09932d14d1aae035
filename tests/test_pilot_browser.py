"""The pilot's page in a real browser: both languages, narrow and wide, light and dark, and on paper."""

import io
import os
import shutil

import pytest

from ffalora_jax.config_pilot import LANGUAGES
from ffalora_jax.pilot_page import write_page
from tests.pilot_examples import barely_begun, example, with_links
from tests.test_report_browser import BROWSER, needs_browser

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-core")

pytestmark = [needs_browser, pytest.mark.thorough]
EXAMPLES = {"whole": example, "links": with_links, "begun": barely_begun}
CROWDED = {f"a site whose name is long {k}": 100.0 * k for k in range(12)}


def crowded():
    found = with_links()
    site = found["sites"][0]
    found["sites"] = [site | {"name": name} for name in CROWDED]
    found["clock"] |= {"seconds": CROWDED, "slowest": max(CROWDED, key=lambda name: CROWDED[name])}
    return found


@pytest.fixture(scope="module")
def browser():
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=shutil.which(str(BROWSER)), args=flags)
        yield opened
        opened.close()


def shown(browser, found, language, place, width=1280, scheme="light"):
    """Opens a page; returns it and what its console said."""
    write_page(found, place / "pilot.html", language)
    view = {"width": width, "height": 900}
    page, said = browser.new_page(viewport=view, color_scheme=scheme), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(request.url))
    page.goto((place / "pilot.html").as_uri())
    return page, said


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
@pytest.mark.parametrize("name", [*EXAMPLES, "crowded"])
def test_nothing_overflows_nothing_complains_everybody_can_read(
    browser, name, language, width, scheme, tmp_path
):
    found = (EXAMPLES | {"crowded": crowded})[name]()
    page, said = shown(browser, found, language, tmp_path, width, scheme)
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    serious = [
        one["id"]
        for one in axe.Axe().run(page).response["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert serious == []
    assert said == []
    page.close()


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", [*EXAMPLES, "crowded"])
def test_the_page_is_two_sheets_of_a4_and_nothing_is_cut_off(browser, name, language, tmp_path):
    pypdf = pytest.importorskip("pypdf")
    found = (EXAMPLES | {"crowded": crowded})[name]()
    page, _ = shown(browser, found, language, tmp_path)
    pdf = pypdf.PdfReader(io.BytesIO(page.pdf(prefer_css_page_size=True)))
    assert len(pdf.pages) == 2
    width, height = (float(size) for size in pdf.pages[0].mediabox[2:])
    assert (round(width), round(height)) == (595, 842)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 703, "height": 1000})  # A4 less its margins, at 96 dpi
    assert not page.evaluate(
        "[...document.querySelectorAll('.scroll')].some(e => e.scrollWidth > e.clientWidth + 1)"
    )
    page.close()


def test_the_same_checks_find_faults_where_there_are_some(browser, tmp_path):
    page, _ = shown(browser, example(), "en", tmp_path, 360)
    page.evaluate(
        "document.querySelector('main').innerHTML += '<img src=x><p style=\"width:900px;color:#eee;"
        "background:#fff\">wide and pale</p>'"
    )
    assert page.evaluate("document.documentElement.scrollWidth > innerWidth")
    found = {one["id"] for one in axe.Axe().run(page).response["violations"]}
    assert {"image-alt", "color-contrast"} <= found
    page.close()
