"""From a source of preferences to prepared pairs, batches and reference log-probs."""
