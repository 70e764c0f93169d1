"""MT-Bench: questions and references, the judge's prompts, ratings and their means."""
