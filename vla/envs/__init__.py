"""The simulated robot that produces demonstrations and consumes served actions."""
