"""The report: what it counts, what it shows, what it leaves out, and that its page is safe."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_world import EXAMPLES, HOSTILE, Page, write_world

from pointer_rl.datasets.images import ImageBytes
from pointer_rl.errors import InputError
from pointer_rl.escaping import printable
from pointer_rl.evaluate.statistics import compare
from pointer_rl.report import figure
from pointer_rl.report.figures import Figure
from pointer_rl.report.gallery import Sample, share_out, to_json
from pointer_rl.report.inputs import find_inputs
from pointer_rl.report.page import ReportOptions, write_report
from pointer_rl.report.svg import Panel, Series, line_chart, ticks
from pointer_rl.report.tally import Mean, Tally
from pointer_rl.report.thumbnails import Thumbnails
from pointer_rl.report.training import Training, group_trainings
from pointer_rl.report.trials import QueryTrials

PLAIN = ("yes", "no", "a dog", "two")


def report(*paths, at, **options):
    """Write the page at a folder; returns it, and what was left out."""
    target = at / "report.html"
    written = write_report(paths, target, ReportOptions(overwrite=True, **options))
    page = Page(target)
    assert written.size == len(page.bytes)
    return page, written.left_out


def trials(id, *candidates, **query):
    """A query with candidates of (pointer, accuracy, method); accuracy None is a failure."""
    return QueryTrials(
        id,
        {
            "query": {"query_id": id, "gt_answers_raw": ["yes"], "question": "?", **query},
            "pointer_candidates": [
                {"pointer": list(pointer), "gen_method": method}
                | (
                    {"eval_failed": True, "eval_error": "broken"}
                    if accuracy is None
                    else {
                        "vqa_pred_answer": "x",
                        "vqa_correct": int(accuracy > 0),
                        "vqa_acc_score": accuracy,
                    }
                )
                for pointer, accuracy, method in candidates
            ],
        },
    )


# --- the page is safe -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    return report(write_world(folder), at=folder)[0]


def test_foreign_text_is_shown_as_text(hostile):
    queries = hostile.data("queries-0")
    assert len(queries) == EXAMPLES
    for number, text in enumerate(HOSTILE):
        id, question, annotators, _, candidates = queries[number]
        shown = printable(text.replace("\ud800", ""))
        assert (id, question) == (f"q{number}", f"{shown} {number}?")
        assert annotators == [[shown, 3], ["no", 3]]
        assert {each[4] for each in candidates if each[2] != 2} == {printable(text)}
        assert {each[5] for each in candidates if each[2] != 2} == {f"<think>{printable(text)}"}
    for text in (HOSTILE[3], HOSTILE[7]):  # the reasons of failures, in the HTML itself
        assert f"the server said: {printable(text)}" in hostile.text
    assert HOSTILE[0] in hostile.text  # `_meta.note`, under provenance
    assert json.dumps([HOSTILE[0]]) in hostile.text


def test_foreign_text_is_escaped_once(hostile):
    assert not re.search(r"&lt;|&amp;|&#", hostile.text)
    assert [tag for tag, _ in hostile.tags if tag in ("img", "script")] == ["script"] * (
        len(hostile.raw) - 1
    )
    assert "<" not in "".join(text for id, text in hostile.raw.items() if id.startswith("json-"))


def test_the_page_refers_to_nothing_outside(hostile):
    for _, attributes in hostile.tags:
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "action", "formaction", "style", "data")
            assert not name.startswith("on")
            assert name != "href" or value.startswith("#")
    assert not re.search(r"url\(|@import|//", hostile.raw["style"].replace("/*", ""))
    own = hostile.raw["script"]
    assert not re.search(
        r"https?:|fetch|XMLHttp|WebSocket|import\(|\beval\(|innerHTML|\bFunction\(", own
    )


def test_its_policy_allows_our_style_and_script_alone(hostile):
    def digest(text):
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    rules = dict(each.strip().split(" ", 1) for each in hostile.policy.split(";"))
    assert rules.pop("script-src") == f"'sha256-{digest(hostile.raw['script'])}'"
    assert rules.pop("style-src") == f"'sha256-{digest(hostile.raw['style'])}'"
    assert rules.pop("img-src") == "data:"
    assert set(rules.values()) == {"'none'"}
    assert "default-src" in rules


@given(st.recursive(st.text() | st.integers(), lambda each: st.lists(each, max_size=3)))
def test_json_in_the_page_reads_back_and_ends_no_element(value):
    def shown(each):
        return (
            [shown(one) for one in each]
            if isinstance(each, list)
            else (printable(each) if isinstance(each, str) else each)
        )

    text = to_json(shown(value))
    assert json.loads(text) == shown(value)
    assert not re.search("[<>&\u2028\u2029\ud800-\udfff]", text)


# --- what it counts -------------------------------------------------------------------------------


def test_the_tables_count_every_trial(tmp_path):
    path = write_world(tmp_path, PLAIN)
    page, _ = report(path, at=tmp_path)
    records = {k: v for k, v in json.loads(path.read_text()).items() if k != "_meta"}
    candidates = [each for record in records.values() for each in record["pointer_candidates"]]
    for method in ("beam", "random"):
        mine = [each for each in candidates if each["gen_method"] == method]
        judged = [each for each in mine if not each.get("eval_failed")]
        right = 100 * sum(each["vqa_correct"] for each in judged) / len(judged)
        accuracy = 100 * sum(each["vqa_acc_score"] for each in judged) / len(judged)
        failed = len(mine) - len(judged)
        cells = f"{method}{EXAMPLES}{len(mine)}{failed}{right:.1f} %{accuracy:.1f} %"
        assert cells in page.text.replace("\n", "")
    assert "rl.json: 2 of 32 trials failed" in page.text
    [pairs] = page.data("pairs")
    assert pairs["ids"] == list(records)
    for method, accuracies in pairs["arms"].items():
        assert accuracies == [
            round(np.mean(judged), 4)
            for record in records.values()
            for judged in [
                [
                    each["vqa_acc_score"]
                    for each in record["pointer_candidates"]
                    if each["gen_method"] == method and "vqa_acc_score" in each
                ]
            ]
        ]


@given(
    st.lists(
        st.lists(
            st.tuples(
                st.lists(st.integers(0, 4), min_size=1, max_size=2, unique=True),
                st.sampled_from([0.0, 0.3, 1.0, None]),
            ),
            min_size=1,
            max_size=6,
        ),
        min_size=1,
        max_size=8,
    )
)
def test_lifts_are_means_within_queries(groups):
    tally = Tally()
    for number, group in enumerate(groups):
        tally.add(trials(f"q{number}", *((rows, accuracy, "m") for rows, accuracy in group)))
    for row in range(5):
        expected = []
        for group in groups:
            parts = []
            for length in (1, 2):
                same = [(rows, a) for rows, a in group if len(rows) == length and a is not None]
                mine = [a for rows, a in same if row in rows]
                if 0 < len(mine) < len(same):
                    parts.append(np.mean(mine) - np.mean([a for _, a in same]))
            expected += parts
        found = tally.lifts.get(row, Mean())
        assert found.number == len(expected)
        assert found.total == pytest.approx(sum(expected), abs=1e-12)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=40), st.sampled_from([0.9, 0.999]))
def test_the_interval_of_a_lift_is_that_of_a_difference(values, level):
    mean = Mean()
    for value in values:
        mean.add(value)
    differences = np.array(values)
    expected = compare((1 + differences) / 2, (1 - differences) / 2, level)
    assert mean.interval(level) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_groups_orders_positions_duplicates_and_leaks_are_counted():
    tally = Tally({1: "yes", 2: "no"}.get)
    tally.add(trials("a", ([1, 2], 1.0, "m"), ([2, 1], 0.0, "m"), ([1, 2], 1.0, "m")))
    tally.add(trials("b", ([1, 3], 0.3, "m"), ([3, 1], 0.3, "n"), ([2], None, "n")))
    tally.add(trials("c", ([4, 5], 0.0, "n")))
    assert (tally.groups, tally.zero_variance) == (2, 1)
    assert (tally.orders, tally.orders_differ) == (3, 2)
    assert tally.best.value == pytest.approx((1.0 + 0.3 + 0.0) / 3)
    assert {k: (m.number, m.total) for k, m in tally.positions.items()} == {
        (2, 0): (3, 2.3),
        (2, 1): (2, 0.3),
    }
    assert (tally.duplicates, tally.failed, tally.failures) == (1, 1, {"broken": ["b"]})
    assert tally.methods["m"].effective_rows == pytest.approx(
        math.exp(-sum(p * math.log(p) for p in (4 / 8, 3 / 8, 1 / 8)))
    )
    query = trials("d", ([6], 1.0, "m"))
    query.record["excluded"] = [6]
    tally.add(query)
    assert tally.excluded_shown == ["d"]


def test_a_record_that_cannot_be_counted_is_left_out_and_named(tmp_path):
    path = write_world(tmp_path, PLAIN)
    content = json.loads(path.read_text())
    content["q1"]["pointer_candidates"][0]["vqa_acc_score"] = "much"
    content["q2"]["pointer_candidates"][0]["beam_rank"] = None  # breaks the schema, and no figure
    path.write_text(json.dumps(content))
    page, _ = report(path, at=tmp_path)
    assert "rl.json: 1 query left out of this report" in page.text
    assert "findings of validate" in page.text
    assert [query[0] for query in page.data("queries-0")] == ["q0", *(f"q{n}" for n in range(2, 8))]


# --- what it shows, and leaves out ----------------------------------------------------------------


def test_queries_have_their_images_and_demonstrations(tmp_path):
    page, left_out = report(write_world(tmp_path, PLAIN), at=tmp_path)
    assert left_out == []
    images, [pool] = page.data("images"), page.data("page")["pools"]
    assert len(page.data("thumbnails")) == EXAMPLES  # each once, although all are shown twice
    assert set(images["queries"][0]) == {f"q{number}" for number in range(EXAMPLES)}
    for query in page.data("queries-0"):
        for candidate in query[4]:
            for row in candidate[1]:
                assert pool[str(row)][:2] == [f"q{row}", f"{PLAIN[row % 4]} {row}?"]
                assert images["rows"][0][str(row)] == images["queries"][0][f"q{row}"]


def test_a_page_that_would_be_too_large_has_a_sample_and_says_so(tmp_path):
    path = write_world(tmp_path, ("word " * 100,), queries=300)
    page, left_out = report(path, at=tmp_path, max_bytes=300_000)
    shown = [query[0] for query in page.data("queries-0")]
    assert len(page.bytes) <= 300_000
    assert 10 < len(shown) < 300
    assert shown == sorted(shown, key=lambda id: int(id[1:]))
    assert left_out[0].startswith(f"rl.json: {len(shown)} of 300 queries are shown")
    assert all(sentence in page.text for sentence in left_out)
    assert "beam300600" in page.text.replace("\n", "")  # the tables count all of them


def test_images_without_room_are_left_out_and_said(tmp_path):
    path = write_world(tmp_path, PLAIN)
    for number in range(EXAMPLES):
        pixels = np.random.default_rng(number).integers(0, 255, (60, 90, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    whole, _ = report(path, at=tmp_path)
    most = len(whole.bytes) - 5_000
    page, [sentence] = report(path, at=tmp_path, max_bytes=most)
    assert len(page.bytes) <= most
    assert 0 < len(page.data("thumbnails")) < EXAMPLES
    with_all = int(sentence.split()[0])
    assert sentence == (
        f"{with_all} of {EXAMPLES} queries have all their images; there is no room for more "
        "(--max-mb)"
    )
    assert sentence in page.text
    images = page.data("images")
    assert with_all == sum(
        query[0] in images["queries"][0]
        and all(str(row) in images["rows"][0] for one in query[4] for row in one[1])
        for query in page.data("queries-0")
    )


def test_a_sample_does_not_depend_on_the_order_and_a_smaller_one_is_part_of_it():
    queries = [trials(f"q{number}", ([1], 1.0, "m")) for number in range(200)]

    def sample(queries, most):
        made = Sample("x")
        for query in queries:
            made.add(query, most)
        return {json.loads(text)[0] for text in made.in_file_order()}

    large = sample(queries, 6_000)
    assert large == sample(reversed(queries), 6_000)
    assert sample(queries, 3_000) < large


def test_small_files_stay_whole_when_large_ones_are_cut():
    small, large, larger = Sample("s"), Sample("l"), Sample("xl")
    for made, number in ((small, 10), (large, 100), (larger, 300)):
        for each in range(number):
            made.add(trials(f"q{each}", ([1], 1.0, "m")), 10**6)
    share_out([larger, small, large], small.size + 8_000)
    assert (small.kept, large.total) == (10, 100)
    assert large.size + larger.size <= 8_000
    assert abs(large.size - larger.size) < 100


def test_a_method_that_proposed_nothing_for_a_query_has_no_accuracy_there():
    tally = Tally()
    for method in ("m", "n", "m"):
        tally.add(trials(method, ([1], 1.0, method)))
    assert tally.by_query() == {"m": [1.0, None, 1.0], "n": [None, 1.0, None]}


def test_thumbnails_are_made_once_and_stop_at_the_limit():
    def noise(seed):
        pixels = np.random.default_rng(seed).integers(0, 255, (200, 300, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        PIL.Image.fromarray(pixels).save(buffer, "png")
        return ImageBytes(buffer.getvalue(), f"noise {seed}")

    thumbnails = Thumbnails(40_000)
    numbers = [thumbnails.add(noise(seed)) for seed in (0, 0, *range(1, 12), 0)]
    shown = len(thumbnails.encoded)
    assert 1 < shown < 12
    assert numbers[:3] == [0, 0, 1]
    assert (numbers[-2], numbers[-1]) == (None, 0)
    assert thumbnails.full
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(buffer, "png")
    assert thumbnails.add(ImageBytes(buffer.getvalue(), "small")) is None  # it would fit
    assert sum(len(each) + 3 for each in thumbnails.encoded) == thumbnails.size <= 40_000
    for text in thumbnails.encoded:
        with PIL.Image.open(io.BytesIO(base64.b64decode(text))) as image:
            assert (image.format, image.size) == ("WEBP", (144, 96))
    broken = Thumbnails(9_999)
    assert [broken.add(ImageBytes(b"no image", "broken.png")) for _ in range(2)] == [None, None]
    assert list(broken.unreadable) == ["broken.png"]


def test_without_its_dataset_a_report_says_so(tmp_path):
    path = write_world(tmp_path, PLAIN)
    (tmp_path / "data.jsonl").unlink()
    page, [sentence] = report(path, at=tmp_path)
    assert sentence.startswith("rl.json: no images, and no questions of demonstrations: ")
    assert page.data("thumbnails") == []
    with pytest.raises(InputError, match=r"data\.jsonl"):
        report(path, at=tmp_path, dataset="jsonl", dataset_options={"path": "data.jsonl"})


# --- trainings ------------------------------------------------------------------------------------


def write_training(folder, rounds=2):
    """A folder as `train --online` leaves it: two epochs a round, and 10 calls in each."""
    (folder / "rounds").mkdir(parents=True)
    lines, counts = [], {"data": 100}
    for number in range(rounds + 1):
        for epoch in range(2):
            place = {"round": number, "stage": "rce", "epoch": epoch, "keep_by": "reward"}
            held = {"held_out_reward": number + epoch / 10, "held_out_queries": 20 + number}
            lines.append({**place, **held, "kl": math.nan, "rce": 1.0})
        if number:
            path = folder / "rounds" / f"round-{number:02d}.json"
            write_world(path.parent, PLAIN, queries=number).replace(path)
            counts[hashlib.sha256(path.read_bytes()).hexdigest()] = 10
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    training = {"calls": 100 + 10 * rounds, "calls_by_file": counts, "options": {}}
    (folder / "bundle.json").write_text(json.dumps({"training": training}))


def test_rounds_of_a_training_have_their_calls_and_accuracies(tmp_path):
    write_training(tmp_path / "policy")
    [where] = [each for each in find_inputs([tmp_path]) if each.kind == "training"]
    path = tmp_path / "policy" / "rounds" / "round-01.json"
    tally = Tally()
    for accuracy in (0.0, 1.0, 1.0):
        tally.add(trials("q", ([1], accuracy, "m")))
    training = Training.read(where, {path: tally})
    assert [each.calls for each in training.rounds] == [100, 110, 120]
    assert [each.accuracy for each in training.rounds] == [None, pytest.approx(2 / 3), None]
    assert [each.last["epoch"] for each in training.rounds] == [1, 1, 1]
    assert training.against_calls("held_out_reward") == [(100, 0.1), (110, 1.1), (120, 2.1)]
    assert [rule.x for rule in training.rules()] == [2, 4]
    assert training.points("kl") == []  # not finite
    [group] = group_trainings([training])
    titles = [panel.title for panel in group.figure().panels]
    assert titles == ["Held-out reward against calls", "Held-out reward", "RCE loss"]


@pytest.mark.parametrize("line", ['{"round": "x", "rce": "much"}', "[1]", '{"rce": NaN}'])
def test_a_training_with_odd_metrics_is_shown(tmp_path, line):
    write_training(tmp_path / "policy")
    (tmp_path / "policy" / "bundle.json").write_text('{"training": 5}')
    (tmp_path / "policy" / "metrics.jsonl").write_text(line)
    page, _ = report(tmp_path / "policy", at=tmp_path)
    assert "Where each training, or each of its rounds, ended" in page.text


def test_a_damaged_training_is_one_line(tmp_path):
    write_training(tmp_path / "policy")
    (tmp_path / "policy" / "metrics.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"metrics\.jsonl: cannot be read"):
        report(tmp_path / "policy", at=tmp_path)


def test_calls_that_are_not_known_are_not_guessed(tmp_path):
    write_training(tmp_path / "policy")
    (tmp_path / "policy" / "rounds" / "round-02.json").unlink()
    [where] = [each for each in find_inputs([tmp_path]) if each.kind == "training"]
    assert [each.calls for each in Training.read(where, {}).rounds] == [None, None, None]


# --- inputs ---------------------------------------------------------------------------------------


def test_folders_are_searched_and_other_files_passed_over(tmp_path):
    write_world(tmp_path, PLAIN)
    training = tmp_path / "run" / "policy"
    training.mkdir(parents=True)
    (training / "metrics.jsonl").write_text('{"stage": "rce", "epoch": 1, "rce": 2.0}\n')
    (training / "config.json").write_text("{}")
    (tmp_path / "list.json").write_text("[1, 2]")
    record = '{"query_id": "q0", "query": {}, "pointer_candidates": []}'
    (tmp_path / "rl.partial.jsonl").write_text(record)
    (tmp_path / ".hidden.json").write_text("{")
    (tmp_path / "beams.json").write_text('{"q0": {"query": {}, "beams": []}}')
    found = [(each.name, each.kind) for each in find_inputs([tmp_path])]
    assert found == [("beams.json", "beams"), ("rl.json", "rl"), ("run/policy", "training")]
    twice = find_inputs([tmp_path, tmp_path / "run" / ".." / "rl.json"])
    assert [each.path for each in twice] == [each.path for each in find_inputs([tmp_path])]
    assert [each.name for each in find_inputs([training, tmp_path / "rl.json"])] == [
        "run/policy",
        "rl.json",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: at / "nothing", "no such file or folder"),
        (lambda at: (at / "empty").mkdir() or at / "empty", "no RL data, beam data"),
        (lambda at: at / "data.jsonl", "neither RL data"),
        (lambda at: (at / "x.json").write_text('{"verdict": "x"}') and at / "x.json", "damaged"),
        (lambda at: (at / "y.json").write_text('{"q": {"po') and at / "y.json", "cut off"),
    ],
)
def test_a_path_that_is_no_input_is_one_line(tmp_path, make, message):
    write_world(tmp_path, PLAIN)
    with pytest.raises(InputError, match=message) as raised:
        report(make(tmp_path), at=tmp_path)
    assert "\n" not in str(raised.value)


def test_a_report_is_an_html_file_and_is_not_replaced_unasked(tmp_path):
    path = write_world(tmp_path, PLAIN)
    with pytest.raises(InputError, match=r"\.html"):
        write_report([path], tmp_path / "report.pdf")
    write_report([path], tmp_path / "report.html")
    with pytest.raises(InputError, match="overwrite"):
        write_report([path], tmp_path / "report.html")


# --- figures --------------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_in_the_range_and_evenly_spaced(low, width):
    found = ticks(low, low + width)
    assert all(low - 1e-6 * width <= each <= low + width * (1 + 1e-6) for each in found)
    gaps = {f"{b - a:.6g}" for a, b in pairwise(found)}
    assert len(gaps) <= 1 or width < 1e-3 * abs(low)
    assert len(found) <= 8


def test_a_chart_names_its_lines_as_text_and_breaks_them_at_gaps():
    series = Series("<b>&", [(0, 1.0), (1, 2.0), (9, 3.0)], 0, gap=1.5)
    text = line_chart([series], title='a "title"', x_label="x", end_labels=True).__html__()
    assert "&lt;b&gt;&amp;" in text
    assert 'aria-label="a &#34;title&#34;"' in text
    [path] = re.findall(r' d="([^"]*)"', text)
    assert (path.count("M"), path.count("L")) == (2, 1)


# --- figures one at a time ------------------------------------------------------------------------


def shares(figure):
    """Widths of the bars' parts: (class, share of the whole bar)."""
    svg = ElementTree.fromstring(figure._repr_svg_())
    rects = list(svg.iter("{http://www.w3.org/2000/svg}rect"))
    whole = next(float(each.get("width")) for each in rects if each.get("class") == "whole")
    return [
        (each.get("class"), float(each.get("width")) / whole)
        for each in rects
        if each.get("class") in ("right", "wrong", "failed") and each.get("height") == "16"
    ]


def test_outcomes_are_shares_of_a_methods_candidates(tmp_path):
    query = trials(
        "q", ([1], 1.0, "beam"), ([2], 0.0, "beam"), ([3], None, "beam"), ([4], 0.3, "beam")
    )
    found = figure("outcomes", {"q": query.record})
    assert shares(found) == [
        ("right", pytest.approx(0.5, abs=1e-4)),
        ("wrong", pytest.approx(0.25, abs=1e-4)),
        ("failed", pytest.approx(0.25, abs=1e-4)),
    ]
    assert "67% of 3" in found._repr_html_()
    path = write_world(tmp_path, PLAIN)
    records = {key: each for key, each in json.loads(path.read_text()).items() if key != "_meta"}
    assert shares(figure("outcomes", path)) == shares(figure("outcomes", records))


def test_foreign_text_in_a_figure_is_text():
    candidates = [([place], 1.0, text) for place, text in enumerate(HOSTILE)]
    found = figure("outcomes", {"q": trials("q", *candidates).record})
    titled = Figure([Panel(text, found.panels[0].chart) for text in HOSTILE], found.legend)
    for each in (found, titled):
        html, svg = each._repr_html_(), each._repr_svg_()
        for text in (html, svg):
            assert "<script" not in text
            assert "<img" not in text
            assert "\x1b" not in text
        drawn, *_ = ElementTree.fromstring(html).iterfind(".//*[@role='img']")
        assert "</script>" in drawn.get("aria-label")
        assert "</script>" in "".join(ElementTree.fromstring(svg).itertext())


def test_a_figure_in_a_notebook_styles_nothing_around_it():
    html = figure("outcomes", {"q": trials("q", ([1], 1.0, "m")).record})._repr_html_()
    style = re.search("<style>(.*)</style>", html, re.DOTALL)[1]
    outside = re.sub(r"/\*.*?\*/", "", style, flags=re.DOTALL)
    while outside != (less := re.sub(r"\{[^{}]*\}", "", outside)):
        outside = less
    assert set(outside.split()) == {".pointer-rl-figure"}


def test_learning_curves_of_several_trainings_share_a_legend(tmp_path):
    for name in ("one", "two"):
        write_training(tmp_path / name)
    html = figure("training", tmp_path / "one", tmp_path / "two")._repr_html_()
    assert re.findall("</svg>(one|two)</li>", html) == ["one", "two"]
    assert (
        figure("training", tmp_path)._repr_svg_()
        == figure("training", tmp_path / "one", tmp_path / "two")._repr_svg_()
    )


@pytest.mark.parametrize(
    ("name", "sources", "said"),
    [
        ("arm", ["rl.json"], "no figure 'arm'; did you mean 'arms'"),
        ("arms", [], "arms: give what to show"),
        ("arms", ["rl.json"], "this figure is of evaluations, not of files of RL data"),
        ("training", ["rl.json"], "this figure is of training folders, not of files of RL data"),
        ("outcomes", [5], "this figure is of files of RL data: give a path, not int"),
        ("outcomes", [{"q": {"pointer_candidates": [{}]}}], "in memory: 'q': what is counted"),
        ("training", ["nothing"], "nothing: no such file or folder"),
        ("training", ["policy", "sft"], "give those of one kind"),
    ],
)
def test_what_a_figure_cannot_show_is_one_line(tmp_path, name, sources, said):
    write_world(tmp_path, PLAIN)
    write_training(tmp_path / "policy")
    write_training(tmp_path / "sft")
    metrics = tmp_path / "sft" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"reward"', '"cross_entropy"'))
    paths = [tmp_path / each if isinstance(each, str) else each for each in sources]
    with pytest.raises(InputError, match=re.escape(said)):
        figure(name, *paths)


def test_a_figure_is_saved_as_svg(tmp_path):
    found = figure("outcomes", {"q": trials("q", ([1], 1.0, "m")).record})
    found.save(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text() == found._repr_svg_()
    with pytest.raises(InputError, match=r"ends in \.svg"):
        found.save(tmp_path / "a.png")
