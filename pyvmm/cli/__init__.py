"""The command line: parsing and printing live here and nowhere else."""
