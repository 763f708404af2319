"""`manyfit init`: what it makes, and what it refuses. That it works from a wheel is in test_wheel.py."""

from pathlib import Path

import pytest

from conftest import command
from manyfit import cli, project


def test_it_makes_a_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every file of the template, the folder's name in its README, and what to do next; its own test passes."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "work/my nets"]) == 0
    said, made = capsys.readouterr().out, tmp_path / "work" / "my nets"
    assert "\n  cd 'work/my nets'\n  manyfit run model=mine\n" in said
    files = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    known = (path.relative_to(project.TEMPLATE) for path in project.TEMPLATE.rglob("*") if path.is_file())
    assert files == {str(path) for path in known if "__pycache__" not in path.parts}
    assert {"README.md", ".gitignore", "conf/model/mine.yaml", "tests/test_nets.py"} <= files
    assert all(f"\n  {file}" in said for file in files)
    readme = (made / "README.md").read_text()
    assert readme.startswith("# my nets\n")
    assert "VERSION" not in readme
    (tmp_path / "test.py").write_text("import sys, pytest\nsys.exit(pytest.main(['-q']))")
    done = command(made, run=tmp_path / "test.py")
    assert done.returncode == 0, done.stdout


def test_it_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file, an empty folder, a link that leads nowhere: each is refused, and stays as it is."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "folder", "link"):
        assert cli.main(["init", str(tmp_path / name)]) == 1
        known = f"manyfit: NAME must be a new folder, but got {tmp_path / name}, which exists. Choose another.\n"
        assert capsys.readouterr().err == known
    assert (tmp_path / "file").read_text() == "mine"
    assert not list((tmp_path / "folder").iterdir())


def test_it_needs_a_folder_that_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beneath a file there is no room for one."""
    (tmp_path / "file").touch()
    assert cli.main(["init", str(tmp_path / "file" / "mine")]) == 1
    assert "must be a folder that can be written, but got" in capsys.readouterr().err
