"""Preparation piece by piece: what becomes of a record, shards and their workers, what is measured of the result."""
