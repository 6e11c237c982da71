"""Classification and named entities: labels, preparation, scores, predictions."""
