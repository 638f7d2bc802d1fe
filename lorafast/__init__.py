"""LoRA fine-tuning of quantised GGUF language models on CPUs."""
__version__ = "0.1.0"
