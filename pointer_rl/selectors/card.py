"""The card of a policy bundle: bundle.json as a README for people, and metadata for the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pointer_rl.escaping import markdown, printable


def write_card(document: Mapping[str, Any]) -> str:
    """The card as Markdown, written from the content of bundle.json alone."""
    dataset, pool = _name(document["dataset"]) or "an unnamed dataset", document["pool"]["size"]
    may_stop = document["policy"].get("can_stop")
    number = f"up to {document['shots']}" if may_stop else document["shots"]
    lines = [
        "---",
        *_metadata(document),
        "---",
        "",
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
        "## Limits",
        "",
        *_limits(document["evaluation"]),
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


def _metadata(document: Mapping[str, Any]) -> Iterator[str]:
    """The YAML metadata of a model card on the Hub."""
    yield "library_name: pointer-rl"
    yield "pipeline_tag: visual-question-answering"
    yield "tags: [in-context-learning, demonstration-selection, reinforcement-learning]"
    evaluation = document["evaluation"] or {}
    settings = evaluation.get("settings", {})
    primary = settings.get("primary"), settings.get("primary_shots")
    rows = evaluation.get("rows") or ()
    row = next((each for each in rows if (each["arm"], each["shots"]) == primary), None)
    if row is None or row["accuracy"] is None:
        return
    dataset = settings["dataset"]
    measured = f"accuracy in percent, {row['shots']} shots, {row['queries']} queries"
    yield from (
        "model-index:",
        f"- name: {_yaml(row['arm'])}",
        "  results:",
        "  - task:",
        "      type: visual-question-answering",
        "    dataset:",
        f"      type: {_yaml(dataset['name'])}",
        f"      name: {_yaml(_name(dataset))}",
        "    metrics:",
        "    - type: accuracy",
        f"      name: {_yaml(measured)}",
        f"      value: {100 * row['accuracy']:.1f}",
    )


def _yaml(text: object) -> str:
    """A string in YAML: JSON, without U+FFFE and U+FFFF, which YAML forbids."""
    allowed = re.sub("[\ufffe\uffff]", "\ufffd", printable(text))
    return json.dumps(allowed, ensure_ascii=False)


def _measured(evaluation: Mapping[str, Any] | None) -> Iterator[str]:
    if not evaluation:
        yield "Not measured: it is not known whether this policy helps."
        return
    verdict, sentences = (evaluation.get(key) for key in ("verdict", "sentences"))
    facts = {**_settings(evaluation), **evaluation, "verdict": None}
    parts = [
        [f"**{markdown(verdict)}**"] if isinstance(verdict, str) else [],
        list(_table(evaluation)),
        [*(f"- {markdown(each)}" for each in sentences or () if each != verdict), *_bullets(facts)],
    ]
    for index, part in enumerate(each for each in parts if each):
        yield from ["", *part] if index else part


def _settings(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Dataset, backend, prompt and metric, in a few words each."""
    settings = evaluation.get("settings", {})
    found = {
        name: _name(settings[name]) for name in ("dataset", "prompt", "metric") if name in settings
    }
    backend = settings.get("backend")
    if backend:
        model = backend["options"].get("model")
        found["backend"] = f"{backend['name']}, {model}" if model else backend["name"]
    return found


def _table(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """A table of the arms, in the order of the evaluation."""
    rows = evaluation.get("rows")
    if not rows:
        return
    intervals = {
        (each["shots"], each["arm"]): each
        for each in evaluation.get("comparisons", ())
        if each["reference"] == "random"
    }
    yield "| shots | arm | queries | calls | accuracy | against random |"
    yield "|--:|---|--:|--:|--:|--:|"
    for row in rows:
        difference, trained = "", row["training_calls"]
        if found := intervals.get((row["shots"], row["arm"])):
            mean, low, high = (100 * found[key] for key in ("mean", "low", "high"))
            difference = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
        before = "unknown + " if trained is None else f"{trained:,} + " if trained else ""
        accuracy = "–" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f}"
        yield (
            f"| {row['shots']} | {markdown(row['arm'])} | {row['queries']:,} | "
            f"{before}{row['calls']:,} | {accuracy} | {difference} |"
        )
    yield ""
    yield "Accuracy in percent; differences in points; calls for training + for this evaluation."
    if level := evaluation.get("settings", {}).get("intervals", {}).get("joint_level"):
        yield f"All intervals hold together at {level:.0%}."


def _limits(evaluation: Mapping[str, Any] | None) -> Iterator[str]:
    if evaluation:
        yield "- Measured with one model, one prompt and one set of questions, not with others."
        yield "  The intervals do not cover the variation between training runs."
        yield from (f"- {markdown(each)}" for each in evaluation.get("warnings") or ())
    yield "- It chooses from the pool that it was trained with. The bundle has that pool's ids and"
    yield "  embeddings; its images, questions and answers are in the dataset."
    yield "- It cannot tell whether an example shows a question's own image: exclude such examples."


def _origin(document: Mapping[str, Any]) -> dict[str, Any]:
    data, pool = document.get("data"), document["pool"]
    calls = document["training"].get("calls")
    return {
        "dataset": _name(document["dataset"]),
        "queries": document["queries"]["number"],
        "calls": "unknown" if calls is None else calls,
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
    yield "FOLDER is the folder of these files, or `hub:OWNER/NAME` on the Hugging Face Hub."
    yield ""
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
        'policy = pointer_rl.Policy.load("FOLDER")  # Policy.from_pretrained("OWNER/NAME")',
        "policy.select(examples)  # or embeddings [B, d] of the same encoder",
        "```",
    )
