"""Finding the DSPy modules of the workers' Python environment, believing none of what it says."""
