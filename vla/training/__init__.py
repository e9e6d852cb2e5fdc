"""Training: demonstrations in, a checkpoint folder out."""
