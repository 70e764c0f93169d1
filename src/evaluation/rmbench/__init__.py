"""RM-Bench (Liu et al. 2024, arXiv:2410.16184): whether a reward tells subtle errors from style."""
