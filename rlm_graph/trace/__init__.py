"""What a run shows of itself: events while it works, a trajectory on file, and what is made of one afterwards."""
