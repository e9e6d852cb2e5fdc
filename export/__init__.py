"""Turns a checkpoint into a verified, self-describing TorchServe archive."""
