"""Finding the DSPy modules of the workers' Python environment. All that it reports is checked."""
