"""What answers: which engine of a bundle is loaded, the classifier around it, batches, streams and reloads.

May import every other wing of the runtime. Knows nothing of how an engine was made or judged.
"""
