"""Files of tensors: GGUF read from a mapping and written, the formats of weights, safetensors."""
