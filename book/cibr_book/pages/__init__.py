"""The figures of the book and the parts of its pages."""
