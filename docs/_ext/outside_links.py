"""Files of the repository as pages of the site, and links that leave ``docs/``.

The sources are written for whoever reads them in the repository, where ``../SECURITY.md`` is right. Here such
a link leads to the page that shows the file, else to the file itself; a link to a folder is none.
"""

import os
import re
from pathlib import Path

SHOWN = {
    "readme.md": "README.md",
    "security.md": "SECURITY.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "searches.md": "docs/search.md",  # search.html is the site's own search
}
"""Page -> the file of the repository that stands in its place."""
PAGES = {file: page for page, file in SHOWN.items()}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def _rewritten(app, name: str, source: list[str]) -> None:
    pages = Path(app.srcdir).resolve()
    page = f"{name}.md"
    base = (pages / page).parent
    if page in SHOWN:
        file = pages.parent / SHOWN[page]
        base = file.parent
        app.env.note_dependency(str(file))
        source[0] = file.read_text(encoding="utf-8")
    source[0] = LINK.sub(lambda found: _link(found, base, (pages / page).parent, pages), source[0])


def _link(found: re.Match, base: Path, here: Path, pages: Path) -> str:
    mark, text, target, anchor = found[1], found[2], found[3], found[4] or ""
    path = (base / target).resolve()
    if path.is_dir():
        return text
    if path.is_relative_to(pages.parent) and str(path.relative_to(pages.parent)) in PAGES:
        path = pages / PAGES[str(path.relative_to(pages.parent))]
    return f"{mark}[{text}]({os.path.relpath(path, here)}{anchor})"


def setup(app) -> dict[str, bool]:
    """Turns links while sources are read."""
    app.connect("source-read", _rewritten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
