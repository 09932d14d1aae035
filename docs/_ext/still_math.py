"""Formulas as MathML, written when the pages are built: no script, font or server is asked for them."""

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

ROWS = re.compile(r"\\begin\{(aligned|split)\}(.*?)\\end\{\1\}", re.DOTALL)


def _inline(self, node: nodes.math) -> None:
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _block(self, node: nodes.math_block) -> None:
    text = ROWS.sub(r"\\begin{align*}\2\\end{align*}", node.astext())
    formula = tex2mathml(text, as_block=True)
    self.body.append(f'<div class="math" style="margin: 1em 0; overflow-x: auto">{formula}</div>')
    raise nodes.SkipNode


def setup(app) -> dict[str, bool]:
    """Registers the renderer ``mathml``; what it cannot read ends the build."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
