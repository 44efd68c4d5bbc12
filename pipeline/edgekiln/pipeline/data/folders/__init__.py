"""Pictures in folders that are named after their classes: what is there, how it is meant, and the samples of it.

``tree`` lists, by the rule of ``runtime/pictures/finding``; ``layout`` tells splits from classes, or refuses with the
tree drawn; ``reading`` makes samples. None of them opens a picture: ``values`` alone does, of some.
"""
