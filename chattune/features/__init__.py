"""Features of texts: what a word is, and classifiers over words."""
