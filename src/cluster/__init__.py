"""SLURM: resolved tasks, the options of a submission, sbatch, and the states of jobs."""
