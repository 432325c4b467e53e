"""A fictional world in natural English, its rows and judge, for a real pretrained model."""
