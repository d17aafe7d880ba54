"""Scores with intervals, beside the baselines that any model must beat. Entry: `stage.evaluate`."""
