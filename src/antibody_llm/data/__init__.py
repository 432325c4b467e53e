"""Rows: from the uploaded file to padded tensors."""
