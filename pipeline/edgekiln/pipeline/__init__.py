"""From a recipe to a bundle: data, fine-tuning, the stages in order, and the command line."""
