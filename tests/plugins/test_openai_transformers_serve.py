"""The openai backend against a real server: `transformers serve` with a tiny LLaVA, on the CPU."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.types import BackendError, Decoding, Message, Prompt, Request, Response
from pointer_rl_openai import create_backend
from pointer_rl_openai.options import OpenAIOptions

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(find_spec(each) is None for each in ("fastapi", "uvicorn", "openai")),
        reason="transformers serve is not installed: pip install 'transformers[serving]'",
    ),
]

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: "
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def make_tiny_llava(folder: Path) -> Path:
    """A random checkpoint whose logits are far apart, so that rounding flips no argmax."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({each: at for at, each in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in ("</s>", "<image>")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", chat_template=TEMPLATE
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=fast.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.5)
        for token, at in fast.get_vocab().items():
            if not (token.isascii() and token.isalpha()):
                model.lm_head.weight[at] = 0.0
    # Vowels end an answer, too: a random model would write without end.
    vowels = [at for token, at in fast.get_vocab().items() if token in tuple("aeiouAEIOU")]
    model.generation_config.eos_token_id = [fast.eos_token_id, *vowels]
    model.save_pretrained(folder)
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        ),
        tokenizer=fast,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(address, folder of the model) of a server in a process of its own."""
    home = tmp_path_factory.mktemp("serve")
    model = make_tiny_llava(home / "model")
    (home / "hub").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    command = [program, "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--device", "cpu"], env=environment, stdout=log, stderr=log
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, home / "log")
        yield f"http://127.0.0.1:{port}/v1", str(model)
    finally:
        process.kill()
        process.wait()


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def make_image(seed: int) -> ImageBytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return ImageBytes(file.getvalue(), f"image {seed}")


def prompts() -> list[Prompt]:
    return [
        Prompt((Message("user", (make_image(1), "what? red ", make_image(2), "this?")),)),
        Prompt((Message("system", ("Answer.",)), Message("user", (make_image(3), "a cat?")))),
        Prompt((Message("user", ("What is a dog?",)),)),
    ]


def local_answers(folder: str, max_new_tokens: int) -> list[str]:
    """The same by the same model here, one prompt at a time."""
    import torch
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    processor = LlavaProcessor.from_pretrained(folder, backend="pil")
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    texts = []
    for prompt in prompts():
        chat = [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                    for part in message.parts
                ],
            }
            for message in prompt.messages
        ]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        images = [image.open() for image in prompt.images] or None
        inputs = processor(images=images, text=text, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        texts.append(processor.tokenizer.decode(new, skip_special_tokens=True))
    return texts


def connect(server: tuple[str, str], **options: object):
    base_url, model = server
    return create_backend(
        OpenAIOptions(base_url=base_url, model=model, retries=1, backoff=0.01, **options)
    )


def test_it_answers_as_the_model_does_here(server):
    backend = connect(server)
    requests = [Request(prompt, Decoding(max_new_tokens=60)) for prompt in prompts()]
    results = dict(backend.run(requests))
    assert all(isinstance(each, Response) for each in results.values()), results
    assert [results[at].text for at in range(3)] == local_answers(server[1], 60)
    assert [results[at].usage.images for at in range(3)] == [2, 1, 0]
    assert all(each.usage.prompt_tokens > 20 for each in results.values())
    assert len({each.text for each in results.values()}) == 3
    # Demonstrations' images arrive, and in their order.
    first = requests[0].prompt.messages[0].parts
    swapped = Prompt((Message("user", (first[2], first[1], first[0], first[3])),))
    [(_, other)] = backend.run([Request(swapped, Decoding(max_new_tokens=60))])
    assert other.text != results[0].text


def test_what_it_cannot_do_is_a_value(server):
    backend = connect(server)
    plain = prompts()[2]
    results = dict(
        backend.run(
            [
                Request(plain, Decoding(), ("yes",)),
                Request(plain, Decoding(max_new_tokens=3, stop=("a",))),
                Request(plain, Decoding(max_new_tokens=1)),
                Request(plain, Decoding(max_new_tokens=60)),
            ]
        )
    )
    assert "cannot score answers" in results[0].message
    assert isinstance(results[1], BackendError)
    assert "(asked 2 times)" in results[1].message  # HTTP 500, or the connection that it closes
    assert "was cut off (finish_reason length)" in results[2].message
    assert isinstance(results[3], Response)
