"""Files of weights: ours, those of the published code, and those that come with the package."""
