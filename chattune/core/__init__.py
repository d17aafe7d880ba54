"""What every stage stands on: errors, parts, recipes, artifacts, stages, records and progress. Knows no torch and no chat."""
