"""What leaves the machine: what is taken out of it, the list of its parts, and the layouts of other servers.

May import the runtime. Knows no run and no recipe.
"""
