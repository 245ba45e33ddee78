"""The runs on glyphs and photos: plans, controls, corruptions, suites, and their tables."""

__all__: list[str] = []
