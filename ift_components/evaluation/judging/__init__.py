"""Judges: answers of finished evaluations graded by other language models, and what those grades are worth."""
