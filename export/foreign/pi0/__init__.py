"""pi0, pi0.5 and SmolVLA for inference, in torch alone: an `eager` archive carries this package."""
