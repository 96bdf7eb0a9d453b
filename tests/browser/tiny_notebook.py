"""A notebook with one of each thing the browser tests touch."""

from pathlib import Path

import nbformat

TINY = "tiny.ipynb"
EXPLORER = """
import io
import ipywidgets as widgets
from matplotlib.figure import Figure

def draw(bits):
    figure = Figure(figsize=(3, 2))
    figure.subplots().stem(range(2**bits))
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()

bits = widgets.IntSlider(3, 1, 6, description="bits", continuous_update=False)
preset = widgets.Button(description="one bit")
picture = widgets.Image(value=draw(3))
bits.observe(lambda change: setattr(picture, "value", draw(change.new)), "value")
preset.on_click(lambda _: setattr(bits, "value", 1))
widgets.VBox([preset, bits, picture])
"""
PLOT = """
from IPython.display import display

figure = {"data": [{"y": [1, 3, 2], "type": "scatter"}], "layout": {"height": 240}}
pixel = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)
data = {"application/vnd.plotly.v1+json": figure, "image/png": pixel, "text/plain": "peaks"}
display(data, raw=True, metadata={"image/png": {"width": 400, "height": 240}})
"""
ANSWER = "def levels(bits):\n    raise NotImplementedError()"
CHECK = """
try:
    print("correct" if levels(4) == 16 else "not yet")
except NotImplementedError:
    print("not attempted")
"""


def write(path: Path) -> None:
    """Cells: 0 title, 1 explorer, 2 plot, 3 answer, 4 check."""
    code = [EXPLORER, PLOT, ANSWER, CHECK]
    cells = [nbformat.v4.new_markdown_cell("# Tiny")]
    cells += [nbformat.v4.new_code_cell(source.strip()) for source in code]
    cells[1].metadata.tags = ["explorer"]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
