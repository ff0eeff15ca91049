"""The demo: the main job on real input, with everything as its own process."""
