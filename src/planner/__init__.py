"""What a run will need of GPUs: memory by what it holds, step time, the nearest change that fits."""
