"""Diagnostics of the papers: what stands behind a figure or table that no benchmark measures."""
