"""How a network is trained: contracts, losses, optimisers, state."""
