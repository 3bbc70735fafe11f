"""The statistics of the history: pure functions over run values. They alone import numpy and scipy.

Next to read: `comparing` (a night against a baseline), `changepoints` (a series through time), `attribution` (what many
series have in common).
"""
