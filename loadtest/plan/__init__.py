"""How many replicas a fleet needs: a simulation fed with what one host was measured to do."""
