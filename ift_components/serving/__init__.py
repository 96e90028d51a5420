"""Serving: an OpenAI-compatible server over this package's own engine, and its page."""
