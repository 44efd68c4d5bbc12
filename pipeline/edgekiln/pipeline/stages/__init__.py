"""What each kind of stage needs, what it makes, and whom it calls: the plan of a run, as data.

May import the recipe and the doors of what it asks for fingerprints and versions. Does no stage's work: that stands in
the wings, and is named here as ``module:function``.
"""
