"""The figures of the book and the parts of its pages."""

__all__: list[str] = []
