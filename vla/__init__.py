"""Makes trained policies: simulated robot, demonstrations, models, training, evaluation. Never shipped."""
