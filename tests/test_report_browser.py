"""Names and texts stay text in a real browser: nothing runs, and no request leaves the page."""

import html
import os
import re
import shutil
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import ffalora_jax as ffa
from ffalora_jax.data import as_dataset
from tests.tiny_runs import tiny

BROWSER = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)
needs_browser = pytest.mark.skipif(
    not BROWSER, reason="No browser: install chromium to run this test."
)
STRICT = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
HOSTILE = (
    "<script>document.title='owned'</script>",
    "\"><img src='/leak/1' onerror=\"document.title='owned'\">",
    "</title></style></table></svg><script src='/leak/2'></script>",
    "<svg onload=\"document.title='owned'\"><image href='/leak/3'/></svg>",
    "<style>@import url(/leak/4); body { background: url(/leak/5) }</style>",
    "<meta http-equiv='refresh' content='0; url=/leak/6'>",
    "<iframe src='/leak/7'></iframe><link rel='stylesheet' href='/leak/8'>",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; \u202e right to left \U0001f600",
)


@contextmanager
def served(page: str, policy: str | None):
    """Serves one page on loopback; hands out its address and the list of what was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if self.path == "/" else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            if policy:
                self.send_header("Content-Security-Policy", policy)
            self.end_headers()
            self.wfile.write(page.encode() if self.path == "/" else b"")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def opened(page: str, policy: str | None, place) -> tuple[str, list[str]]:
    """Opens a page in a browser; returns the document after its scripts ran, and what it asked for."""
    flags = ["--headless", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []
    with served(page, policy) as (address, asked):
        done = subprocess.run(
            [BROWSER, *flags, f"--user-data-dir={place}", address],
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert "<body" in done.stdout, done.stderr[-2000:]
    return done.stdout, [path for path in asked if path not in ("/", "/favicon.ico")]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    count = 40 * len(HOSTILE)
    rows = {
        "text": [f"{HOSTILE[i % len(HOSTILE)]} {i}" for i in range(count)],
        "label": [HOSTILE[i % 2] for i in range(count)],
        "site": [HOSTILE[i // 2 % len(HOSTILE)] for i in range(count)],
    }
    experiment = tiny(rounds=1, name=HOSTILE[2], **{"partition.name": "natural"})
    out = tmp_path_factory.mktemp("hostile") / "run"
    run = ffa.simulate(experiment, as_dataset(rows, client="site"), out=out)
    return run.folder.report.read_text()


@needs_browser
@pytest.mark.thorough
@pytest.mark.parametrize("how", ["strict policy", "as it is", "without any policy"])
def test_hostile_names_stay_text_and_nothing_leaves_the_page(page, how, tmp_path):
    shown = page
    if how == "without any policy":  # escaping alone has to hold
        shown, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
        assert count == 1
    document, asked = opened(shown, STRICT if how == "strict policy" else None, tmp_path)
    assert asked == []
    assert html.escape(HOSTILE[0], quote=False) in document
    assert "owned" not in re.search(r"<title>(.*?)</title>", document, re.S)[1]
    for tag in ("script", "iframe", "img", "link", "base", "form", "object"):
        assert f"<{tag}" not in document


@needs_browser
@pytest.mark.thorough
def test_the_same_texts_unescaped_would_run(tmp_path):
    page = f"<html><head><title>mine</title></head><body>{' '.join(HOSTILE[:5])}</body></html>"
    document, asked = opened(page, None, tmp_path)
    assert "<title>owned</title>" in document
    assert asked
