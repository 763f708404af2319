"""One training over several devices, and many trainings over several processes."""
