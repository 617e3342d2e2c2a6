"""What happens while a model trains: metrics, guards, and what a run prints and records."""
