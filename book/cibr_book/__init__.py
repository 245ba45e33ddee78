"""The study's own code; importing it registers the study's penalties, data sets and suites."""

import cibr.train  # noqa: F401, first: its help names the penalties of the library
from cibr_book.experiments import controls, glyph_benchmarks, suites

__all__ = ["controls", "glyph_benchmarks", "suites"]
