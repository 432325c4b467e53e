"""The OpenAI fine-tuning API on your own models. The API's process never imports torch."""
