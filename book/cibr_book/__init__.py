"""The study's own code; importing it registers the study's data sets and suites."""

from cibr_book.experiments import glyph_benchmarks, suites

__all__ = ["glyph_benchmarks", "suites"]
