"""What may be overwritten: no input, by whatever path, and no file of another form than the output."""
import errno
import os

import pytest
from make_models import make_tiny

from lorafast.errors import LoraFastError, UsageError
from lorafast.gguf.file_form import FileForm
from lorafast.options.overwriting import Target, check_overwriting, form_of_existing

OUT = "--output"


def refused(path, form, inputs=(), **keywords):
    with pytest.raises(UsageError) as error:
        check_overwriting([Target(OUT, str(path), form)], {str(path): "the base model" for path in inputs}, **keywords)
    return str(error.value)


@pytest.mark.parametrize("force", [False, True])
def test_an_input_is_never_overwritten(tmp_path, force):
    model = make_tiny(tmp_path / "model.gguf")
    (tmp_path / "symbolic.gguf").symlink_to("model.gguf")
    os.link(model, tmp_path / "hard.gguf")
    for name in ("model.gguf", "symbolic.gguf", "hard.gguf"):
        assert "would overwrite the base model" in refused(tmp_path / name, FileForm.MODEL, [model], force=force)


def test_the_parts_of_a_model_and_the_files_of_a_folder_are_inputs(tmp_path):
    parts = [tmp_path / f"m[1]-0000{number}-of-00002.gguf" for number in (1, 2)]
    (tmp_path / "data").mkdir()
    for path in (*parts, tmp_path / "data" / "train.jsonl"):
        path.write_bytes(b"x")
    assert "would overwrite" in refused(parts[1], FileForm.MODEL, parts[:1], force=True)
    assert "would overwrite" in refused(tmp_path / "data" / "train.jsonl", FileForm.METRICS, [tmp_path / "data"],
                                         force=True)


@pytest.mark.parametrize("form, contents", [
    (FileForm.METRICS, b'{"event": "started", "time": 1}\n'),
    (FileForm.OPTIONS, b"# All options of a lorafast run; --config FILE gives them again.\n"),
    (FileForm.REPORT, b'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>x</title>'),
    (FileForm.MODELFILE, b"# made\nFROM ./model.gguf\n"),
    (FileForm.CARD, b"---\ntags:\n- lora\n- lorafast\n---\n"),
    (FileForm.TOKENS, b"lorafast tokens\n"),
    (FileForm.REFERENCE, b"lorafast reference\n00"),
    (FileForm.TEACHER, b"lorafast teacher\n"),
    (FileForm.SCORES, b'{\n "model": "x"}'),
    (FileForm.GGLA, b"algg"),
])
def test_only_the_same_form_is_replaced(tmp_path, form, contents):
    path = tmp_path / "file"
    path.write_bytes(contents)
    assert form_of_existing(str(path)) is form
    for output in FileForm:
        if output is form:
            check_overwriting([Target(OUT, str(path), output)], {})
        else:
            message = refused(path, output)
            assert f"exists and is not {output.phrase}" in message and "--force" in message
            check_overwriting([Target(OUT, str(path), output)], {}, force=True)


@pytest.mark.parametrize("contents", [b"my thesis", b"\x00\xff", b"GGUF"])
def test_files_of_no_form_are_not_replaced(tmp_path, contents):
    (tmp_path / "file.gguf").write_bytes(contents)
    refused(tmp_path / "file.gguf", FileForm.CHECKPOINT)


def test_what_cannot_be_read_is_not_called_another_form(tmp_path, monkeypatch):
    """--force would replace the run's own checkpoint, which cannot be opened for a moment."""
    model = make_tiny(tmp_path / "model.gguf")

    def too_many_files(*arguments):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    for module in ("options.overwriting", "gguf.recognise"):
        with monkeypatch.context() as patch, pytest.raises(LoraFastError, match=r"^cannot read .* open files"):
            patch.setattr(f"lorafast.{module}.open", too_many_files, raising=False)
            check_overwriting([Target(OUT, str(model), FileForm.MODEL)], {})


def test_nothing_is_lost_with_an_empty_file_or_a_new_folder(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    targets = [Target(OUT, str(tmp_path / name), form) for name, form in
               (("empty", FileForm.METRICS), ("folder", FileForm.PEFT), ("pipe", FileForm.METRICS),
                                   ("new", FileForm.MODEL))]
    check_overwriting(targets, {})
    (tmp_path / "folder" / "adapter_config.json").write_text("{}")
    (tmp_path / "folder" / "adapters.safetensors").touch()
    refused(tmp_path / "folder", FileForm.PEFT)                       # mlx-lm's: its config would be replaced
