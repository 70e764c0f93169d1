"""lm-eval's tasks on a run: which tasks and from where, the run behind lm-eval's interface, results, logs re-scored."""
