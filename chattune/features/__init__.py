"""Features of texts and rows of numbers: words, embeddings, topics, scalers, classifiers, and whether two sets of rows differ."""
