"""What this host offers to a VMM."""
