"""The histogram of document lengths. Apart from the report: matplotlib takes half a second to import. D documents."""

import io
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from megadeberta.storage import write_file

HISTOGRAM = "lengths.png"


def plot_lengths(folder: Path, lengths: np.ndarray) -> None:
    """Write ``lengths.png``: how many documents have how many tokens, in logarithmic bins.

    Args:
        lengths: ``[D]`` tokens of each document, at least one.

    Raises:
        StorageError: the file system refused.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    edges = np.unique(np.geomspace(1, max(int(lengths.max()), 2) + 1, 50).round())
    axes.hist(lengths, bins=edges.tolist(), color="tab:blue")
    axes.axvline(float(np.median(lengths)), color="tab:orange", label=f"median {np.median(lengths):.0f}")
    axes.set(xscale="log", xlabel="tokens a document", ylabel="documents", title=f"{len(lengths)} documents")
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    write_file(folder / HISTOGRAM, image.getvalue())
