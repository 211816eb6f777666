"""The pack's own socket types."""

from comfy_api.latest import io

Sliders = io.Custom("SLIDERS")  # a stack: concept_sliders.sliders.stack.Stack
SliderConcept = io.Custom("SLIDER_CONCEPT")  # what to train: a tuple of concept_sliders.training.recipe.Concept
ImagePairsSocket = io.Custom("SLIDER_PAIRS")  # what to learn from: concept_sliders.training.pairs.ImagePairs
SliderRecipe = io.Custom("SLIDER_RECIPE")  # how to train: a concept_sliders.training.recipe.Recipe
InversionSocket = io.Custom("SLIDER_INVERSION")  # a picture inverted: concept_sliders.inversion.inversion.Inversion
