"""Running a network on given weights: the plain reference and the executor that is compiled once."""
