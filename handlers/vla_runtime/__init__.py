"""Runs an exported Vision-Language-Action policy: no server, no HTTP, no training code."""
