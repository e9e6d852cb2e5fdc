"""Load tests over HTTP that say which tier a host meets, and how many robots it carries."""
