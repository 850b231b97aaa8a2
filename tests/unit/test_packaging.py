"""What a release is made of."""

from __future__ import annotations

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_wheel_has_every_package_and_its_types():
    packages = set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert packages == {
        str(each.parent.relative_to(ROOT))
        for folder in (".", "plugins", "schemas")
        for each in (ROOT / folder).glob("pointer_rl*/__init__.py")
    }
    assert not [each for each in packages if not (ROOT / each / "py.typed").exists()]


def test_every_plugin_folder_is_registered():
    names = set(PROJECT["project"]["entry-points"]["pointer_rl"].values())
    assert names == {each.parent.name for each in (ROOT / "plugins").glob("*/__init__.py")}


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]


def test_workflows_run_what_exists():
    steps = [
        step["run"]
        for file in (ROOT / ".github/workflows").glob("*.yml")
        for job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].values()
        for step in job.get("steps", ())
        if "run" in step
    ]
    assert ".ci/run" in steps
    assert (ROOT / ".ci/run").stat().st_mode & 0o100


def test_nothing_is_published_before_the_tests_pass():
    workflows = ROOT / ".github/workflows"
    jobs = yaml.safe_load((workflows / "publish.yml").read_text(encoding="utf-8"))["jobs"]
    needed, before = set(), ["publish"]
    while before:
        needs = jobs[before.pop()].get("needs", [])
        before += (found := [needs] if isinstance(needs, str) else needs)
        needed |= set(found)
    called = [jobs[name]["uses"] for name in needed if "uses" in jobs[name]]
    assert called == ["./.github/workflows/tests.yml"]
    assert "  workflow_call:" in (workflows / "tests.yml").read_text(encoding="utf-8")


def test_pre_commit_runs_our_own_tools():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    tools = {hook["entry"].split()[0].rpartition("/")[2] for hook in hooks}
    assert tools <= {each.split(">")[0] for each in PROJECT["dependency-groups"]["dev"]}
