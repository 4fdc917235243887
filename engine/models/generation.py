"""Image-text models that answer questions, from local folders; the one importer of transformers.

A model is a folder in the layout of the Hugging Face hub. Nothing is downloaded, no code of a
model's own is run, and weights are read from safetensors alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from coreset.shards.errors import MachineError, UsageError
from coreset.shards.format.files import digest_of, missing, sha256_of_file

if TYPE_CHECKING:
    import torch

EXAMPLE = "llava-hf/llava-1.5-7b-hf"
_REMEDY = f"get a model as safetensors from the Hugging Face hub, such as {EXAMPLE}, into a folder"
_READ = {".safetensors", ".json", ".jinja", ".model", ".txt"}
"""Files that answers depend on: weights, configuration, vocabulary, format of chats."""
_PICKLES = {".bin", ".ckpt", ".pt", ".pth"}
# A kernel of attention whose name has a slash is a repository with code.
_OWN_CODE = re.compile(r'"(auto_map)"|(attn_implementation)"\s*:\s*"[^"]*/')


@dataclass(frozen=True, slots=True)
class ImageTextModel:
    """A model of transformers, and its processor of texts and images."""

    network: Any
    processor: Any

    def prompt(self, question: str, n_images: int) -> str:
        """Write a question about some images in the model's format of chats, else in LLaVA's."""
        if not getattr(self.processor, "chat_template", None):
            return "USER: " + "<image>\n" * n_images + f"{question} ASSISTANT:"
        content = [*[{"type": "image"}] * n_images, {"type": "text", "text": question}]
        chat = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(chat, add_generation_prompt=True)

    def answer(
        self, prompt: str, images: Sequence[Image.Image], max_new_tokens: int
    ) -> tuple[str, bool]:
        """Continue a prompt, always by the likeliest token.

        Returns:
            The text, and if the model ended it; otherwise it was cut at ``max_new_tokens``.
        """
        import torch

        network, begin = self.network, self.processor.tokenizer.bos_token
        inputs = self.processor(
            text=prompt,
            images=list(images) or None,
            # Some formats of chats hold the token that begins a text.
            add_special_tokens=not (begin and prompt.startswith(begin)),
            return_tensors="pt",
        ).to(network.device, network.dtype)
        with torch.inference_mode():
            (tokens,) = network.generate(
                **inputs, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens
            )
        if not network.config.is_encoder_decoder:  # others repeat the prompt
            tokens = tokens[inputs["input_ids"].shape[1] :]
        end: Any = network.generation_config.eos_token_id
        ends = end if isinstance(end, list) else [end]
        ended = len(tokens) < max_new_tokens or int(tokens[-1]) in ends
        return self.processor.decode(tokens, skip_special_tokens=True), ended


def model_digest(folder: Path) -> str:
    """Return the sha256 over those of a model's weights and of what else shapes its answers.

    Raises:
        UsageError: There is no model, its weights are pickles, or it asks for code of its own.
        MachineError: transformers is not installed.
    """
    if not (folder / "config.json").is_file():
        fault = "is no folder of a model (no config.json)"
        raise missing(folder, f"{_REMEDY}, and name that with --model", otherwise=fault)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if not any(path.suffix == ".safetensors" for path in files):
        pickles = [path.name for path in files if path.suffix in _PICKLES]
        fault = f"has pickles for weights ({pickles[0]})" if pickles else "has no weights"
        raise UsageError(f"{folder} {fault}, and only safetensors are read; {_REMEDY}")
    for path in files:
        text = path.read_text("utf-8", "replace") if path.name.endswith("config.json") else ""
        if own := _OWN_CODE.search(text):
            raise UsageError(
                f"{path} asks for code of the model's own ({own[1] or own[2]}), which is never "
                f"run; take a model that transformers has itself, such as {EXAMPLE}"
            )
    if find_spec("transformers") is None:
        raise MachineError(
            f"{folder} needs the package transformers, which is not installed; "
            "pip install coreset[concepts]"
        )
    return digest_of({path.name: sha256_of_file(path) for path in files if path.suffix in _READ})


def load_model(folder: Path, device: "torch.device") -> ImageTextModel:
    """Load a model that `model_digest` accepts, in its stored precision, and its processor.

    Raises:
        UsageError: transformers does not know it, or weights are damaged or missing.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    source: Any = {"pretrained_model_name_or_path": folder.resolve()}  # no name on the hub
    source |= {"local_files_only": True, "trust_remote_code": False}
    options: Any = {"use_safetensors": True, "dtype": "auto", "output_loading_info": True}
    try:
        processor = AutoProcessor.from_pretrained(**source)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(**source, **options)
    except Exception as error:  # transformers lets errors of any kind through
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"model {folder} cannot be loaded ({reason}); {_REMEDY}") from error
    network, report = loaded
    if absent := sorted(report["missing_keys"]):  # transformers takes random numbers
        raise UsageError(
            f"model {folder} has no weights for {absent[0]} ({len(absent)} missing); {_REMEDY}"
        )
    return ImageTextModel(network.eval().to(device), processor)
