"""What lies in a folder, or in a repository of the hub, in which there are no weights to read."""

from collections.abc import Collection

PEFT = "adapter_config.json"

OTHERS = {
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".gguf": "llama.cpp",
    ".onnx": "ONNX",
    ".bin": "PyTorch",
    ".safetensors": "safetensors under another name",
}
"""Ending of a file of weights -> whose it is."""


def advice(names: Collection[str], where: str) -> str:
    """What such a folder is, from the names of its files, and what makes a checkpoint of it; ""
    where they do not tell.
    """
    if PEFT in names:
        return (
            f"{where} is an adapter of PEFT ({PEFT}), not a whole model. Merge it into its base "
            'model, where peft and transformers are installed: python -c "from peft import '
            f"AutoPeftModelForSeq2SeqLM as M; M.from_pretrained('{where}').merge_and_unload()"
            ".save_pretrained('merged')\" and copy the base model's spiece.model there."
        )
    found = sorted({what for end, what in OTHERS.items() if any(n.endswith(end) for n in names)})
    if not found:
        return ""
    return (
        f"{where} holds weights of {', '.join(found)}. Save them with transformers as safetensors: "
        "T5ForConditionalGeneration.from_pretrained(...).save_pretrained('new')."
    )
