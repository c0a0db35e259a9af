"""Looking at data before anything is trained on them: what is wrong, what a stage sees, how long, how many."""
