"""The miniature: how it is pretrained to follow instructions, what it is asked, and the demonstration that runs on it."""
