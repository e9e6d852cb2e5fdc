"""The first hop: whole requests within bounds, their arrival stamped, their deadline kept; the drain."""
