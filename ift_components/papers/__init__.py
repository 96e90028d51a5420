"""Figures with captions, and the sentences that mention them, out of scientific articles (JATS XML, PDF)."""
