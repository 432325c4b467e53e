"""The fictional world, its rows and judge, and the small model that was trained on it."""
