"""Tests of the benchmarks: their entry points, judges, and scores of stored files."""
