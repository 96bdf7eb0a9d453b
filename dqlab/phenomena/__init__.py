"""phenomena."""
