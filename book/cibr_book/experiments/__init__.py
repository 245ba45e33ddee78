"""The runs on glyphs and photos: plans, controls, corruptions, suites, and their tables."""
