"""Programs that measure; what they write lies under results/."""
