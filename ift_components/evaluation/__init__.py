"""Evaluation: prompts, generation, parsing and metrics of multiple-choice questions."""
