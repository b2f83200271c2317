"""Models, health, metrics, administration, documentation."""
