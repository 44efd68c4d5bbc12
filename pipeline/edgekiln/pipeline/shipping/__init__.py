"""What leaves the machine: what is taken out of it, the list of its parts, the layouts of other servers, and a
small server of its own.

Knows no run and no recipe.

May import: ``runtime``, ``runtime/pictures``, ``runtime/backends``, ``runtime/bundles``,
``runtime/serving``.
"""
