from __future__ import annotations

import pickle
import subprocess
import sys
from importlib.metadata import Distribution, EntryPoint
from types import ModuleType

import pytest

from pointer_rl.errors import InputError, MissingExtraError, PluginError
from pointer_rl.hookspecs import hookimpl
from pointer_rl.registry import KINDS, Registry


class FakeDistribution(Distribution):
    def __init__(self, name: str) -> None:
        self._name = name

    def read_text(self, filename: str) -> str | None:
        return f"Metadata-Version: 2.1\nName: {self._name}\nVersion: 1.0\n"

    def locate_file(self, path):
        raise AssertionError(path)


def point(monkeypatch, name: str, distribution: str, **hooks) -> EntryPoint:
    """An entry point of a module with these hook implementations."""
    module = ModuleType(f"fake_plugin_{distribution}_{name}".replace("-", "_"))
    for hook, function in hooks.items():
        setattr(module, hook, hookimpl(function))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    made = EntryPoint(name, module.__name__, "pointer_rl")
    return made._for(FakeDistribution(distribution))


def registers(name: str, **more):
    def pointer_rl_register_metrics(register):
        register(name, lambda: name.upper(), summary="s", **more)

    return pointer_rl_register_metrics


def test_what_is_registered_can_be_made(monkeypatch):
    made = Registry([point(monkeypatch, "a", "dist-a", pointer_rl_register_metrics=registers("m"))])
    assert made.create("metric", "m") == "M"
    assert made.find("metric", "m").plugin.origin == "dist-a 1.0"
    assert [entry.name for entry in made.entries("metric")] == ["m"]


def test_an_alias_stands_for_option_values(monkeypatch):
    from dataclasses import dataclass

    @dataclass(frozen=True, kw_only=True)
    class Options:
        model: str
        size: int = 1

    def pointer_rl_register_backends(register):
        register("b", lambda o: o, options=Options, summary="", aliases={"big": {"model": "x"}})

    plugin = point(monkeypatch, "b", "d", pointer_rl_register_backends=pointer_rl_register_backends)
    made = Registry([plugin])
    assert made.create("backend", "big", {"size": "2"}) == Options(model="x", size=2)
    assert made.configure("backend", "big").describe() == {
        "name": "b",
        "options": {"model": "x", "size": 1},
    }
    assert [entry.name for entry in made.entries("backend")] == ["b"]
    with pytest.raises(InputError, match="backend b needs the option model"):
        made.create("backend", "b")


def test_a_name_registered_twice_is_refused_naming_both(monkeypatch):
    made = Registry(
        [
            point(monkeypatch, "a", "dist-a", pointer_rl_register_metrics=registers("m")),
            point(monkeypatch, "b", "dist-b", pointer_rl_register_metrics=registers("m")),
        ]
    )
    assert made.create("metric", "m") == "M"
    (failed,) = [plugin for plugin in made.plugins if plugin.error]
    assert failed.distribution == "dist-b"
    assert "metric m is registered twice: by dist-a 1.0 (a) and by dist-b 1.0 (b)" in failed.error


def test_built_in_plugins_win_whatever_the_others_are_called(monkeypatch):
    made = Registry(
        [
            point(monkeypatch, "a", "a-dist", pointer_rl_register_metrics=registers("m")),
            point(monkeypatch, "z", "pointer-rl", pointer_rl_register_metrics=registers("m")),
        ]
    )
    assert made.find("metric", "m").plugin.distribution == "pointer-rl"


def test_a_broken_plugin_breaks_nothing_but_itself(monkeypatch):
    def pointer_rl_register_metrics(register):
        register("half", lambda: 1, summary="")
        raise RuntimeError("boom\nmore")

    broken = point(
        monkeypatch, "broken", "d1", pointer_rl_register_metrics=pointer_rl_register_metrics
    )
    missing = EntryPoint("gone", "no_such_module_at_all", "pointer_rl")._for(FakeDistribution("d2"))
    fine = point(monkeypatch, "fine", "d3", pointer_rl_register_metrics=registers("m"))
    made = Registry([broken, missing, fine])
    errors = {plugin.name: plugin.error for plugin in made.plugins}
    assert errors["broken"] == "RuntimeError: boom"
    assert "no_such_module_at_all" in errors["gone"]
    assert errors["fine"] is None
    assert [entry.name for entry in made.entries("metric")] == ["m"]
    with pytest.raises(PluginError, match=r"unknown metric 'half'.*broken \(d1 1.0\) failed"):
        made.find("metric", "half")
    assert "boom" in next(p.traceback for p in made.plugins if p.name == "broken")


def test_a_misspelt_hook_is_an_error(monkeypatch):
    plugin = point(monkeypatch, "typo", "d", pointer_rl_register_metric=registers("m"))
    (loaded,) = Registry([plugin]).plugins
    assert "pointer_rl_register_metric" in loaded.error


def test_a_function_without_the_marker_is_named(monkeypatch):
    plugin = point(monkeypatch, "a", "d", pointer_rl_register_rewards=registers("r"))
    module = plugin.load()
    module.pointer_rl_register_metrics = registers("m")  # not marked
    made = Registry([plugin])
    assert [each.error for each in made.plugins] == [
        "PluginError: pointer_rl_register_metrics is not marked with @hookimpl"
    ]
    assert made.entries("reward") == made.entries("metric") == []


def test_hooks_are_called_as_pluggy_calls_them(monkeypatch):
    """Arguments are passed by name: a hook may leave some out, and may not invent any."""

    def pointer_rl_register_metrics(registrar):
        raise AssertionError("called")

    wrong = point(
        monkeypatch, "wrong", "d", pointer_rl_register_metrics=pointer_rl_register_metrics
    )
    bare = point(monkeypatch, "bare", "d", pointer_rl_register_metrics=lambda: None)
    fine = point(monkeypatch, "fine", "d", pointer_rl_register_metrics=registers("m"))
    made = Registry([wrong, bare, fine])
    errors = {plugin.name: plugin.error for plugin in made.plugins}
    assert errors.pop("wrong").endswith(
        "{'registrar'} are declared in the hookimpl but can not be found in the hookspec"
    )
    assert errors == {"bare": None, "fine": None}
    assert [entry.name for entry in made.entries("metric")] == ["m"]


def test_a_module_that_is_two_plugins_is_loaded_once(monkeypatch):
    one = point(monkeypatch, "one", "d", pointer_rl_register_metrics=registers("m"))
    two = EntryPoint("two", one.module, "pointer_rl")._for(FakeDistribution("e"))
    made = Registry([one, two])
    assert [plugin.error for plugin in made.plugins] == [
        None,
        f"PluginError: the module {one.module} is a plugin already",
    ]
    assert made.create("metric", "m") == "M"


FILE = """
from dataclasses import dataclass

from pointer_rl import hookimpl


@dataclass(frozen=True, kw_only=True)
class Options:
    word: str = "mine"
    \"\"\"What it says.\"\"\"


@hookimpl
def pointer_rl_register_metrics(register):
    register("mine", lambda options: options.word, options=Options, summary="s")
"""


@pytest.fixture
def plugin_file(tmp_path):
    path = tmp_path / "my_plugin.py"
    path.write_text(FILE)
    yield path
    sys.modules.pop("pointer_rl_plugin_file_my_plugin", None)


def test_a_file_is_a_plugin(plugin_file, monkeypatch):
    made = Registry([point(monkeypatch, "a", "d", pointer_rl_register_metrics=registers("m"))])
    made.load_file(plugin_file)
    made.load_file(plugin_file)  # once is enough
    assert made.files == [plugin_file]
    assert made.create("metric", "mine", {"word": "yours"}) == "yours"
    assert made.find("metric", "mine").plugin.origin == str(plugin_file)
    assert [plugin.name for plugin in made.plugins] == ["a", "my_plugin"]


def test_another_process_that_loads_the_files_can_unpickle_their_options(plugin_file):
    made = Registry([])
    made.load_file(plugin_file)
    pickled = pickle.dumps(made.configure("metric", "mine", {"word": "sent"}).options)
    code = (
        "import pathlib, pickle, sys\n"
        "from pointer_rl.registry import registry\n"
        "registry().load_file(pathlib.Path(sys.argv[1]))\n"
        "print(pickle.loads(sys.stdin.buffer.read()).word)"
    )
    command = [sys.executable, "-c", code, str(made.files[0])]
    assert subprocess.run(command, input=pickled, capture_output=True).stdout == b"sent\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "ModuleNotFoundError"),
        ("", "AttributeError"),
        ("x / 0", "NameError"),
        ("f(", "Syntax"),
    ],
)
def test_options_that_cannot_be_imported_are_one_line(tmp_path, monkeypatch, content, says):
    name = f"options_{says}"
    if content is not None:
        (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    hook = registers("m", options=f"{name}:Options")
    made = Registry([point(monkeypatch, "a", "d", pointer_rl_register_metrics=hook)])
    with pytest.raises(PluginError, match=rf"^metric m: its options .*{name}.* \({says}.*\)$"):
        made.create("metric", "m")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("x = 1\nx / 0\n", ", line 2: cannot be loaded (ZeroDivisionError: division by zero)"),
        ("f(\n", ": cannot be loaded (SyntaxError: '(' was never closed"),
        ("raise SystemExit('no licence')", "SystemExit: no licence"),
        (FILE.replace("@hookimpl", ""), "is not marked with @hookimpl"),
        (FILE.replace('"mine", l', '"m", l'), ", line 15: cannot be loaded (PluginError: metric m"),
        (None, "no such file"),
    ],
)
def test_a_file_that_fails_is_one_line_and_leaves_nothing_behind(
    plugin_file, monkeypatch, content, says
):
    plugin_file.unlink()
    if content is not None:
        plugin_file.write_text(content)
    made = Registry([point(monkeypatch, "a", "d", pointer_rl_register_metrics=registers("m"))])
    with pytest.raises(PluginError) as caught:
        made.load_file(plugin_file)
    assert str(caught.value).startswith(f"--plugin {plugin_file}")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in made.entries("metric")] == ["m"]
    assert (len(made.plugins), made.files) == (1, [])
    plugin_file.write_text(FILE)
    made.load_file(plugin_file)
    assert made.create("metric", "mine") == "mine"


def test_files_of_one_name_are_refused(plugin_file, tmp_path):
    made = Registry([])
    made.load_file(plugin_file)
    other = tmp_path / "other" / plugin_file.name
    other.parent.mkdir()
    other.write_text(FILE)
    with pytest.raises(PluginError, match=f"{plugin_file} has the same name; rename one"):
        made.load_file(other)


def test_only_and_blocked(monkeypatch):
    points = [
        point(monkeypatch, "core", "pointer-rl", pointer_rl_register_metrics=registers("core")),
        point(monkeypatch, "x", "d", pointer_rl_register_metrics=registers("x")),
        point(monkeypatch, "y", "d", pointer_rl_register_metrics=registers("y")),
    ]
    names = [entry.name for entry in Registry(points, only=frozenset()).entries("metric")]
    assert names == ["core"]
    names = [entry.name for entry in Registry(points, only=frozenset({"x"})).entries("metric")]
    assert names == ["core", "x"]
    names = [entry.name for entry in Registry(points, blocked=frozenset({"x"})).entries("metric")]
    assert names == ["core", "y"]


def test_a_plugins_command_is_added_and_a_failing_one_recorded(monkeypatch):
    import click

    @click.command()
    def hello() -> None:
        click.echo("hi")

    good = point(
        monkeypatch, "good", "d", pointer_rl_register_commands=lambda cli: cli.add_command(hello)
    )

    def fails(cli):
        raise RuntimeError("no command")

    bad = point(monkeypatch, "bad", "d", pointer_rl_register_commands=fails)
    made = Registry([good, bad])
    group = click.Group()
    made.add_commands(group)
    assert list(group.commands) == ["hello"]
    assert [p.error for p in made.plugins if p.name == "bad"] == ["RuntimeError: no command"]


def test_unknown_names_name_the_nearest(monkeypatch):
    made = Registry([point(monkeypatch, "a", "d", pointer_rl_register_metrics=registers("vqa"))])
    with pytest.raises(PluginError, match=r"unknown metric 'vqaa'; did you mean 'vqa'\?"):
        made.find("metric", "vqaa")


def test_every_kind_has_a_hook():
    from pointer_rl import hookspecs

    hooks = {name for name in vars(hookspecs) if name.startswith("pointer_rl_register_")}
    assert set(KINDS.values()) | {"pointer_rl_register_commands"} == hooks


def test_a_command_of_a_name_that_is_taken_is_refused(monkeypatch):
    import click

    mine, theirs = click.Command("run"), click.Command("run")

    def replaces(cli):
        cli.add_command(click.Command("more"))
        cli.add_command(theirs)

    bad = point(monkeypatch, "bad", "d", pointer_rl_register_commands=replaces)
    made = Registry([bad])
    group = click.Group(commands={"run": mine})
    made.add_commands(group)
    assert group.commands == {"run": mine}
    assert made.plugins[0].error == "PluginError: the command run already exists"


def test_what_a_plugin_needs_is_said_before_its_factory_is_called(monkeypatch):
    def never():
        raise AssertionError("called")

    def pointer_rl_register_metrics(register):
        register("m", never, summary="s", needs={"json": "json", "no_such": "dist-a[more]"})
        register("n", lambda: "N", summary="s", needs={"json": "json"})

    plugin = point(
        monkeypatch, "a", "dist-a", pointer_rl_register_metrics=pointer_rl_register_metrics
    )
    made = Registry([plugin])
    needed = r"metric m needs the package no_such: pip install 'dist-a\[more\]'"
    with pytest.raises(MissingExtraError, match=needed):
        made.create("metric", "m")
    assert made.create("metric", "n") == "N"
