"""What the training step runs on; the step knows only the verbs of ``base.Engine``."""
