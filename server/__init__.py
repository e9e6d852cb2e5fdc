"""Starts, watches and stops one TorchServe process."""
