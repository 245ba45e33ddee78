"""What an embedding retains: probes and attribution."""

__all__: list[str] = []
