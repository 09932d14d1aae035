"""The notebooks run as they stand, and what they show is small and names no machine."""

import base64
import getpass
import io
import re
import socket
from pathlib import Path

import nbformat
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from ffalora_jax.plots import _axes
from tests import notebook_files

NAMES = notebook_files.names()
MOST_BYTES = 150_000
WANTED = {"bring_your_own", "heterogeneity", "pilot", "privacy", "quickstart", "rank_and_alpha"}
QUICK = {"quickstart", "pilot"}
"""A minute each at most; the others are run by `make test-all`."""
PATHS = re.compile(r"(?<![\w.])/(?:tmp|home|root|work|usr|opt|Users|content|var)/|[A-Z]:\\\\")


@pytest.fixture(params=NAMES)
def notebook(request):
    return notebook_files.read(request.param)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts_of(cell):
    """All that a cell shows, as text; pictures left out."""
    for one in cell.outputs:
        yield one.get("text", "")
        for kind, data in one.get("data", {}).items():
            if not kind.startswith("image/"):
                yield data


def test_all_notebooks_are_there():
    assert set(NAMES) >= WANTED


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_small(name):
    assert (notebook_files.FOLDER / f"{name}.ipynb").stat().st_size < MOST_BYTES


def test_a_notebook_is_short_and_begins_with_what_it_is(notebook):
    assert 8 <= len(notebook.cells) <= 24
    first, second = notebook.cells[:2]
    assert first.source.startswith("# ")
    assert "Open in Colab" in first.source
    assert 'find_spec("ffalora_jax") is None' in second.source
    assert max(len(cell.source.splitlines()) for cell in notebook.cells) <= 36


def test_its_cells_were_run_in_order_from_a_clean_kernel(notebook):
    counts = [cell.execution_count for cell in code_of(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert [cell["id"] for cell in notebook.cells] == [
        f"cell-{i}" for i in range(len(notebook.cells))
    ]
    assert notebook.metadata.kernelspec.name == "python3"


def test_it_shows_pictures_and_no_error_and_no_machine(notebook):
    outputs = [one for cell in code_of(notebook) for one in cell.outputs]
    assert {one.output_type for one in outputs} <= {"stream", "display_data", "execute_result"}
    assert not [one for one in outputs if one.get("name") == "stderr"]
    assert sum("image/png" in one.get("data", {}) for one in outputs) >= 2
    shown = "\n".join(text for cell in code_of(notebook) for text in texts_of(cell))
    assert not PATHS.search(shown)
    assert socket.gethostname() not in shown
    for own in (str(Path.home()), getpass.getuser() + "@"):
        assert own not in shown or own == "/"


def test_its_pictures_are_drawn_by_the_library(notebook):
    """No page of plotting code in a cell: what is drawn is a function of ffa.plot."""
    source = "\n".join(cell.source for cell in code_of(notebook))
    assert "ffa.plot." in source
    assert "pyplot" not in source


def test_a_kept_picture_has_the_colours_of_its_lines():
    figure = Figure(figsize=(5.6, 3.4))
    axes = figure.add_subplot()
    for index in range(len(_axes.COLORS)):
        axes.plot([0, 1, 2], [index, index + 2, index - 1], **_axes.style(index))
    whole = io.BytesIO()
    figure.savefig(whole, format="png")
    picture = base64.b64encode(whole.getvalue()).decode()
    small = base64.b64decode(notebook_files.in_few_colors(picture))
    assert len(small) < len(whole.getvalue()) / 2
    pixels = np.asarray(Image.open(io.BytesIO(small)).convert("RGB")).reshape(-1, 3).astype(int)
    for color in _axes.COLORS:
        wanted = [round(255 * part) for part in to_rgb(color)]
        assert np.abs(pixels - np.array([wanted])).sum(axis=1).min() <= 3


def test_what_came_in_pieces_is_kept_as_one():
    def printed(text: str, name: str = "stdout"):
        return nbformat.v4.new_output("stream", name=name, text=text)

    picture = nbformat.v4.new_output("display_data", data={})
    kept = notebook_files._whole_streams(
        [printed("a\n"), printed("late", "stderr"), printed("b\n"), picture, printed("c\n")]
    )
    assert [one.get("text") for one in kept] == ["a\nb\n", None, "c\n"]


@pytest.mark.parametrize(
    "text", ["/tmp/tmpab/runs", "at /home/me/x", "file:///root/a", "C:\\\\Users\\\\me"]
)
def test_a_path_of_a_machine_is_found(text):
    assert PATHS.search(text)
    assert not PATHS.search("runs/private accuracy 5/6 https://arxiv.org/abs/x and/or")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in NAMES]
)
def test_a_notebook_runs(name, tmp_path):
    """In a folder of its own, from a clean kernel; the kept outputs are of the kinds of the fresh ones."""
    kept = notebook_files.read(name)
    kinds = [[one.output_type for one in cell.outputs] for cell in code_of(kept)]
    fresh = notebook_files.tidied(notebook_files.executed(kept, tmp_path))
    assert [[one.output_type for one in cell.outputs] for cell in code_of(fresh)] == kinds
    assert not list(notebook_files.FOLDER.glob("runs"))
