"""Files to modules and back: safetensors only, strict.

The store, the catalogue of published models, their dtypes, the hub and its lockfile, int8 rows,
LoRA files. May import models, nn and flow; `hub` alone asks the network.
"""
