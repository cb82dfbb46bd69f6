"""jaxterm: trains terminal agents. See README.md for the way of the data and the commands."""
