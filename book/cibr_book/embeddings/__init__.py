"""What an embedding retains: probes and attribution."""
