"""The zoo: many architectures through everything that a recipe can ask for, and how far each one went.

    PYTHONPATH=tests python -m zoo --out zoo.json [--only mobilenet] [--jobs 2]

Each architecture has a process of its own, which runs the stages that a user's `edgekiln run` runs, on scikit-learn's
digits. Rows are kept in the JSON as they come, so that a zoo that was interrupted goes on where it was.
"""
