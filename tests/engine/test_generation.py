"""Concepts from an image-text model: its likeliest words, kept one by one, never its code."""

import json
import shutil
import socket
import sys
from io import BytesIO
from string import ascii_letters
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.models.answers import ANSWERS_NAME, QUESTION
from coreset.engine.models.concept_bank import BANK_KIND, ConceptBank
from coreset.engine.models.generation import ImageTextModel, load_model, model_digest
from coreset.engine.runtime.device import generator_for
from coreset.engine.stages import concept_generation
from coreset.engine.stages.concept_generation import Generate
from coreset.engine.stages.options import Decoding, TextEncoder
from coreset.engine.stages.pack import Pack
from coreset.shards.errors import MachineError, ManifestError, UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import temporary_name

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
WORDS = {
    "apple_tree": "apple_tree",
    "n01440764": "tench",
    "n02102040": "English Springer Spaniel",
    "zebra": "zebra",
    "zoo": "zoo",
}
PER_CLASS, MOST_TOKENS = 4, 6
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
CHAT = (
    "{{ bos_token }}{% for turn in messages %}[{{ turn.role }}]{% for part in turn.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}[answer]{% endif %}"
)


@pytest.fixture(autouse=True)
def _offline_and_quiet(monkeypatch, capfd):
    def offline(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", offline)
    yield
    assert not [line for line in capfd.readouterr().err.splitlines() if "generate: " not in line]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five classes of four photos, sizes and formats mixed."""
    folder, rng = tmp_path_factory.mktemp("words"), np.random.default_rng(0)
    for name in WORDS:
        (folder / name).mkdir()
        for number in range(PER_CLASS):
            sides = (*rng.integers(20, 50, 2), 3)
            image = Image.fromarray(rng.integers(0, 256, sides, dtype=np.uint8))
            image.save(folder / name / f"{number}.{('png', 'jpg')[number % 2]}")
    Pack(src=folder, data=folder.with_name("WORDS"), samples_per_shard=8).run()
    return folder.with_name("WORDS")


def processor(template):
    """Bytes as tokens, images of 16 x 16 pixels as four."""
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    text = Tokenizer(models.BPE({symbol: at for at, symbol in enumerate(ALPHABET)}, merges=[]))
    text.add_special_tokens([*SPECIAL.values(), "<image>"])
    text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text.decoder = decoders.ByteLevel()
    text.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 256)])
    return LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        PreTrainedTokenizerFast(tokenizer_object=text, **SPECIAL),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def llava():
    """Two layers of random weights, which answer in letters of ASCII."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "initializer_range": 0.5}
    text = LlamaConfig(vocab_size=260, max_position_embeddings=512, **small)
    text.bos_token_id, text.eos_token_id, text.pad_token_id = 256, 257, 258
    vision = CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=16, **small)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=259, vision_feature_layer=-1
        )
    )
    draws = generator_for(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) / 3)
        other = [at for at, symbol in enumerate(ALPHABET) if symbol not in ascii_letters]
        model.lm_head.weight[[*other, 256, 257, 258, 259]] = 0
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a tiny LLaVA without a format of chats; read only."""
    folder = tmp_path_factory.mktemp("models") / "llava"
    llava().save_pretrained(folder)
    processor(None).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chatty(model):
    """The same with a format of chats."""
    folder = shutil.copytree(model, model.with_name("chatty"))
    processor(CHAT).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny CLIP of random weights."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    tower = {"width": 32, "layers": 2}
    config: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": tower | {"image_size": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": tower | {"context_length": 16, "vocab_size": 49408, "heads": 2},
    }
    (folder / "tiny.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        for name in ("_MODEL_CONFIG_PATHS", "_MODEL_CONFIGS"):
            patch.setattr(open_clip.factory, name, getattr(open_clip.factory, name).copy())
        open_clip.add_model_config(folder / "tiny.json")
        network: Any = open_clip.CLIP(**config)
        save_file(network.state_dict(), folder / "tiny.safetensors")
        yield TextEncoder(backbone="clip:tiny", weights=folder / "tiny.safetensors", size=32)


@pytest.fixture
def generate(data, model, encoder, tmp_path):
    """``generate("BANK", images=1)``: make a bank; returns its folder."""

    def run(name="BANK", **options):
        usual: dict[str, Any] = {"data": data, "model": model, "max_new_tokens": MOST_TOKENS}
        Generate(
            bank=tmp_path / name,
            encoder=encoder,
            decoding=Decoding(device="cpu"),
            **usual | options,
        ).run()
        return tmp_path / name

    return run


def answers_in(bank):
    return [json.loads(line) for line in (bank / ANSWERS_NAME).read_text().splitlines()]


def likeliest(folder, prompt, images, n):
    """Take the likeliest token n times, each after a pass over all tokens before it."""
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    network = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    reader: Any = LlavaProcessor.from_pretrained(folder)
    inputs = dict(reader(text=prompt, images=images or None, return_tensors="pt"))
    tokens = torch.tensor([[256, *[t for t in inputs.pop("input_ids")[0].tolist() if t != 256]]])
    inputs.pop("attention_mask")
    n_before = tokens.shape[1]
    with torch.inference_mode():
        for _ in range(n):
            logits = network(input_ids=tokens, **inputs).logits[0, -1]
            tokens = torch.cat((tokens, logits.argmax()[None, None]), dim=1)
    return reader.tokenizer.decode(tokens[0, n_before:], skip_special_tokens=True)


# answers


@pytest.mark.parametrize("n_images", [0, 2])
@pytest.mark.parametrize("kind", ["model", "chatty"])
def test_answers_are_the_likeliest_tokens_after_the_question(
    generate, data, request, stored_samples, *, n_images, kind
):
    folder, chat = request.getfixturevalue(kind), kind == "chatty"
    bank = generate(model=folder, images=n_images)
    answers, samples = answers_in(bank), stored_samples(data)
    assert [answer["class"] for answer in answers] == list(WORDS)
    for answer, (name, word) in zip(answers[:3], WORDS.items(), strict=False):
        question = QUESTION.replace("{}", word.replace("_", " "))
        marks = "<image>" * n_images if chat else "<image>\n" * n_images
        written = f"<s>[user]{marks}{question}[answer]", f"USER: {marks}{question} ASSISTANT:"
        assert answer["prompt"] == written[0 if chat else 1]
        own = [image for row, image in samples if row["class"] == name]
        shown = [Image.open(BytesIO(own[at])).convert("RGB") for at in (1, 3)][:n_images]
        assert answer["answer"] == likeliest(folder, answer["prompt"], shown, MOST_TOKENS)
        assert answer["ended"] is False
    assert len({answer["answer"] for answer in answers}) > 1


def test_other_images_make_other_answers_and_count_as_seen(generate):
    one, two = generate("ONE", images=1), generate("TWO", images=PER_CLASS)
    assert answers_in(one)[0]["answer"] != answers_in(two)[0]["answer"]
    assert [read_ledger(bank)[-1]["images"] for bank in (one, two)] == [5, 5 * PER_CLASS]


def test_an_answer_ends_where_the_model_ends_it_and_not_by_chance(model):
    asked = load_model(model, CPU)
    settings = asked.network.generation_config
    settings.do_sample, settings.num_beams, settings.temperature = True, 3, 5.0
    text, ended = asked.answer("USER: fish ASSISTANT:", [], MOST_TOKENS)
    assert (text, ended) == (likeliest(model, "USER: fish ASSISTANT:", [], MOST_TOKENS), False)
    first = asked.processor.tokenizer(text, add_special_tokens=False)["input_ids"][0]
    for ends in (first, [257, first]):
        settings.eos_token_id = ends
        assert asked.answer("USER: fish ASSISTANT:", [], MOST_TOKENS)[1] is True
        assert asked.answer("USER: fish ASSISTANT:", [], 1)[1] is True, "at the last token, too"


def test_a_model_stays_in_the_precision_that_it_is_stored_in(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "half")
    weights = {name: w.half() for name, w in load_file(model / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    asked = load_model(folder, CPU)
    assert asked.network.dtype == torch.float16
    prompt = asked.prompt("fish", 1)
    assert asked.answer(prompt, [Image.new("RGB", (20, 30))], 3)[1] is False


# the bank


def test_a_bank_says_what_made_it_and_the_same_command_does_nothing(generate, data, model):
    bank = generate(images=1)
    provenance = Provenance.read(bank)
    assert (provenance.kind, provenance.stage) == (BANK_KIND, "concepts generate")
    wanted = {"question": QUESTION, "images": 1, "max_new_tokens": MOST_TOKENS}
    wanted |= {"prompt": "a photo of {}", "backbone": "clip:tiny", "size": 32}
    wanted["model"] = model_digest(model)
    assert wanted.items() <= provenance.config.items()
    assert provenance.inputs[0]["digest"] == Provenance.read(data).digest
    made, answers = ConceptBank.open(bank), answers_in(bank)
    assert made.encoder.prompt == "a photo of {}"
    assert {concept.text for concept in made.concepts} == {a["answer"].lower() for a in answers}
    assert {name for concept in made.concepts for name in concept.classes} == set(WORDS)
    before = (bank / ANSWERS_NAME).stat().st_mtime_ns
    generate(images=1)
    assert (bank / ANSWERS_NAME).stat().st_mtime_ns == before
    with pytest.raises(UsageError, match=r"config.images: 1 there, 0 here"):
        generate()


def test_the_digest_is_of_all_that_answers_depend_on(model, chatty, tmp_path):
    folder = shutil.copytree(model, tmp_path / "other")
    (folder / "README.md").write_text("what it is")
    assert model_digest(folder) == model_digest(model) != model_digest(chatty)
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).flatten()[0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert model_digest(folder) != model_digest(model)


# interruptions


def test_a_killed_run_loses_one_class_and_ends_in_the_same_bytes(
    generate, tmp_path, monkeypatch, disk, stored_bytes
):
    answer, asked = ImageTextModel.answer, []

    def dies_at_the_fourth(self, prompt, *options):
        asked.append(prompt)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return answer(self, prompt, *options)

    monkeypatch.setattr(ImageTextModel, "answer", dies_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        generate("BANK", images=1)
    scratch = temporary_name(tmp_path / "BANK")
    survived = disk.survivors()[f"{scratch.name}/{ANSWERS_NAME}"]
    assert survived.count(b"\n") == 3, "what is answered is on the disk"
    assert not (tmp_path / "BANK").exists()
    with (scratch / ANSWERS_NAME).open("ab") as file:
        file.write(b'{"class": "zebra", "prompt": "USER: half of')
    resumed = generate("BANK", images=1)
    assert len(asked) == 4 + 2, "the fourth again, and the fifth"
    asked[:] = [""] * 4
    whole = generate("WHOLE", images=1)
    assert stored_bytes(resumed) == stored_bytes(whole)
    own = [line for line in read_ledger(resumed) if line["stage"] == "concepts generate"]
    assert [(line["interrupted"], line["images"]) for line in own] == [(True, 3), (False, 2)]


@pytest.mark.parametrize(
    ("spoil", "kept"),
    [
        (lambda lines: [*lines[:2], lines[2][:-1]], 2),
        (lambda lines: [*lines[:2], bytes(40)], 2),
        (lambda lines: [lines[0], b"{}\n", *lines[2:]], 1),
        (lambda lines: [lines[1]], 0),
        (lambda lines: [lines[0].replace(b"false", b'"no"')], 0),
        (lambda lines: [*lines, lines[0]], 5),
    ],
    ids=["no end of line", "zeros", "no answer", "of another class", "of another kind", "too many"],
)
def test_answers_count_up_to_the_first_line_that_is_not_whole(
    generate, tmp_path, monkeypatch, spoil, kept
):
    """What is kept is not asked again: a model that says "other" fills up the rest."""

    def stops(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(concept_generation, "write_texts", stops)
        with pytest.raises(KeyboardInterrupt):
            generate()
    path = temporary_name(tmp_path / "BANK") / ANSWERS_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(spoil(lines)))
    loads = []

    class Other(ImageTextModel):
        def answer(self, prompt, images, max_new_tokens):  # noqa: ARG002 - of the class above
            return "other", True

    def load(*_):
        loads.append(1)
        return Other(None, None)

    monkeypatch.setattr("coreset.engine.models.answers.load_model", load)
    bank = generate()
    assert (bank / ANSWERS_NAME).read_bytes().splitlines(keepends=True)[:kept] == lines[:kept]
    assert [answer["answer"] for answer in answers_in(bank)[kept:]] == ["other"] * (5 - kept)
    assert bool(loads) == (kept < 5), "no model is loaded when all is answered"


# refusals


def write_json(path, **changes):
    document = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(document | changes))


def pickled(folder):
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def asks_for_code(folder):
    code = "from pathlib import Path; Path(__file__).with_name('ran').touch()"
    (folder / "modeling_own.py").write_text(code)
    names = dict.fromkeys(("AutoConfig", "AutoModelForImageTextToText"), "modeling_own.Own")
    write_json(folder / "config.json", model_type="own", auto_map=names)


def lacks_a_layer(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "layers.1.mlp" in name))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, r"does not exist; get a model as safetensors .* llava-hf/llava-1.5-7b-hf"),
        (lambda f: (f / "config.json").unlink(), r"is no folder of a model \(no config.json\)"),
        (pickled, r"has pickles for weights \(pytorch_model.bin\), and only safetensors are read"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights, and only safetensors"),
        (asks_for_code, r"config.json asks for code of the model's own \(auto_map\), which is nev"),
        (
            lambda f: write_json(f / "processor_config.json", auto_map={"AutoProcessor": "a.B"}),
            "processor_config.json asks for code",
        ),
        (
            lambda f: write_json(f / "config.json", attn_implementation="some/kernel"),
            r"asks for code of the model's own \(attn_implementation\)",
        ),
        (lambda f: write_json(f / "config.json", model_type="own"), "cannot be loaded .*own"),
        (lambda f: (f / "model.safetensors").write_bytes(b"half"), "cannot be loaded"),
        (lacks_a_layer, r"has no weights for model.language_model.layers.1.mlp.\S+ \(1 missing\)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_models_that_cannot_be_asked_are_refused(generate, model, tmp_path, spoil, message):
    folder = shutil.copytree(model, tmp_path / "model")
    spoil(folder)
    with pytest.raises(UsageError, match=message) as refusal:
        generate(model=folder)
    assert "\n" not in str(refusal.value)
    assert not (folder / "ran").exists()


def test_without_transformers_the_extra_is_named(generate, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MachineError, match=r"pip install coreset\[concepts\]"):
        generate()
    assert not list(tmp_path.iterdir()), "nothing was begun"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 5}, "got 5, but class apple_tree has 4"),
        ({"images": -1}, "images must be at least 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"question": "what is it"}, "question must hold {} for the class"),
    ],
)
def test_options_that_fit_no_class_are_refused(generate, options, message):
    with pytest.raises(UsageError, match=message):
        generate(**options)


def test_a_wordnet_id_that_has_no_words_is_refused(generate, monkeypatch):
    words = WORDS | {"n01440764": "n01440764"}
    monkeypatch.setattr(concept_generation, "class_words", lambda _: words)
    with pytest.raises(UsageError, match=r"class n01440764 is a WordNet id outside .* \(1 in all"):
        generate()


def test_an_image_that_cannot_be_decoded_is_named(generate, data, tmp_path):
    copied = shutil.copytree(data, tmp_path / "DATA")
    row = Dataset.open(copied).samples.slice(2, 1).to_pylist()[0]
    with (copied / f"shard-{row['shard']:06d}.tar").open("r+b") as file:
        file.seek(row["offset"])
        file.write(bytes(row["bytes"]))
    with pytest.raises(ManifestError, match=f"{row['key']} cannot be decoded .*; run `cor"):
        generate(data=copied, images=PER_CLASS)
