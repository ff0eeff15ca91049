"""What connects the registry to other packages. Each module loads the one package that it is named after."""
