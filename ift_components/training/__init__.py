"""Training: settings, setup, the loop, and what a run leaves behind."""
