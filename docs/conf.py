"""Sphinx's settings: the pages beside this file, reference out of docstrings. Built by ``make docs``."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from ffalora_jax import __version__  # noqa: E402

project = "ffalora_jax"
author = "The ffalora_jax developers"
copyright = f"2026, {author}"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "made_pages",
    "outside_links",
    "still_math",
]
exclude_patterns = ["_build", "search.md"]  # shown as searches.md
html_math_renderer = "mathml"  # the pages ask no other server for anything

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
nitpick_ignore_regex = [
    (r"py:.*", r"(?!ffalora_jax).*"),  # other libraries' pages are not asked for
    (r"py:.*", r"ffalora_jax\.(loop|round|run_folder|types|data\.ImageSource|registry).*"),
]

html_theme = "furo"
html_title = f"ffalora_jax {release}"
html_copy_source = False
html_show_sphinx = False
