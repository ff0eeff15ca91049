"""Connections to other packages. Each module loads only the package that it is named after."""
