"""The study's own code; importing it registers the study's penalties, data sets and suites."""

from cibr_book.experiments import controls, glyph_benchmarks, suites

__all__ = ["controls", "glyph_benchmarks", "suites"]
