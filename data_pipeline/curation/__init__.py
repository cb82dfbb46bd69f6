"""What curate is made of: filters, edits, and the judgement of rows."""
