"""Questions out of captions: a language model writes them, its replies are parsed, and doubtful pairs are left out."""
