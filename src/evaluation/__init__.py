"""Evaluation: metrics with intervals, and the records that tables are made of."""
