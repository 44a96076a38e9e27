"""Trees to bytes and back: safetensors frames, the check against a spec, and codecs."""
