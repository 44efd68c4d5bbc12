"""What transfer learning buys: cells of one recipe by method, size and seed, run through the store, and their result.

May import everything of the pipeline but the command line. Changes no recipe's meaning.
"""
