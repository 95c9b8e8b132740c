"""Trainings on a Ray cluster: the same jobs, in the same processes, on other machines."""
