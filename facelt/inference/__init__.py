"""Running a trained model over images: prediction, embedding, verification."""
