"""Every way to make a policy smaller or faster, measured alike: `python -m bench compress`."""
