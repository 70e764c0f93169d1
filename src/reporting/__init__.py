"""Reporting: run directories and records become tables, figures and one page."""
