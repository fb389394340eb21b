"""The trainings that the paper's claims compare: planned, run, resumed, judged."""
