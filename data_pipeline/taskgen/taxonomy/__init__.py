"""The taxonomy of skills, a TOML file a domain, and how combinations are drawn from it."""
