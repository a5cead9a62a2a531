"""What is in a folder in CTranslate2's form. Imports nothing, so no engine's libraries come."""

MODEL, TOKENS = "model.bin", "shared_vocabulary.json"
"""Its tensors, and the name of each id."""

QUANTIZATIONS = ("float32", "float16", "int16", "int8", "int8_float16")
"""How its tensors may be kept; the first is the default."""
