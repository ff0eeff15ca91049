"""Whether a registry holds every invariant that stored bytes can violate."""
