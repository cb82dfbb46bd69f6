"""What plan is made of: curricula, splitting, packing, balance, and the rows on disk."""
