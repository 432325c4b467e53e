"""What came out: harmful score, accuracy, over-refusal and retention, each with its interval and how it was decoded."""
