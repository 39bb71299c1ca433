"""Files to modules and back: safetensors only, strict."""
