"""Arena-Hard v0.1: verdicts, battles, scores and the benchmark itself."""
