"""The card of a policy bundle: bundle.json as a README for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pointer_rl.escaping import markdown


def write_card(document: Mapping[str, Any]) -> str:
    """The card as Markdown, written from the content of bundle.json alone."""
    dataset, pool = _name(document["dataset"]) or "an unnamed dataset", document["pool"]["size"]
    may_stop = document["policy"].get("can_stop")
    number = f"up to {document['shots']}" if may_stop else document["shots"]
    lines = [
        f"# A policy that chooses demonstrations: {markdown(dataset)}",
        "",
        "A vision-language model answers a question about an image better or worse depending on",
        "which solved examples (demonstrations) it is shown before. This policy chooses them: for",
        f"a question and its image, {number} of a pool of {pool:,} examples, in the order in which",
        "they are to be shown. (It can be asked for another number, but was trained for this one.)",
        "",
        "## Evaluation",
        "",
        *_measured(document["evaluation"]),
        "",
        "## Trained on",
        "",
        *_bullets(_origin(document)),
        *_section("Options", document["training"].get("options")),
        *_section("Metrics of the training", document["training"].get("metrics")),
        "",
        "## Use",
        "",
        *_use(document["encoder"]),
        "",
        f"Written by pointer-rl {markdown(document.get('pointer_rl_version'))} from bundle.json, "
        "which has the details.",
    ]
    return "\n".join(lines) + "\n"


def _measured(evaluation: Mapping[str, Any] | None) -> Iterator[str]:
    if not evaluation:
        yield "Not measured: it is not known whether this policy helps."
        return
    verdict, sentences = (evaluation.get(key) for key in ("verdict", "sentences"))
    bullets = [f"- {markdown(each)}" for each in sentences or () if each != verdict]
    bullets += _bullets({key: each for key, each in evaluation.items() if key != "verdict"})
    if isinstance(verdict, str):
        yield f"**{markdown(verdict)}**"
    if isinstance(verdict, str) and bullets:
        yield ""
    yield from bullets


def _origin(document: Mapping[str, Any]) -> dict[str, Any]:
    data, pool = document.get("data"), document["pool"]
    return {
        "dataset": _name(document["dataset"]),
        "queries": document["queries"]["number"],
        "calls": document["training"].get("calls") or "unknown",
        "data": data and f"{data['name']} (SHA-256 {data['sha256']})",
        "encoder": document["encoder"]["fingerprint"] or "unknown",
        "pool": f"{pool['size']:,} examples (SHA-256 of their ids {pool['sha256']})",
        "policy": f"SHA-256 {document['policy']['sha256']}",
    }


def _name(dataset: Mapping[str, Any]) -> Any:
    return dataset.get("title", dataset.get("name"))


def _section(title: str, values: object) -> Iterator[str]:
    bullets = list(_bullets(values)) if isinstance(values, Mapping) else []
    if bullets:
        yield from ("", f"{title}:", "", *bullets)


def _bullets(values: Mapping[str, Any]) -> Iterator[str]:
    """A line for each number, string or boolean; other values are only in bundle.json."""
    for key, value in values.items():
        if isinstance(value, (str, bool)):
            yield f"- {markdown(key)}: {markdown(value)}"
        elif isinstance(value, (int, float)):
            number = f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
            yield f"- {markdown(key)}: {number}"


def _use(encoder: Mapping[str, Any]) -> Iterator[str]:
    if encoder["name"] is None:
        yield "The bundle does not name the encoder that embeds new questions: give embeddings."
        yield ""
        yield from ("```bash", "pointer-rl select FOLDER --query-emb embeddings.safetensors", "```")
        return
    yield from (
        "```bash",
        'pointer-rl select FOLDER --question "what is on the table?" --image table.jpg',
        "```",
        "",
        "```python",
        "import pointer_rl",
        "",
        'policy = pointer_rl.Policy.load("FOLDER")',
        "policy.select(examples)  # or embeddings [B, d] of the same encoder",
        "```",
    )
