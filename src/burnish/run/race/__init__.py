"""A race of models and methods under one clock, in the order in which it is run.

arms    a model with a method, and what is known of it; the leaderboard
state   the race as it stands
frozen  every network's frozen heads
rounds  short trainings of all that could still win, then longer ones of the better half
tested  one look at the test images for those that are left
"""
