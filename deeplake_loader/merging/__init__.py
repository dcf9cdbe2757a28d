"""What branches did since they parted: diffs, merges, what a commit changed, and what nothing reaches any more."""
