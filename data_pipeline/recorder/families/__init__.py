"""The task families, one file for each domain (a second one where a file would grow too long)."""
