"""A run: its parts, in the order of llama.cpp's llama-finetune."""
