"""Reference pages in Markdown, from the code itself: click's commands, the recipe's models, the runtime's docstrings.

``PYTHONPATH=tests python -m reference recipe`` prints one; ``--into docs/recipe.md`` replaces what lies between that
file's two marks, and leaves the rest to people. ``make docs`` does it for all, and a test fails where a page is stale.
"""
