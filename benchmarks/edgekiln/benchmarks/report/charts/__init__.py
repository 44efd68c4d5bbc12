"""Charts as small SVG text. A function takes JSON values and gives one ``<svg>``, or "" where there is nothing to draw.

Written by hand and not by matplotlib: across, places are shares of the width, and letters are in CSS pixels. So a chart
fills a phone and a desk while its letters stay as large as the page's, colours follow dark and light by the page's CSS
variables, and a chart takes 1 to 8 kB where matplotlib's took 10 to 60. Nothing else of the project needs matplotlib.
"""
