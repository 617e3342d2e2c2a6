"""What a trained model is worth: scores, the check of causality, reports."""
