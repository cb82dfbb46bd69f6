"""What lies in the tests/ of every task: scripts that are copied there as they are."""
