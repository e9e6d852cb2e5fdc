"""pi0 for inference, in torch alone: an `eager` archive carries this package."""
