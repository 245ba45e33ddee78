"""The study's own code; importing it registers the study's data sets and suites with `cibr`."""

from cibr_book import glyph_benchmarks, suites

__all__ = ["glyph_benchmarks", "suites"]
