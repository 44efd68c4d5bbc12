"""What leaves the machine: what is taken out of it, the list of its parts, and the layouts of other servers.

Knows no run and no recipe.

May import: ``runtime``, ``runtime/pictures``, ``runtime/backends``, ``runtime/bundles``.
"""
