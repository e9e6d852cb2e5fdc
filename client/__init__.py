"""The robot's side: a small HTTP client. No torch."""
