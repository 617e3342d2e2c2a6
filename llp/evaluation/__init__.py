"""What a trained model is worth: scores, the certificate of causality, reports."""
