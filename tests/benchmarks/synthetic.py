"""What bench_generate asks: VQA files of any size, and a plugin whose backend has no model."""

from __future__ import annotations

import json
import random
from pathlib import Path

from pointer_rl.hookspecs import hookimpl
from pointer_rl.types import Response

WORDS = ("yes", "no", "two", "red", "dog", "left", "tennis", "white")
RARE = 50_000
"""Different answers beside these, of which one in three is."""
QUESTIONS_PER_IMAGE = 5
"""About as many as VQAv2 has."""


def write_vqa(folder: Path, name: str, queries: int) -> dict[str, str]:
    """Official files of so many questions with ten answers each, and the options that name them.

    The images' files hold their numbers: they are hashed, but never decoded.
    """
    rng = random.Random(queries)
    images = folder / name
    images.mkdir(parents=True)
    with (
        (folder / f"{name}_questions.json").open("w") as questions,
        (folder / f"{name}_annotations.json").open("w") as annotations,
    ):
        questions.write('{"data_subtype": "val", "questions": [')
        annotations.write('{"annotations": [')
        for row in range(queries):  # written one by one: a process begun later starts small
            image_id, place = divmod(row, QUESTIONS_PER_IMAGE)
            if not place:
                (images / f"{image_id}.jpg").write_text(f"{name} {image_id}")
            ids = {"image_id": image_id, "question_id": 1000 * image_id + place}
            question = f"What is number {row} in the middle of this image?"
            said, rare = rng.choice(WORDS), f"a {rng.randrange(RARE)}"
            answers = [{"answer": said if rng.random() < 2 / 3 else rare} for _ in range(10)]
            comma = ", " if row else ""
            questions.write(comma + json.dumps({**ids, "question": question}))
            annotations.write(comma + json.dumps({**ids, "answers": answers}))
        for file in (questions, annotations):
            file.write("]}")
    return {
        "questions": f"{name}_questions.json",
        "annotations": f"{name}_annotations.json",
        "images": name,
    }


class Backend:
    fingerprint = "synthetic"

    def run(self, requests):
        for index, request in enumerate(requests):
            yield index, Response(WORDS[len(request.prompt.messages[-1].parts[-1]) % len(WORDS)])


@hookimpl
def pointer_rl_register_backends(register):
    register("synthetic", Backend, summary="answers at once")


SOURCE = Path(__file__).read_text(encoding="utf-8")
