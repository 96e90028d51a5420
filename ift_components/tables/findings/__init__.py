"""What finished tables say about the papers' claims, decided by rule: `python -m ift_components.tables.findings`."""
