"""From a backbone and prepared pictures to a checkpoint: weights, heads, steps, rates, and how a training is resumed.

May import ``recipe``, ``data``, the ground's ``capacity`` and the export's model. Knows no engine and no stage.
"""
