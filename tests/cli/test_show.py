"""`pointer-rl show`: queries and their candidates in words."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from pointer_rl.cli.inline_images import iterm_codes, kitty_codes, protocol_of

DATA = Path(__file__).parents[1] / "data" / "versions"


@pytest.fixture
def shown(world, cli):
    """RL data of the jsonl world, whose images are files, and `show` with these arguments."""
    done = world.generate()
    assert done.exit_code == 0, done.output

    def run(*args):
        done = cli("show", *map(str, args))
        assert done.exit_code == 0, done.output
        return done

    return run


def candidates(world):
    content = json.loads(world.output.read_text())
    return {key: each["pointer_candidates"] for key, each in content.items() if key != "_meta"}


def test_a_query_is_printed_with_everything_about_its_candidates(world, shown):
    found = shown(world.output, "e3")
    assert found.stderr == ""
    head, annotators, image, counts, *lines = found.stdout.splitlines()
    assert head == "query e3: q3?"
    assert annotators == "  annotators: b (10)"
    assert image == f"  {world.folder / '3.png'}"
    judged = candidates(world)["e3"]
    right = sum(each["vqa_correct"] for each in judged)
    assert counts.split(", ")[0].strip().startswith(f"{len(judged)} candidates: ")
    assert f"{right} correct" in counts
    assert lines.pop() == ""
    for place, each in enumerate(judged):
        part, lines = lines[: 2 + 2 * len(each["pointer"])], lines[2 + 2 * len(each["pointer"]) :]
        judgement = "correct" if each["vqa_correct"] else "wrong"
        assert part[0] == (
            f"  candidate {place}: {judgement}, accuracy {each['vqa_acc_score']:g}: "
            f'answer "{each["vqa_pred_answer"]}", generation "{each["vqa_raw_generation"]}"'
        )
        assert part[1].startswith(f"    by {each['gen_method']}")
        for number, row in enumerate(each["pointer"]):
            example = world.rows[row]
            answer = example["answers"][0]
            text = f"    {number + 1}. row {row} (e{row}): {example['question']} → {answer}"
            assert part[2 + 2 * number :][:2] == [text, f"       {world.folder / f'{row}.png'}"]
    assert lines == []


def test_how_a_candidate_was_proposed(cli):
    done = cli("show", str(DATA / "1.0/generated.json"), "2000000", "--gen-method", "sample")
    text = " ".join(done.stdout.split())
    content = json.loads((DATA / "1.0/generated.json").read_text())["2000000"]
    sampled = [e for e in content["pointer_candidates"] if e["gen_method"] == "sample"]
    assert sampled
    for each in sampled:
        about = f"by sample, log-probability {each['logprob_score']:.4g}"
        assert f"{about}, temperature {each['temperature']:g}" in text
    assert text.count(" by sample") == len(sampled)


def places(stdout):
    """(query, place) of each candidate that was printed."""
    found, query = [], ""
    for line in stdout.splitlines():
        if line.startswith("query "):
            query = line.split()[1].rstrip(":")
        elif match := re.match(r"  candidate (\d+):", line):
            found.append((query, int(match[1])))
    return found


def test_filters_leave_what_they_say(world, shown):
    found = shown(world.output, "--wrong", "--limit", 99)
    every = candidates(world)
    wrong = [
        (query, place)
        for query, each in every.items()
        for place, one in enumerate(each)
        if not one["vqa_correct"]
    ]
    assert 0 < len(wrong) < sum(map(len, every.values()))
    assert places(found.stdout) == wrong
    number, total = len({query for query, _ in wrong}), sum(map(len, every.values()))
    assert " ".join(found.stdout.splitlines()[-2:]).strip() == (
        f"shown: {number} of the {number} queries with such candidates ({len(wrong)} of {total} "
        "candidates; 8 queries in all)"
    )
    none = f"no such candidates (of {total} candidates in 8 queries)\n"
    assert shown(world.output, "--failed").stdout == none


def test_failed_trials_have_their_reason_and_are_not_wrong(cli):
    path = str(DATA / "1.0/failed.json")
    failed = cli("show", path, "--failed", "--limit", "9").stdout
    assert "candidate 0: failed: the server closed the connection" in failed
    assert ": failed" not in cli("show", path, "--wrong", "--limit", "9").stdout


def test_the_first_few_are_printed_and_all_are_counted(world, shown):
    lines = shown(world.output, "--limit", 2).stdout.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("query")] == [
        "query e0",
        "query e1",
    ]
    total = sum(map(len, candidates(world).values()))
    assert lines[-1] == f"shown: 2 of 8 queries ({total} candidates)"


def test_a_dataset_that_cannot_be_opened_is_said_and_rows_are_shown(world, shown, cli):
    moved = world.data.rename(world.folder / "moved.jsonl")
    found = shown(world.output, "e3")
    [why] = found.stderr.splitlines()
    assert why.startswith("pointer-rl: demonstrations are shown as rows alone: ")
    assert f"{world.data}: cannot read it" in why
    assert found.stdout.splitlines()[:2] == ["query e3: q3?", "  annotators: b (10)"]
    assert re.search(r"^    1\. row \d$", found.stdout, re.MULTILINE)
    again = shown(world.output, "e3", "--dataset-opt", f"path={moved}")
    assert again.stderr == ""
    assert "q3? → b" in again.stdout or "→ a" in again.stdout
    other = cli("show", str(world.output), "--dataset-opt", "path=nowhere.jsonl")
    assert other.exit_code == 2
    assert "nowhere.jsonl" in other.stderr


def test_a_dataset_with_another_pool_is_not_passed_off_as_the_files(world, shown):
    world.rows.pop()
    world.write()
    found = shown(world.output, "e3")
    assert "the dataset's pool (7 examples) has other ids than the recorded one" in found.stderr
    assert "→" not in found.stdout


@pytest.mark.parametrize("path", sorted(DATA.glob("*/*.*")), ids=lambda path: path.name)
def test_every_file_of_records_can_be_looked_at(path, cli):
    if path.suffix == ".ckpt":
        return
    done = cli("show", str(path), "--limit", "1")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("query ")
    assert "None" not in done.stdout


def test_beams_have_no_answers(cli):
    path = str(DATA / "1.0/beams.json")
    done = cli("show", path, "2000000")
    beams = json.loads(Path(path).read_text())["2000000"]["beams"]
    assert f"\n  {len(beams)} beams\n" in done.stdout
    steps = " + ".join(f"{each:.4g}" for each in beams[0]["step_scores"])
    assert f"\n  beam 0: InfoScore {beams[0]['score']:.4g} ({steps})\n" in done.stdout
    refused = cli("show", path, "--wrong")
    assert refused.exit_code == 2
    assert refused.stderr.endswith("beam data, which have no answers: leave out --wrong\n")


def test_foreign_text_is_escaped_and_the_file_is_no_terminals_master(tmp_path, cli):
    evil = "\x1b[2K\x07\n\u202ex"
    candidate = {
        "pointer": [1],
        "gen_method": evil,
        "vqa_pred_answer": evil,
        "vqa_raw_generation": evil,
        "vqa_correct": 1,
        "vqa_acc_score": 1.0,
    }
    query = {"query_id": evil, "row": 0, "question": evil, "gt_answers_raw": [evil]}
    path = tmp_path / "rl.json"
    path.write_text(json.dumps({evil: {"query": query, "pointer_candidates": [candidate]}}))
    done = cli("show", str(path))
    assert done.exit_code == 0, done.output
    assert not {"\x1b", "\x07", "\u202e"} & set(done.stdout)
    assert done.stdout.count("\\u001b[2K") == 6
    assert sum(line.startswith("query") for line in done.stdout.splitlines()) == 1


def test_lines_are_wrapped_at_80_columns_and_words_are_whole(world, shown):
    long = "a" * 100
    world.rows[4]["question"] = f"what is {'very ' * 30}{long} red?"
    world.write()
    lines = shown(world.output, "--limit", 9).stdout.splitlines()
    others = [line for line in lines if long not in line and str(world.folder) not in line]
    assert max(map(len, others)) in range(70, 81)
    assert {line.strip() for line in lines if long in line} == {long}


@pytest.mark.parametrize(
    ("args", "saying"),
    [
        (("none.json",), "none.json: cannot read it"),
        (("rl.json", "e99"), "rl.json: no query 'e99' in it"),
        (("rl.json", "--gen-method", "beem"), "no candidate by 'beem' (there are: "),
        (("bad.json",), "bad.json: q/pointer_candidates/0/vqa_correct: "),
        (("other.json",), "other.json: 'x': neither RL data"),
        (("early.json",), "early.json: an evaluation without answers, by an earlier version"),
        (("spoilt.json",), "spoilt.json: a damaged evaluation"),
    ],
)
def test_what_cannot_be_shown_is_one_line(args, saying, tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(DATA / "1.0/generated.json", "rl.json")
    bad = {"pointer": [1], "gen_method": "m", "vqa_pred_answer": "x", "vqa_acc_score": 1.0}
    bad["vqa_correct"] = 7
    for name, content in {
        "bad.json": {"q": {"pointer_candidates": [bad]}},
        "other.json": {"x": 1},
        "early.json": {"verdict": "better", "settings": {}},
        "spoilt.json": {"verdict": "better", "records": {"q": {}}, "pointers": {"2": {"RL": []}}},
    }.items():
        Path(name).write_text(json.dumps(content))
    done = cli("show", *args)
    assert done.exit_code == 2, done.output
    [line] = done.stderr.splitlines()
    assert line.startswith("pointer-rl: error: ")
    assert saying in line


# --- evaluations ------------------------------------------------------------------------------


@pytest.fixture
def evaluated(world, cli):
    path = world.folder / "evaluation.json"
    done = cli(
        *("evaluate", "--backend", "copy", "--dataset", "jsonl"),
        *("--dataset-opt", f"path={world.data}", "--shots", "1,2"),
        *("--query-emb", str(world.query_emb), "--cand-emb", str(world.cand_emb)),
        *("--output-path", str(path)),
    )
    assert done.exit_code == 0, done.output
    return path


def test_an_evaluation_keeps_pointers_and_answers_of_every_arm(evaluated):
    content = json.loads(evaluated.read_text())
    asked = [
        {tuple(one["pointer"]): one for one in content["records"][id]["pointer_candidates"]}
        for id in content["query_ids"]
    ]
    for id, record in content["records"].items():
        assert record["query"]["question"] == id.replace("e", "q") + "?"
    combine = {"oracle": max}
    compared = 0
    for shots, arms in content["pointers"].items():
        for arm, pointers in arms.items():
            for of_query, mine, accuracy in zip(
                pointers, asked, content["accuracies"][shots][arm], strict=True
            ):
                found = [mine[tuple(pointer)]["vqa_acc_score"] for pointer in of_query]
                assert all(len(pointer) <= int(shots) for pointer in of_query)
                if found:  # a vote asks nothing
                    compared += 1
                    assert combine.get(arm, np.mean)(found) == pytest.approx(accuracy, abs=1e-6)
    assert compared > 50


def test_an_evaluation_is_shown_by_arm(evaluated, cli):
    content = json.loads(evaluated.read_text())
    done = cli("show", str(evaluated), "e2", "--gen-method", "similarity")
    assert done.exit_code == 0, done.output
    place = content["query_ids"].index("e2")
    ((one,), (two,)) = (content["pointers"][shots]["similarity"][place] for shots in ("1", "2"))
    rows = [int(row) for row in re.findall(r"^    \d+\. row (\d+)", done.stdout, re.MULTILINE)]
    assert rows == [*one, *two]
    assert re.search(r"^    shown by .*similarity.* \(2 shots\)", done.stdout, re.MULTILINE)
    assert "→" in done.stdout


# --- images -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, kitty_codes),
        ({"KITTY_WINDOW_ID": "1", "TERM": "xterm-256color"}, kitty_codes),
        ({"TERM_PROGRAM": "ghostty"}, kitty_codes),
        ({"TERM_PROGRAM": "iTerm.app"}, iterm_codes),
        ({"TERM_PROGRAM": "WezTerm"}, iterm_codes),
        ({"TERM_PROGRAM": "iTerm.app", "TMUX": "/tmp/tmux"}, None),
        ({"TERM": "xterm-256color"}, None),
        ({}, None),
    ],
)
def test_the_terminals_protocol(environment, protocol):
    assert protocol_of(environment) is protocol


def test_kittys_codes_carry_the_image_in_pieces():
    png = bytes(range(256)) * 40
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", kitty_codes(png))
    assert base64.b64decode("".join(data for _, data in pieces)) == png
    assert all(len(data) <= 4096 for _, data in pieces)
    assert [keys.rpartition("m=")[2] for keys, _ in pieces] == ["1"] * (len(pieces) - 1) + ["0"]
    assert "a=T" in pieces[0][0]


def test_no_image_goes_into_a_pipe(world, shown):
    piped = shown(world.output, "e3", "--images")
    assert piped.stderr == "pointer-rl: --images: images are left out: this is no terminal\n"
    assert piped.stdout == shown(world.output, "e3").stdout


def test_images_are_shown_in_a_terminal_that_can(world, shown, terminal, monkeypatch):
    unknown = shown(world.output, "e3", "--images")
    assert "images are left out: this terminal is not known to show any" in unknown.stderr
    assert "\x1b" not in unknown.stdout
    monkeypatch.setenv("TERM_PROGRAM", "iTerm.app")
    rows = [row for each in candidates(world)["e3"] for row in each["pointer"]]
    (world.folder / f"{rows[0]}.png").write_text("no image")
    found = shown(world.output, "e3", "--images")
    sent = re.findall(r"\x1b\]1337;File=inline=1;size=\d+;height=8:([^\x07]*)\x07", found.output)
    colours = [
        PIL.Image.open(io.BytesIO(base64.b64decode(each))).getpixel((0, 0))[0] for each in sent
    ]
    assert colours == [3, *(row for row in rows if row != rows[0])]
    assert " ".join(found.output.split()).count("not a readable image") == rows.count(rows[0])
