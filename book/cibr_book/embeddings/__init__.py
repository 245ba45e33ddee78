"""What an embedding retains: its geometry, probes and attribution."""

__all__: list[str] = []
