"""The notebooks: run as a reader would, from a clean kernel, and written back with small outputs.

python -m tests.notebook_files [NAME ...]     runs them and writes what they show into the files
"""

import base64
import io
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parents[1] / "notebooks"
SECONDS = 600
COLORS = 255
"""Of a picture as it is kept: enough for lines of a single point's width, at a third of the size."""


def names() -> list[str]:
    """Returns the notebooks, by name."""
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def read(name: str) -> nbformat.NotebookNode:
    """Reads a notebook and checks it against its format."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    return notebook


def executed(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Runs all cells in a folder, in order, in a kernel of their own; an error in a cell is raised."""
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    )
    here = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    environment = {name: one for name, one in os.environ.items() if name != "MPLBACKEND"}
    return client.execute(env={**environment, "PYTHONPATH": here})  # this checkout's package


def tidied(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Leaves what a reader wants: what cells print and show, in one piece, and nothing of this machine."""
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell["metadata"] = {}
        if cell.cell_type == "code":
            cell["outputs"] = _whole_streams(cell.outputs)
            for one in cell.outputs:
                if "image/png" in one.get("data", {}):
                    one["data"].pop("text/plain", None)
                    one["data"]["image/png"] = in_few_colors(one["data"]["image/png"])
                if "metadata" in one:
                    one["metadata"] = {}
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def _whole_streams(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Leaves errors' text away, and joins what was printed in one go but came in pieces."""
    whole = []
    for one in (one for one in outputs if one.get("name") != "stderr"):
        if whole and one.output_type == "stream" == whole[-1].output_type:
            whole[-1]["text"] += one["text"]
        else:
            whole.append(one)
    return whole


def in_few_colors(picture: str) -> str:
    """Returns a picture (PNG, base64) with a palette of its own."""
    small = io.BytesIO()
    whole = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    whole.quantize(COLORS).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode() + "\n"


def main(wanted: list[str]) -> None:
    """Runs notebooks and writes them back."""
    with tempfile.TemporaryDirectory() as kept:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", kept)
        for name in wanted or names():
            with tempfile.TemporaryDirectory() as folder:
                notebook = tidied(executed(read(name), Path(folder)))
            nbformat.write(notebook, FOLDER / f"{name}.ipynb")
            size = (FOLDER / f"{name}.ipynb").stat().st_size
            print(f"{name}: {size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
